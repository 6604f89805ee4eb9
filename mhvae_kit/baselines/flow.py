"""Rectified flow: a diffusion UNet that turns noise into the target in a few steps, with the source as condition.

Reads top to bottom: settings, MONAI's parts, integration, the method with its training rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise, permutations
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mhvae_kit.baselines.translator import Direction, Translator
from mhvae_kit.config import Modality, check_preset, from_dict
from mhvae_kit.errors import InputError, MissingError, explain

TRAINING_TIMES = 1000  # time runs from 1000 (noise) to 0 (image); the UNet's embedding is made for this range


@dataclass(frozen=True)
class FlowConfig:
    """Everything that fixes a rectified flow between modalities.

    Args:
        modalities: At least two; one network goes from each to each other.
        image_size: Height and width in pixels, multiples of 2 ** (number of channels - 1).
        channels: Of the UNet, fine to coarse; one residual block a level, attention at the coarsest.
        norm_groups: Groups of its group norms; divides all channels.
        head_channels: Of each attention head; divides the last channels.
        sampling_steps: Euler steps from noise to image, each one pass through the network.
        background_weight: Weight of pixels outside the fan in the loss, against 1 inside. Not 0, although they are not
            scored: the sampler passes through what the network makes of them, and it has to stay what was trained on.
        learning_rate, weight_decay: Of AdamW.
    Raises:
        InputError: A setting does not fit.
    Source:
        Liu et al., "Flow straight and fast", ICLR 2023; the UNet is Rombach et al.'s, CVPR 2022, as MONAI has it.
    """

    modalities: tuple[Modality, ...] = ("us", "t2")
    image_size: tuple[int, int] = (192, 192)
    channels: tuple[int, ...] = (32, 64, 128, 256)
    norm_groups: int = 32
    head_channels: int = 64
    sampling_steps: int = 20
    background_weight: float = 0.1
    learning_rate: float = 1e-4
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        names, size = self.modalities, self.image_size
        if len(set(names)) != len(names) or len(names) < 2 or not all(str(n).isidentifier() for n in names):
            raise InputError(explain("a flow goes between modalities", got=repr(names), expected='as ("us", "t2")'))
        counts = {name: getattr(self, name) for name in ("norm_groups", "head_channels", "sampling_steps")}
        counts |= {f"channels[{i}]": value for i, value in enumerate(self.channels)}
        for name, value in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(explain(f"{name} must be a whole number of at least 1", got=repr(value)))
        if not self.channels or any(c % self.norm_groups for c in self.channels):
            expected = f"some, each a multiple of norm_groups={self.norm_groups}"
            raise InputError(explain("channels do not fit", got=self.channels, expected=expected))
        if self.channels[-1] % self.head_channels:
            expected = f"a divisor of {self.channels[-1]}"
            raise InputError(explain("head_channels does not fit", got=self.head_channels, expected=expected))
        step = 2 ** (len(self.channels) - 1)
        if len(size) != 2 or any(side < step or side % step for side in size):
            expected = f"height and width in multiples of {step}"
            raise InputError(explain("image_size does not fit the number of channels", got=size, expected=expected))
        if self.sampling_steps > TRAINING_TIMES:
            raise InputError(
                explain("too many sampling_steps", got=self.sampling_steps, expected=f"at most {TRAINING_TIMES}")
            )
        if not self.learning_rate > 0 or self.weight_decay < 0 or not 0 <= self.background_weight <= 1:
            raise InputError(
                explain(
                    "learning_rate, weight_decay or background_weight does not fit",
                    got=f"{self.learning_rate}, {self.weight_decay}, {self.background_weight}",
                    expected="more than 0, at least 0, in [0, 1]",
                )
            )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> FlowConfig:
        """The settings of a preset, with single ones overridden.

        demo has half the channels at each of the four levels. demo and smoke have 1e-3 as learning rate for a budget
        of a few hundred steps.
        """
        return from_dict(cls, {**_PRESETS[check_preset(name)], **overrides})


_SMALL = {"learning_rate": 1e-3, "sampling_steps": 10}
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "demo": {**_SMALL, "image_size": (96, 96), "channels": (16, 32, 64, 128), "norm_groups": 8, "head_channels": 32},
    "smoke": {**_SMALL, "image_size": (64, 64), "channels": (8, 16, 16), "norm_groups": 4, "head_channels": 8},
}


def velocity_network(config: FlowConfig, conditions: int, targets: int | None) -> nn.Module:
    """MONAI's diffusion UNet.

    Args:
        config: The settings.
        conditions: Images that are given beside the noisy one.
        targets: Size of the embedding of what is asked for; None = no embedding.
    Returns:
        A network called with (B, 1 + conditions, H, W), times (B,) in [0, 1000] and, by name, `class_labels` (B,).
    Raises:
        MissingError: MONAI, or einops which its attention needs, is not installed.
    """
    try:
        from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

        return DiffusionModelUNet(
            spatial_dims=2,
            in_channels=1 + conditions,
            out_channels=1,
            channels=config.channels,
            num_res_blocks=1,
            attention_levels=[level == len(config.channels) - 1 for level in range(len(config.channels))],
            norm_num_groups=config.norm_groups,
            num_head_channels=config.head_channels,
            num_class_embeds=targets,
        )
    except ImportError as error:
        raise MissingError(_not_installed(error)) from error


def _scheduler() -> Any:
    """MONAI's rectified-flow scheduler, made anew where it is needed.

    It is a module that never called Module.__init__, so it must not become part of another module; and its draws of
    times come from torch's global generator, so times are drawn here.
    """
    try:
        from monai.networks.schedulers.rectified_flow import RFlowScheduler
    except ImportError as error:
        raise MissingError(_not_installed(error)) from error
    # Whole times: the others are kept as 16-bit floats.
    return RFlowScheduler(num_train_timesteps=TRAINING_TIMES, use_discrete_timesteps=True)


def _not_installed(error: ImportError) -> str:
    reason = str(error).strip().splitlines()[0]
    return explain(
        "the rectified flow needs MONAI 1.5 or newer and einops", got=reason, mend="pip install 'monai>=1.5' einops"
    )


def noisy(image: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """The straight line from image to noise: (1 - t / 1000) * image + t / 1000 * noise.

    Args:
        image, noise: (B, 1, H, W).
        times: (B,) in [0, 1000].
    """
    return _scheduler().add_noise(original_samples=image, noise=noise, timesteps=times)


def integrate(velocity: Callable[[Tensor, Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """Follow a velocity from time 1000 to 0 in so many Euler steps of equal length, rounded to whole times.

    Args:
        velocity: From an image (B, 1, H, W) and times (B,) to the change of the image per 1000 units of time passed.
        start: The image at time 1000, (B, 1, H, W).
        steps: At least 1.
    Returns:
        The image at time 0, same shape.
    """
    scheduler = _scheduler()
    scheduler.set_timesteps(steps)
    x = start
    for now, later in pairwise([*scheduler.timesteps.tolist(), 0]):
        times = torch.full((len(x),), float(now), device=x.device)
        # The later time is passed on, so that step and times agree; without it each step would be 1000 / steps.
        x, _ = scheduler.step(velocity(x, times), now, x, later)
    return x


class RectifiedFlow(Translator):
    """One UNet for all directions: beside the noisy image, a channel for each modality and an embedding of the target.

    Modalities that are not given have a channel of 0, which is mid-grey and not background (-1). One network and not
    one a direction, because what it is compared with is one network too, and of the same size: 10,726,945 parameters
    at full size for two modalities, against 10,099,032 of MHVAE; each direction by itself would take 10,726,401.

    At temperature 0 it starts from 0 instead of noise and follows the mean path; with a single step that would be
    the expected image.

    Args:
        config: The settings.
    Raises:
        MissingError: MONAI or einops is not installed.
    """

    name: ClassVar[str] = "flow"
    stochastic: ClassVar[bool] = True
    config: FlowConfig

    def __init__(self, config: FlowConfig) -> None:
        super().__init__(config)
        self.network = velocity_network(config, len(config.modalities), len(config.modalities))
        self.card["sampling_steps"] = config.sampling_steps

    @property
    def directions(self) -> tuple[Direction, ...]:
        """From each modality to each other one, the last modality first, so that T2 to US leads for ("us", "t2")."""
        return tuple(((source,), target) for source, target in permutations(self.config.modalities[::-1], 2))

    def averaged(self) -> nn.Module:
        """The UNet."""
        return self.network

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """AdamW."""
        config = self.config
        rates = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        return {"network": torch.optim.AdamW(self.network.parameters(), **rates)}

    def velocity(self, x: Tensor, times: Tensor, images: Mapping[Modality, Tensor], target: Modality) -> Tensor:
        """The network's guess of target - noise.

        Args:
            x: Noisy image, (B, 1, H, W).
            times: (B,) in [0, 1000].
            images: Given modalities, (B, 1, H, W) each.
            target: What x is to become.
        """
        absent = torch.zeros_like(x)
        stacked = torch.cat([x, *(images.get(m, absent) for m in self.config.modalities)], 1)
        labels = torch.full((len(x),), self.config.modalities.index(target), device=x.device)
        return self.network(stacked, timesteps=times, class_labels=labels)

    def translate(
        self, images: dict[Modality, Tensor], target: Modality, noise: Mapping[str, Tensor], temperature: float
    ) -> Tensor:
        """The target, (B, 1, H, W) in [-1, 1], from the given image.

        Args:
            images, target: A direction.
            noise: "image", (B, 1, H, W) or (1, 1, H, W); not needed at temperature 0.
            temperature: Factor on the noise that the path starts from.
        Raises:
            InputError: The noise is missing or has another shape.
        """
        image = next(iter(images.values()))
        start = torch.zeros_like(image)
        if temperature:
            drawn = noise.get("image")
            shape = tuple(image.shape)
            if drawn is None or tuple(drawn.shape) not in (shape, (1, *shape[1:])):
                got = "nothing" if drawn is None else tuple(drawn.shape)
                raise InputError(explain("noise['image'] does not fit", got=got, expected=shape, mend="use draw_noise"))
            start = start + temperature * drawn.to(image)
        made = integrate(lambda x, t: self.velocity(x, t, images, target), start, self.config.sampling_steps)
        return made.clamp(-1, 1)

    def training_step(
        self,
        images: dict[Modality, Tensor],
        fov: Tensor,
        optimizers: Mapping[str, torch.optim.Optimizer],
        generator: torch.Generator,
        progress: float,
    ) -> dict[str, float]:
        """Squared error of the velocity at one drawn time a slice, all directions in turn, then one step of AdamW.

        The times of a batch are spread evenly: the k-th of B slices gets one from [k / B, (k + 1) / B), which is
        uniform for a slice drawn at random and varies less from batch to batch.

        Returns:
            "loss", the mean of "velocity_<target>" ("velocity_<source>_to_<target>" for more than two modalities),
            weighted by `background_weight` outside the fan.
        Source:
            Liu et al., ICLR 2023, equation 1; times as in Kingma et al., "Variational diffusion models", NeurIPS 2021.
        """
        optimizers["network"].zero_grad()
        weight = torch.where(fov, 1.0, self.config.background_weight)
        if not weight.any():
            raise InputError(explain("nothing of the batch is inside the fan", mend="set background_weight above 0"))
        values = {}
        for (source,), target in self.directions:
            truth = images[target]
            noise = torch.randn(truth.shape, generator=generator, device=generator.device).to(truth)
            times = self._draw_times(len(truth), generator).to(truth)
            guess = self.velocity(noisy(truth, noise, times), times, {source: images[source]}, target)
            error = (weight * (guess - (truth - noise)).square()).sum() / weight.sum()
            (error / len(self.directions)).backward()
            name = target if len(self.config.modalities) == 2 else f"{source}_to_{target}"
            values[f"velocity_{name}"] = float(error.detach())
        optimizers["network"].step()
        return {"loss": sum(values.values()) / len(values), **values}

    @staticmethod
    def _draw_times(n: int, generator: torch.Generator) -> Tensor:
        """Times of `n` slices, (n,) in [0, 1000), one from each of n equal parts."""
        within = torch.rand(n, generator=generator, device=generator.device)
        return TRAINING_TIMES * (torch.arange(n, device=within.device) + within) / n
