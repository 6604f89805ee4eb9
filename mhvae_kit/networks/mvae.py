"""The multi-modal VAE that MHVAE is compared with: the same backbone, one vector of latents, no hierarchy."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mhvae_kit.config import Level
from mhvae_kit.networks.backbone import MultimodalVAE
from mhvae_kit.networks.blocks import SqueezeExcitation
from mhvae_kit.networks.convolution import Conv2d
from mhvae_kit.networks.normalisation import norm_silu


class NarrowingBlock(nn.Module):
    """What stands where MHVAE draws a latent map: two pre-normalised 3x3 convolutions, gate, 1x1 to its channels."""

    def __init__(self, channels: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(channels, channels, 3, padding=1)
        self.conv2 = Conv2d(channels, channels, 3, padding=1)
        self.gate = SqueezeExcitation(channels)
        self.project = weight_norm(Conv2d(channels, channels_out, 1, bias=False))

    def forward(self, feature: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C_out, H, W)."""
        y = self.conv1(norm_silu(feature))
        return self.gate.projected(self.conv2(norm_silu(y)), self.project)


class MVAE(MultimodalVAE):
    """Multi-modal VAE: one product of experts, at the vector z_L, and a deterministic path from there to the images.

    The backbone is MHVAE's, without prior and expert heads below z_L. The encoders' finer features are not used, so
    that all an image tells has to pass through the vector. It is called as an MHVAE is; every dict by level has the
    coarsest level alone.

    Args:
        config: The architecture, with architecture="mvae".
    Source:
        Row "MVAE" of Dorent et al., MICCAI 2023, table 1; its layout from ReubenDo/MMHVAE:network/mvae.py (the 2023
        code has none), which is not the network of Wu & Goodman, NeurIPS 2018. Their objective is
        `TrainingConfig.objective="wu2018"`.
    """

    architecture = "mvae"
    own_modules = ("narrow",)

    def _make_own(self) -> None:
        config = self.config
        widths = {k: (config.feature_channels(k), config.map_channels(k)) for k in config.finer_levels}
        self.narrow = nn.ModuleDict({k: NarrowingBlock(*pair) for k, pair in widths.items()})

    def _finest_map(self, latents: Mapping[Level, Tensor]) -> Tensor:
        x = latents[self.config.level_names[0]]
        for level in self.config.finer_levels:
            x = self.narrow[level](self._feature(level, x))
        return x
