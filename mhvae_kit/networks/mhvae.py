"""The multi-modal hierarchical VAE: a latent at every level, fused by a product of experts level by level."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mhvae_kit.config import Level, Modality
from mhvae_kit.gaussian import Gaussian
from mhvae_kit.networks.backbone import Encoding, MultimodalVAE, ObservedRows, Subset, Synthesis
from mhvae_kit.networks.blocks import ExpertHead, pointwise
from mhvae_kit.networks.stacks import Subsets, joined

__all__ = ["MHVAE", "Encoding", "ObservedRows", "Subset", "Synthesis"]


class MHVAE(MultimodalVAE):
    """Multi-modal hierarchical VAE with a product of experts at every latent level.

    Below the coarsest level, prior_head and expert_head make a level's prior and experts out of the top-down feature
    and, for the experts, a modality's skip; both are shared by all modalities.

    Args:
        config: The architecture.
    Source:
        Dorent et al., "Unified Brain MR-Ultrasound Synthesis using Multi-Modal Hierarchical Representations",
        MICCAI 2023, section 2 and 3.
    """

    architecture = "mhvae"
    own_modules = ("prior_head", "expert_head")

    def _make_own(self) -> None:
        config = self.config
        sizes = {k: (config.feature_channels(k), config.map_channels(k)) for k in config.finer_levels}
        self.prior_head = nn.ModuleDict({k: pointwise(c, latent) for k, (c, latent) in sizes.items()})
        self.expert_head = nn.ModuleDict({k: ExpertHead(c, latent) for k, (c, latent) in sizes.items()})

    def _finest_map(self, latents: Mapping[Level, Tensor]) -> Tensor:
        return latents["z1"]

    def _prior(self, level: Level, feature: Tensor | None, rows: int) -> Gaussian:
        if feature is None:
            return super()._prior(level, feature, rows)
        return self._gaussian(self.prior_head[level](feature))

    def _experts(
        self, level: Level, feature: Tensor | None, encoding: Encoding, stacks: Subsets, rows: int
    ) -> list[dict[Modality, Gaussian]]:
        """One dict of experts a stack; all pairs of stack and modality go through the shared head as one batch."""
        pairs = [(i, m) for i, stack in enumerate(stacks) for m in stack]
        if feature is None or not pairs:
            return super()._experts(level, feature, encoding, stacks, rows)
        modalities = [m for _, m in pairs]
        given = list(dict.fromkeys(modalities))
        skips = joined([encoding.skips[m][level] for m in given])
        each_once = [i for i, _ in pairs] == list(range(len(stacks)))
        features = feature.chunk(len(stacks))
        seen = feature if each_once else joined([features[i] for i, _ in pairs])
        times = len(features[0]) // encoding.batch_size
        which = [given.index(m) for m in modalities for _ in range(times)]
        heads = self.expert_head[level](seen, skips, which)
        experts = self._gaussian(self._biased(level, heads, modalities)).chunk(len(pairs))
        found: list[dict[Modality, Gaussian]] = [{} for _ in stacks]
        for (i, m), expert in zip(pairs, experts, strict=True):
            found[i][m] = expert
        return found
