"""The critic of one modality: an unconditional PatchGAN whose depth follows the image size."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mhvae_kit.errors import InputError, explain
from mhvae_kit.networks.normalisation import instance_norm


def default_layers(image_size: tuple[int, int]) -> int:
    """Strided layers for an image size: 6 at 192 px as in the released code, one fewer for each halving.

    With them the last map is 1x1 at 192, 96 and 48 px: the critic judges the whole slice.
    """
    layers = 6
    side = min(image_size)
    while layers > 1 and side < 192 >> (6 - layers):
        layers -= 1
    return layers


class PatchDiscriminator(nn.Module):
    """Strided 4x4 convolutions with instance norm and LeakyReLU, ending in a map of real/fake scores.

    Args:
        image_size: Height and width in pixels.
        channels: Width of the first layer; later layers are at most four times as wide.
        layers: Number of strided layers; None = `default_layers(image_size)`. Fewer layers judge smaller patches.
    Raises:
        InputError: The image is too small for that many layers.
    Source:
        ReubenDo/MHVAE:network/discriminator_pathgan2D.py (64 channels, 6 layers: 4,856,257 parameters).
    """

    def __init__(self, image_size: tuple[int, int], channels: int = 64, layers: int | None = None) -> None:
        super().__init__()
        layers = default_layers(image_size) if layers is None else layers
        side = min(image_size) >> layers
        if side - 2 < 1:
            raise InputError(
                explain(
                    "the discriminator is too deep for the image",
                    got=f"{layers} strided layers at {image_size[0]}x{image_size[1]} px",
                    expected=f"at most {default_layers(image_size)} layers",
                    mend="lower discriminator_layers",
                )
            )
        widths = [channels * min(2**i, 4) for i in range(layers)]
        pairs = zip([1, *widths[:-1]], widths, strict=True)
        self.strided = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairs)
        last = channels * min(2**layers, 4)
        self.flat = nn.Conv2d(widths[-1], last, 4, padding=1)
        self.score = nn.Conv2d(last, 1, 4, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, H, W) in [-1, 1] to scores (B, 1, h, w): towards 1 for real, towards 0 for synthetic."""
        x = F.leaky_relu(self.strided[0](image), 0.2)
        for layer in self.strided[1:]:
            x = F.leaky_relu(instance_norm(layer(x)), 0.2)
        x = F.leaky_relu(instance_norm(self.flat(x)), 0.2)
        return self.score(x).float()
