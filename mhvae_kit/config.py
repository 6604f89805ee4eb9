"""Settings of the model and of training, as frozen dataclasses with the presets smoke, demo and paper."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mhvae_kit.config_base import Preset, check_preset, check_types, from_dict
from mhvae_kit.errors import InputError, explain
from mhvae_kit.gaussian import FusionRule
from mhvae_kit.training_presets import TRAINING_PRESETS

EncoderCell = Literal["residual_se", "mobilenet_v2"]
Architecture = Literal["mhvae", "mvae"]
Objective = Literal["mhvae", "wu2018", "mmhvae"]
Modality = str
Level = str


def digest(config: Any) -> str:
    """Short hex digest of a config's content: equal settings give equal digests."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class MHVAEConfig:
    """Everything that fixes the architecture of an MHVAE, or of an MVAE on the same backbone.

    Args:
        architecture: "mhvae" (a latent at every level) or "mvae" (a latent at the coarsest level alone; the feature
            maps below it are computed, not drawn).
        modalities: Names of the images, e.g. ("us", "t2"); their order changes no result.
        image_size: Height and width in pixels; both must be multiples of 2 ** (levels - 1).
        levels: Number of levels, z1 (finest, full resolution) to z<levels> (coarsest, a vector).
        base_channels: Feature channels at full resolution; doubled at each level down to the coarse end.
        max_channels: Upper limit of that doubling.
        decoder_blocks: Residual blocks in each image head (5 in the paper, 6 in the released code).
        expansion: Widening inside the top-down cells (6 in the paper).
        head_channels: Width of the image heads; None = that of z1, as in the paper.
        min_latent_channels: Fewest channels of a latent map; a level has half its feature channels, or this if more.
            An MVAE's maps are as wide as the latent maps they stand for.
        expert_bias: Whether each modality adds an offset of its own to the shared expert heads, so that it can leave a
            channel to another (docs/decisions/0005); the paper's experts share all weights.
        fusion: "precision" (exact product of experts) or "scale" (the authors' released rule).
        encoder_cell: "residual_se" (the released code: two 3x3 convolutions and squeeze-excitation) or
            "mobilenet_v2" (the paper's words: inverted residual with a depthwise convolution).
        soft_clamp: Means and log-stds are kept in (-soft_clamp, soft_clamp) by soft_clamp * tanh(x / soft_clamp).
    Raises:
        InputError: A setting does not fit; the message says how to mend it.
    Source:
        Dorent et al., MICCAI 2023, section 3; ReubenDo/MHVAE:network/mhvae.py and blocks.py.
    """

    architecture: Architecture = "mhvae"
    modalities: tuple[Modality, ...] = ("us", "t2")
    image_size: tuple[int, int] = (192, 192)
    levels: int = 7
    base_channels: int = 16
    max_channels: int = 128
    decoder_blocks: int = 5
    expansion: int = 6
    head_channels: int | None = None
    min_latent_channels: int = 1
    expert_bias: bool = False
    fusion: FusionRule = "precision"
    encoder_cell: EncoderCell = "residual_se"
    soft_clamp: float = 10.0

    def __post_init__(self) -> None:
        self._check_names()
        self._check_sizes()
        choices = {"architecture": Architecture, "fusion": FusionRule, "encoder_cell": EncoderCell}
        for name, kind in choices.items():
            allowed = get_args(kind)
            if getattr(self, name) not in allowed:
                raise InputError(
                    explain(f"unknown {name}", got=repr(getattr(self, name)), expected=" or ".join(allowed))
                )
        if not self.soft_clamp > 0:
            raise InputError(explain("soft_clamp must be positive", got=self.soft_clamp))

    def _check_names(self) -> None:
        names = self.modalities
        if (
            not names
            or len(set(names)) != len(names)
            or not all(isinstance(n, str) and n.isidentifier() for n in names)
        ):
            raise InputError(
                explain("modalities must be distinct names", got=repr(names), expected='for example ("us", "t2")')
            )

    def _check_sizes(self) -> None:
        for name in ("levels", "base_channels", "max_channels", "decoder_blocks", "expansion", "min_latent_channels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(explain(f"{name} must be a whole number of at least 1", got=repr(value)))
        if self.levels < 2 or self.base_channels % 2 or self.max_channels < self.base_channels:
            raise InputError(
                explain(
                    "these settings give no hierarchy",
                    got=f"levels={self.levels}, base_channels={self.base_channels}, max_channels={self.max_channels}",
                    expected="levels >= 2, an even base_channels and max_channels >= base_channels",
                )
            )
        step = 2 ** (self.levels - 1)
        height, width = self.image_size
        if height % step or width % step or height <= 0 or width <= 0 or height * width == step * step:
            raise InputError(
                explain(
                    "image_size does not fit the number of levels",
                    got=f"{height}x{width} with {self.levels} levels",
                    expected=f"both sides multiples of {step}, at least one of them larger",
                    mend="crop or pad the images, or take fewer levels",
                )
            )

    @property
    def level_names(self) -> tuple[Level, ...]:
        """The latent levels, coarse to fine: ("z7", ..., "z1") for an MHVAE of seven levels, ("z7",) for an MVAE."""
        coarsest = (f"z{self.levels}",)
        return coarsest if self.architecture == "mvae" else coarsest + self.finer_levels

    @property
    def finer_levels(self) -> tuple[Level, ...]:
        """All levels but the coarsest, coarse to fine, whether or not something is drawn there: ("z6", ..., "z1")."""
        return tuple(f"z{i}" for i in range(self.levels - 1, 0, -1))

    @property
    def channels(self) -> tuple[int, ...]:
        """Feature channels at each resolution, fine to coarse; the last is the bottleneck's."""
        return tuple(min(self.base_channels * 2**i, self.max_channels) for i in range(self.levels))

    @property
    def bottleneck_size(self) -> tuple[int, int]:
        """Height and width of the coarsest feature map."""
        step = 2 ** (self.levels - 1)
        return self.image_size[0] // step, self.image_size[1] // step

    def feature_channels(self, level: Level) -> int:
        """Channels of the skip and of the top-down feature at a level."""
        return self.channels[int(level[1:]) - 1]

    def map_channels(self, level: Level) -> int:
        """Channels of the map that a finer level hands down: z_l of an MHVAE, a narrowed feature of an MVAE."""
        return max(self.feature_channels(level) // 2, self.min_latent_channels)

    def latent_shape(self, level: Level) -> tuple[int, ...]:
        """Shape of one sample of a level: (C, H, W), or (D,) at the coarsest."""
        if level not in self.level_names:
            raise InputError(explain("unknown latent level", got=repr(level), expected=", ".join(self.level_names)))
        index = int(level[1:]) - 1
        if index == self.levels - 1:
            return (2 * self.channels[-1],)
        return self.map_channels(level), self.image_size[0] >> index, self.image_size[1] >> index

    @classmethod
    def paper(cls, **overrides: Any) -> MHVAEConfig:
        """The paper's model: us and t2 at 192x192, seven levels, 16 to 128 channels, five blocks per image head."""
        return cls(**overrides)

    @classmethod
    def demo(cls, **overrides: Any) -> MHVAEConfig:
        """For two CPU cores: 96x96, six levels with the paper's 3x3 bottleneck, half its channels but a z1 as wide."""
        settings: dict[str, Any] = {"image_size": (96, 96), "levels": 6, "base_channels": 8, "max_channels": 64}
        settings["decoder_blocks"] = 2
        return cls(**{**settings, "expansion": 3, "min_latent_channels": 8, "expert_bias": True, **overrides})

    @classmethod
    def smoke(cls, **overrides: Any) -> MHVAEConfig:
        """For tests: 64x64, five levels, a few channels."""
        settings = {"image_size": (64, 64), "levels": 5, "base_channels": 4, "max_channels": 16, "decoder_blocks": 1}
        return cls(**{**settings, **overrides})

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> MHVAEConfig:
        """The config of a preset by name, with single settings overridden."""
        return from_dict(cls, {**dataclasses.asdict(getattr(cls, check_preset(name))()), **overrides})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that fixes a training run; two runs with equal configs, data and library versions are equal.

    The budget is counted in steps; the stages begin at fractions of it, so that a shorter run keeps the paper's
    proportions: "reconstruction", then "kl_ramp", then "adversarial" for the last fifth.

    Args:
        preset: Which geometry of the data to use.
        phantom: Phantom cohort to train on, for example "demo_large"; None = that of the preset.
        model: The architecture.
        objective: What each observed subset is to reconstruct: every image ("mhvae"), or its own images alone
            ("wu2018": Wu & Goodman, NeurIPS 2018; synthesis is then learnt from the joint passes only; without GAN),
            or every image that its patient has ("mmhvae": patients may lack images; docs/decisions/0009).
        alone: The image that is the hardest to come by, see `synthesis_weight`. With "mmhvae", the one that is observed
            alone in a third of the passes; another third observes some of the others, the last all there are.
        missing: With "mmhvae", probability that a training patient lacks an image, for each image apart; at least one
            is left. Which ones is decided by seed and patient alone. Validation patients lack nothing.
        start_from: Where the initial weights come from, as `find_model` understands it: a model or run folder, or the
            name of a shipped model; None = drawn by the seed. Only the weights are taken, no optimiser state.
        joint_weight: Weight in the loss of the pass that observes every modality, against 1 of any other pass.
        synthesis_weight: Weight of each pass that does not observe `alone`, which it therefore has to synthesise.
        seed: Decides order, flips, noise, sampled subsets and initial weights.
        steps, batch_size, accumulate: Optimiser steps; slices a step over all processes; parts that a process cuts
            its share of a batch into, to save memory.
        learning_rate, final_learning_rate, warmup_steps: Adamax, linear warm-up, then cosine.
        reconstruction: "laplace" (absolute error / likelihood_scale, summed) or "smooth_l1_sum" (the authors').
        likelihood_scale: Scale b of the Laplace likelihood, in intensities of [-1, 1].
        kl_estimate: "closed_form" or "one_sample" (the authors').
        kl_weight, kl_floor: Weight of the KL after and before its ramp.
        reconstruction_until, kl_ramp_until, discriminator_from, adversarial_from: Fractions of the budget.
        gan: Whether the last stage has its adversarial term; off, everything else is the same.
        adversarial_weight: Weight of the LSGAN term against the negative ELBO per pixel.
        discriminator_learning_rate, discriminator_channels, discriminator_layers: One Adam critic per modality.
        subsets_per_step: Observed subsets a step when there are more than two modalities, drawn uniformly; with two
            modalities all three subsets are used. "mmhvae" always has its three passes.
        ema_decay: Decay of the averaged weights that validation and the saved model use.
        precision: "float32" or "bfloat16" (convolutions only; fusion, KL and losses stay in float32).
        guard_factor, max_bad_steps: A step whose gradient norm exceeds guard_factor times the running median is
            skipped and counted; more than max_bad_steps in a row stop the run.
        log_every, validate_every, checkpoint_every, keep_checkpoints: In steps; how many checkpoints are kept.
        validation_slices: Slices of the validation patients that are scored each time.
    """

    preset: Preset = "demo"
    phantom: str | None = None
    model: MHVAEConfig = dataclasses.field(default_factory=MHVAEConfig.demo)
    objective: Objective = "mhvae"
    alone: Modality = "us"
    missing: float = 0.0
    start_from: str | None = None
    joint_weight: float = 1.0
    synthesis_weight: float = 1.0
    seed: int = 0
    steps: int = 600
    batch_size: int = 4
    accumulate: int = 1
    checkpoint_gradients: bool = False
    learning_rate: float = 2e-3
    final_learning_rate: float = 1e-4
    warmup_steps: int = 20
    reconstruction: Literal["laplace", "smooth_l1_sum"] = "laplace"
    likelihood_scale: float = 0.03
    kl_estimate: Literal["closed_form", "one_sample"] = "closed_form"
    kl_weight: float = 1.0
    kl_floor: float = 0.01
    reconstruction_until: float = 0.1
    kl_ramp_until: float = 0.5
    discriminator_from: float = 0.79
    adversarial_from: float = 0.8
    gan: bool = True
    adversarial_weight: float = 1.0
    discriminator_learning_rate: float = 2e-4
    discriminator_channels: int = 64
    discriminator_layers: int | None = None
    subsets_per_step: int = 3
    ema_decay: float = 0.999
    precision: Literal["float32", "bfloat16"] = "float32"
    guard_factor: float = 10.0
    max_bad_steps: int = 20
    log_every: int = 10
    validate_every: int = 200
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    validation_slices: int = 24

    def __post_init__(self) -> None:
        check_preset(self.preset)
        self._check_types()
        positive = ("steps", "batch_size", "accumulate", "learning_rate", "likelihood_scale", "discriminator_channels")
        positive += ("log_every", "validate_every", "checkpoint_every", "keep_checkpoints", "validation_slices")
        positive += ("joint_weight", "synthesis_weight", "subsets_per_step", "max_bad_steps", "guard_factor")
        for name in (*positive, "discriminator_learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(explain(f"{name} must be positive", got=getattr(self, name)))
        order = (self.reconstruction_until, self.kl_ramp_until, self.discriminator_from, self.adversarial_from, 1.0)
        if self.reconstruction_until < 0 or list(order) != sorted(order):
            raise InputError(
                explain(
                    "the stages are out of order",
                    got=order,
                    expected="reconstruction_until, kl_ramp_until, discriminator_from, adversarial_from rising to 1",
                )
            )
        if not 0 <= self.ema_decay < 1 or self.kl_weight < 0 or self.kl_floor < 0 or self.adversarial_weight < 0:
            raise InputError(explain("ema_decay must lie in [0, 1) and no weight may be negative"))
        self._check_mixture()
        if self.objective == "wu2018" and self.gan:
            raise InputError(
                explain(
                    "objective wu2018 has no adversarial term: a subset answers for its own images alone, and critics "
                    "judge the others",
                    got="gan=True",
                    mend="set gan=False, or take the objective mhvae",
                )
            )

    def _check_mixture(self) -> None:
        """Refuse settings of missing images that do not fit the objective or the modalities."""
        names = self.model.modalities
        if not 0 <= self.missing < 1:
            raise InputError(explain("missing is not a probability below 1", got=self.missing, expected="in [0, 1)"))
        if self.missing and self.objective != "mmhvae":
            raise InputError(
                explain(
                    f"objective {self.objective} needs every image of every patient",
                    got=f"missing={self.missing}",
                    mend="take the objective mmhvae, or set missing to 0",
                )
            )
        if self.objective == "mmhvae" and (self.alone not in names or len(names) < 2):
            raise InputError(
                explain(
                    "objective mmhvae needs an image that is observed alone, and others",
                    got=f"alone={self.alone!r} of {', '.join(names)}",
                    expected="one of at least two modalities",
                    mend="set alone to one of the modalities",
                )
            )

    def _check_types(self) -> None:
        """Refuse values of the wrong type, such as the text "false" for a bool, and words that are none of a few."""
        if not isinstance(self.model, MHVAEConfig):
            raise InputError(explain("model must be an MHVAEConfig", got=type(self.model).__name__))
        choices = {"reconstruction": ("laplace", "smooth_l1_sum"), "kl_estimate": ("closed_form", "one_sample")}
        check_types(self, {**choices, "precision": ("float32", "bfloat16"), "objective": get_args(Objective)})

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> TrainingConfig:
        """The settings of a preset; overrides may name any field of this class or of `MHVAEConfig`.

        Raises:
            InputError: The preset or an override is unknown, or a value does not fit.
        """
        model_fields = {f.name for f in dataclasses.fields(MHVAEConfig)}
        for_model = {k: v for k, v in overrides.items() if k in model_fields}
        for_training = {k: v for k, v in overrides.items() if k not in model_fields}
        known = {f.name for f in dataclasses.fields(cls)} | model_fields
        for key in for_training:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                raise InputError(
                    explain(
                        f"unknown setting {key!r}",
                        expected=f"perhaps {near[0]!r}" if near else ", ".join(sorted(known)),
                    )
                )
        model = MHVAEConfig.preset(name, **for_model)
        return cls(**{"preset": name, "model": model, **TRAINING_PRESETS[check_preset(name)], **for_training})

    def to_dict(self) -> dict[str, Any]:
        """Nested dict of JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_saved(cls, values: dict[str, Any]) -> TrainingConfig:
        """The inverse of `to_dict`."""
        return from_dict(cls, {**values, "model": from_dict(MHVAEConfig, values["model"])})
