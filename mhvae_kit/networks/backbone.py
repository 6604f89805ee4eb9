"""What MHVAE and MVAE have in common: encode every image once, fuse from coarse to fine, decode what is asked for.

Reads top to bottom: what goes in and out (Encoding, Synthesis), then the model (modules, encode, decode, top-down).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mhvae_kit.config import Architecture, Level, MHVAEConfig, Modality
from mhvae_kit.errors import InputError, explain
from mhvae_kit.gaussian import Gaussian, kl_divergence, product_of_experts
from mhvae_kit.memory import keep_freed_memory
from mhvae_kit.networks.blocks import (
    ImageHead,
    MobileNetV2Cell,
    ResidualSECell,
    TopDownCell,
    UpConvolution,
    soft_clamped_halves,
)
from mhvae_kit.networks.checks import (
    Temperature,
    check_images,
    check_levels,
    check_rows,
    check_subset,
    temperatures,
)
from mhvae_kit.networks.convolution import Conv2d
from mhvae_kit.networks.inference import laid_out, without_gradients
from mhvae_kit.networks.stacks import ObservedRows, Subset, Subsets, apart, experts_apart, joined, silenced, stacked
from mhvae_kit.normals import standard_normal

CELLS = {"residual_se": ResidualSECell, "mobilenet_v2": MobileNetV2Cell}


@dataclass(frozen=True)
class Encoding:
    """What the encoders made of the given images; reusable for any subset, temperature or resampling.

    Args:
        skips: By modality and latent level ("z1" ... the last but one), features (B, C, H, W); an MVAE has none.
        bottleneck: By modality, the flattened coarsest features (B, C * H * W).
        batch_size: B.
    """

    skips: dict[Modality, dict[Level, Tensor]]
    bottleneck: dict[Modality, Tensor]
    batch_size: int

    @property
    def modalities(self) -> Subset:
        """The modalities that were given."""
        return tuple(self.skips)


@dataclass(frozen=True)
class Synthesis:
    """The result of one decoding; every dict by level has the latent levels, "z7" (coarsest) to "z1" (an MVAE: "z7").

    Args:
        images: By modality, (B, 1, H, W) in [-1, 1].
        latents: By level, the z that was used, (B, C, H, W) or (B, D) at the coarsest.
        prior: By level, p(z_l | z_{l+1}).
        posterior: By level, q(z_l | observed, z_{l+1}).
        experts: By level and observed modality, that modality's factor.
        observed: The modalities that were fused.
        rows: By modality of `observed`, bool (B,): in which rows it was, where that differs from row to row; in the
            others its experts are infinitely wide. None = in all of them.
    """

    images: dict[Modality, Tensor]
    latents: dict[Level, Tensor]
    prior: dict[Level, Gaussian]
    posterior: dict[Level, Gaussian]
    experts: dict[Level, dict[Modality, Gaussian]] = field(repr=False)
    observed: Subset = ()
    rows: ObservedRows | None = None

    @cached_property
    def kl(self) -> dict[Level, Tensor]:
        """KL(posterior || prior) by level, nats summed over the level, (B,). Computed when first asked for."""
        return {level: kl_divergence(self.posterior[level], self.prior[level]) for level in self.posterior}


class Encoder(nn.Module):
    """The bottom-up path of one modality: a cell at each resolution, strided 3x3 convolutions between them."""

    def __init__(self, config: MHVAEConfig) -> None:
        super().__init__()
        cell = CELLS[config.encoder_cell]
        channels = config.channels
        self.first = Conv2d(1, channels[0], 3, padding=1)
        self.cells = nn.ModuleList(cell(c) for c in channels)
        self.down = nn.ModuleList(Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(channels))

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B, 1, H, W) to the skips, fine to coarse, and the flattened bottleneck (B, D)."""
        x = laid_out(self.first(laid_out(image)))
        skips = []
        for cell, down in zip(self.cells[:-1], self.down, strict=True):
            x = cell(x)
            skips.append(x)
            x = laid_out(down(x))
        return skips, self.cells[-1](x).flatten(1)


class MultimodalVAE(nn.Module):
    """Encoders, vector latent with a product of experts, top-down path and image heads; what happens in between is a
    subclass's: it names its `architecture` and its `own_modules`, and defines `_make_own` and `_finest_map`.

    Modules keyed by modality exist once per modality (encoder, image_head); those keyed by level are shared by all
    modalities (up, top_down, and a subclass's), so that any number of images can be fused. Only expert_bias, where the
    config asks for it, has entries for both.

    Args:
        config: The architecture; `config.level_names` are the levels at which a latent is drawn.
    Raises:
        InputError: The config is that of another architecture.
    """

    architecture: ClassVar[Architecture]
    own_modules: ClassVar[tuple[str, ...]]

    def __init__(self, config: MHVAEConfig) -> None:
        super().__init__()
        if config.architecture != self.architecture:
            raise InputError(
                explain(
                    f"this config is not that of an {type(self).__name__}",
                    got=f"architecture={config.architecture!r}",
                    expected=f"architecture={self.architecture!r}",
                )
            )
        self.config = config
        self.card: dict[str, Any] = {}
        finer = config.finer_levels
        height, width = config.bottleneck_size
        volume = config.channels[-1] * height * width
        vector = 2 * config.channels[-1]
        self.encoder = nn.ModuleDict({m: Encoder(config) for m in config.modalities})
        self.bottleneck_expert = weight_norm(nn.Linear(volume, 2 * vector))
        self.bottleneck_up = weight_norm(nn.Linear(vector, volume))
        widths = {level: config.feature_channels(level) for level in finer}
        self.top_down = nn.ModuleDict({level: TopDownCell(c, config.expansion) for level, c in widths.items()})
        coming = [config.channels[-1], *(config.map_channels(level) for level in finer[:-1])]
        self.up = nn.ModuleDict({k: UpConvolution(c, widths[k]) for k, c in zip(finer, coming, strict=True)})
        self._make_own()
        latents = {k: config.latent_shape(k) for k in config.level_names}
        heads = {k: (2 * shape[0], *(1 for _ in shape[1:])) for k, shape in latents.items()}
        self.expert_bias = nn.ModuleDict(
            {k: nn.ParameterDict({m: torch.zeros(shape) for m in config.modalities}) for k, shape in heads.items()}
            if config.expert_bias
            else {}
        )
        z1 = config.map_channels("z1")
        self.image_head = nn.ModuleDict(
            {m: ImageHead(z1, config.decoder_blocks, config.head_channels) for m in config.modalities}
        )

    def _make_own(self) -> None:
        """Make the modules of the finer levels that this architecture alone has."""
        raise NotImplementedError

    def _finest_map(self, latents: Mapping[Level, Tensor]) -> Tensor:
        """What the image heads decode, (B, C, H, W), from the latents."""
        raise NotImplementedError

    def forward(self, images: Mapping[Modality, Tensor], **options: Any) -> Synthesis:
        """`encode`, then `decode` with the given options."""
        return self.decode(self.encode(images), **options)

    def encode(self, images: Mapping[Modality, Tensor]) -> Encoding:
        """Encode every given modality once.

        Args:
            images: By modality, (B, 1, H, W) floats in [-1, 1], background exactly -1. An absent modality is an
                absent key; the dict and its tensors are left as they are.
        Raises:
            InputError: No image, an unknown modality, or a wrong shape, type, range or value (NaN, infinity).
        """
        batch_size = check_images(self.config, images)
        if without_gradients(self.bottleneck_up.bias):
            keep_freed_memory()
        skips: dict[Modality, dict[Level, Tensor]] = {}
        bottleneck = {}
        fine_to_coarse = self.config.finer_levels[::-1]
        for modality, image in images.items():
            features, bottleneck[modality] = self.encoder[modality](image)
            named = zip(fine_to_coarse, features, strict=True)
            skips[modality] = {k: skip for k, skip in named if k in self.config.level_names}
        return Encoding(skips, bottleneck, batch_size)

    def decode(
        self,
        encoding: Encoding,
        observed: Iterable[Modality] | None = None,
        temperature: Temperature = 1.0,
        targets: Iterable[Modality] | None = None,
        generator: torch.Generator | None = None,
        noise: Mapping[Level, Tensor] | None = None,
        levels: Mapping[Level, Tensor] | None = None,
    ) -> Synthesis:
        """Fuse the observed modalities at every latent level, coarse to fine, and decode the targets.

        Args:
            encoding: From `encode`.
            observed: Which encoded modalities to fuse; None = all of them, () = none: the prior alone.
            temperature: Factor on the standard deviation, one number or one per level ({"z1": 0.2}; levels not named
                keep 1). 0 takes the mean and draws nothing.
            targets: Which images to decode; None = every modality of the model.
            generator: Source of the noise; None = the global one.
            noise: Standard-normal draws by level (see `draw_noise`), so that a change of temperature changes
                nothing else. Levels not named are drawn.
            levels: Latents to impose instead of drawing them, by level, (B, ...) or (1, ...).
        Raises:
            InputError: Unknown modality, level or target, negative temperature, or a wrong shape.
        """
        subset = encoding.modalities if observed is None else tuple(observed)
        return self.decode_subsets(
            encoding, [subset], temperature, targets=targets, generator=generator, noise=noise, levels=levels
        )[0]

    def decode_subsets(
        self,
        encoding: Encoding,
        subsets: Subsets,
        temperature: Temperature | Sequence[Temperature] = 1.0,
        *,
        targets: Iterable[Modality] | None = None,
        generator: torch.Generator | None = None,
        noise: Mapping[Level, Tensor] | None = None,
        levels: Mapping[Level, Tensor] | None = None,
    ) -> list[Synthesis]:
        """`decode` for several observed subsets in one top-down pass, the subsets stacked along the batch.

        A subset that differs from row to row is given as a dict, by modality a bool tensor (B,) of the rows that
        observe it; what is encoded in the other rows has no say. A row that observes nothing follows the prior.
        `temperature` may be a list with one for each subset: one subset several times, each at its own temperature, is
        quicker than one `decode` a temperature. `noise` and `levels`, when given, hold len(subsets) * B entries, subset
        by subset, or a single one for all. Returns one Synthesis a subset, in the order given.
        """
        subsets = [
            check_rows(encoding.modalities, subset, encoding.batch_size)
            if isinstance(subset, Mapping)
            else check_subset(encoding.modalities, subset, "observed")
            for subset in subsets
        ]
        if without_gradients(self.bottleneck_up.bias):
            keep_freed_memory()
        wanted = check_subset(self.config.modalities, targets, "targets") if targets else self.config.modalities
        wanted = () if targets is not None and not tuple(targets) else wanted
        rows = len(subsets) * encoding.batch_size
        noise = check_levels(self.config, noise, rows, "noise")
        levels = check_levels(self.config, levels, rows, "levels")
        tau = temperatures(self.config, temperature, len(subsets))
        stacks = stacked(subsets)

        prior: dict[Level, list[Gaussian]] = {}  # one a stack, like the posteriors and the experts
        posterior: dict[Level, list[Gaussian]] = {}
        experts: dict[Level, list[dict[Modality, Gaussian]]] = {}
        z: dict[Level, Tensor] = {}
        above: Tensor | None = None
        for level in self.config.level_names:
            feature = None if above is None else self._feature(level, above)
            prior[level] = self._prior(level, feature, rows).chunk(len(stacks))
            experts[level] = silenced(self._experts(level, feature, encoding, stacks, rows), stacks)
            posterior[level] = self._fuse(prior[level], experts[level])
            if level in levels:
                z[level] = levels[level].expand(rows, *levels[level].shape[1:])
            else:
                z[level] = self._drawn(level, posterior[level], [t[level] for t in tau], noise.get(level), generator)
            above = z[level]
        finest = self._finest_map(z) if wanted else None
        images = {m: self.image_head[m](finest) for m in wanted}
        return _split(subsets, images, z, prior, posterior, experts)

    def sample(
        self, n: int, temperature: Temperature = 1.0, generator: torch.Generator | None = None, **options: Any
    ) -> Synthesis:
        """Draw `n` sets of images from the prior alone; options as in `decode` (targets, noise, levels)."""
        if n < 1:
            raise InputError(explain("the number of samples must be at least 1", got=n))
        return self.decode(Encoding({}, {}, n), (), temperature, generator=generator, **options)

    def draw_noise(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str | None = None,
        only: Iterable[Level] | None = None,
    ) -> dict[Level, Tensor]:
        """Standard-normal draws for `n` images, by level, coarse to fine, on the generator's device first."""
        made_on = generator.device if generator is not None else device
        names = self.config.level_names if only is None else tuple(only)
        draws = {k: standard_normal((n, *self.config.latent_shape(k)), generator, made_on) for k in names}
        return {k: v.to(device) for k, v in draws.items()} if device is not None else draws

    def _drawn(
        self,
        level: Level,
        posteriors: Sequence[Gaussian],
        tau: Sequence[float],
        noise: Tensor | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The latents of a level, each subset's drawn at its temperature; nothing is drawn where all are 0."""
        rows, device = len(posteriors) * len(posteriors[0].mean), self.bottleneck_up.bias.device
        if not any(tau):
            return joined([posterior.mean for posterior in posteriors])
        if noise is None:
            noise = self.draw_noise(rows, generator, device=device, only=[level])[level]
        drawn = noise.expand(rows, *noise.shape[1:]).chunk(len(posteriors))
        if len(posteriors) == len(tau):
            return joined([p.sample(e, t) for p, e, t in zip(posteriors, drawn, tau, strict=True)])
        by_row = [t for t in tau for _ in range(rows // len(tau))]
        return posteriors[0].sample(drawn[0], tau[0] if len(set(tau)) == 1 else torch.tensor(by_row, device=device))

    def _feature(self, level: Level, above: Tensor) -> Tensor:
        """Top-down feature of a level from the latent above it."""
        if above.ndim == 2:
            above = self.bottleneck_up(above).unflatten(1, (self.config.channels[-1], *self.config.bottleneck_size))
        return self.top_down[level](self.up[level](above))

    def _prior(self, level: Level, feature: Tensor | None, rows: int) -> Gaussian:
        """The prior of a level, for all rows; standard normal at the coarsest, where no feature comes from above."""
        return Gaussian.standard((rows, *self.config.latent_shape(level)), like=self.bottleneck_up.bias)

    def _experts(
        self, level: Level, feature: Tensor | None, encoding: Encoding, stacks: Subsets, rows: int
    ) -> list[dict[Modality, Gaussian]]:
        """One dict of experts a stack, of `rows` rows together. The coarsest have one evaluation a modality."""
        used = sorted({m for stack in stacks for m in stack})
        if not used:
            return [{} for _ in stacks]
        heads = self.bottleneck_expert(torch.cat([encoding.bottleneck[m] for m in used]))
        heads = self._gaussian(self._biased(level, heads, used))
        times = rows // (len(stacks) * encoding.batch_size)
        by_modality = {m: head.repeated(times) for m, head in zip(used, heads.chunk(len(used)), strict=True)}
        return [{m: by_modality[m] for m in stack} for stack in stacks]

    def _biased(self, level: Level, heads: Tensor, modalities: Sequence[Modality]) -> Tensor:
        """Add each modality's own offset, if the model has one, to its part of a stacked batch of expert heads."""
        if level not in self.expert_bias:
            return heads
        own = self.expert_bias[level]
        parts = heads.chunk(len(modalities))
        return torch.cat([part + own[m] for part, m in zip(parts, modalities, strict=True)])

    def _fuse(self, priors: list[Gaussian], experts: list[dict[Modality, Gaussian]]) -> list[Gaussian]:
        parts = zip(priors, experts, strict=True)
        return [product_of_experts(p, list(e.values()), self.config.fusion) for p, e in parts]

    def _gaussian(self, head: Tensor) -> Gaussian:
        """Split a head's channels into mean and log-std, clamped softly, in float32 whatever the autocast."""
        return Gaussian(*soft_clamped_halves(head, self.config.soft_clamp))


def _split(
    subsets: Subsets,
    images: dict[Modality, Tensor],
    latents: dict[Level, Tensor],
    prior: dict[Level, list[Gaussian]],
    posterior: dict[Level, list[Gaussian]],
    experts: dict[Level, list[dict[Modality, Gaussian]]],
) -> list[Synthesis]:
    """Cut a stacked batch back into one Synthesis a subset."""
    n = len(subsets)
    image_parts = {m: x.chunk(n) for m, x in images.items()}
    latent_parts = {k: z.chunk(n) for k, z in latents.items()}
    prior, posterior = ({k: apart(stacks, n) for k, stacks in of_all.items()} for of_all in (prior, posterior))
    experts = {k: experts_apart(stacks, n) for k, stacks in experts.items()}
    return [
        Synthesis(
            images={m: parts[i] for m, parts in image_parts.items()},
            latents={k: parts[i] for k, parts in latent_parts.items()},
            prior={k: parts[i] for k, parts in prior.items()},
            posterior={k: parts[i] for k, parts in posterior.items()},
            experts={k: parts[i] for k, parts in experts.items()},
            observed=tuple(subset),
            rows=subset if isinstance(subset, dict) else None,
        )
        for i, subset in enumerate(subsets)
    ]
