"""The segmentation network of the degradation study and its training, the same for every set of training images.

Network, loss and augmentation are MONAI's. Nothing here knows where the images come from: a route or a defect is a set
of slices, and the scores that differ between two of them differ by the slices alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.nn import functional

from mhvae_kit.errors import InputError, RunError, explain
from mhvae_kit.progress import progress

BACKGROUND = -1.0


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """Settings of the network and its training.

    Attributes:
        channels: Features of each level of the U-Net; each level halves the image.
        steps: Training steps.
        batch_size: Slices a step.
        learning_rate: Largest rate of AdamW; one cycle up and down over the steps.
        rotation_rad, scale, shift_px: Largest augmentation: turn about the slice's centre, relative size, shift.
        gain: Largest change of the grey level, of the range -1 to 1; the operator's gain is never known.
        bfloat16: Whether convolutions run in bfloat16 while it is trained: a third less time on a CPU that has it.
    """

    channels: tuple[int, ...] = (16, 32, 64, 128, 128)
    steps: int = 600
    batch_size: int = 16
    learning_rate: float = 5e-3
    rotation_rad: float = 0.35
    scale: float = 0.15
    shift_px: float = 5.0
    gain: float = 0.15
    bfloat16: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that no training could use."""
        if self.steps < 1 or self.batch_size < 1 or not self.learning_rate > 0 or len(self.channels) < 2:
            got = f"steps={self.steps}, batch_size={self.batch_size}, learning_rate={self.learning_rate}"
            expected = "positive numbers, and at least two levels of channels"
            raise InputError(explain("the segmentation settings are not usable", got=got, expected=expected))


@dataclass(frozen=True)
class SegmentationSlices:
    """Slices to train on.

    Args:
        images: (N, H, W) float32 in [-1, 1], exactly -1 outside the fan.
        labels: (N, H, W) bool, the tumour.
        fov: (N, H, W) bool, the fan.
        cases: Case of each slice, (N,).
    """

    images: np.ndarray
    labels: np.ndarray
    fov: np.ndarray
    cases: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together or cannot be learnt from."""
        shapes = {a.shape for a in (self.images, self.labels, self.fov)}
        if len(shapes) != 1 or self.images.ndim != 3 or len(self.cases) != len(self.images):
            got = (
                f"images {self.images.shape}, labels {self.labels.shape}, fov {self.fov.shape}, {len(self.cases)} cases"
            )
            raise InputError(explain("slices, labels and fans differ", got=got, expected="(N, H, W) each, N cases"))
        if not np.isfinite(self.images).all() or np.abs(self.images).max(initial=0.0) > 1.0:
            raise InputError(explain("the training images are not finite or leave [-1, 1]"))
        if not self.labels.any():
            raise InputError(explain("no slice has a tumour", expected="labels with at least one pixel"))

    def __len__(self) -> int:
        return len(self.images)


def build_network(config: SegmentationConfig) -> nn.Module:
    """The U-Net: one channel in, one logit a pixel out; image sides must be multiples of 2 ** (levels - 1).

    Source:
        Ronneberger et al., MICCAI 2015; implementation of MONAI (monai.networks.nets.UNet), instance norm.
    """
    return UNet(
        2, 1, 1, channels=config.channels, strides=(2,) * (len(config.channels) - 1), norm="instance", act="RELU"
    )


def augmented(
    images: Tensor, labels: Tensor, config: SegmentationConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A batch changed at random, each slice by draws of its own, in one resampling for all.

    Args:
        images: (B, 1, H, W) in [-1, 1], -1 outside the fan, which stays so.
        labels: (B, 1, H, W), 0 or 1.
        config: How far.
        rng: Source of the draws.
    Returns:
        Images in [-1, 1] and labels of 0 or 1, mirrored half of the time, turned, resized, shifted and of other gain.
    """
    n, width = len(images), images.shape[-1]
    turn = rng.uniform(-config.rotation_rad, config.rotation_rad, n)
    size = rng.uniform(1 - config.scale, 1 + config.scale, n)
    mirror = rng.choice((-1.0, 1.0), n)
    shift = rng.uniform(-1, 1, (n, 2)) * 2 * config.shift_px / width
    matrix = np.stack([size * np.cos(turn) * mirror, -size * np.sin(turn), shift[:, 0]], axis=1)
    second = np.stack([size * np.sin(turn) * mirror, size * np.cos(turn), shift[:, 1]], axis=1)
    theta = torch.from_numpy(np.stack([matrix, second], axis=1).astype(np.float32)).to(images.device)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    gain = torch.from_numpy(rng.uniform(-config.gain, config.gain, (n, 1, 1, 1)).astype(np.float32)).to(images.device)
    # Above 0 in the fan and 0 outside, so that what is read beyond the image or the fan is background.
    level = torch.where(images > BACKGROUND, (images - BACKGROUND + gain).clamp(1e-3, 2.0), 0.0)
    moved = functional.grid_sample(level, grid, align_corners=False)
    return moved + BACKGROUND, functional.grid_sample(labels, grid, mode="nearest", align_corners=False)


def train_segmenter(
    slices: SegmentationSlices,
    config: SegmentationConfig,
    seed: int,
    *,
    device: str | torch.device = "cpu",
    show_progress: bool = False,
) -> nn.Module:
    """Train the network on a set of slices; the same slices, settings and seed give the same network on a CPU.

    Args:
        slices: What it learns from.
        config: Settings.
        seed: Of the initial weights, the order of the slices and the augmentation.
        device: Where it is trained.
        show_progress: Whether a bar is shown.
    Returns:
        The network in evaluation mode.
    Raises:
        InputError: Slices whose sides the network cannot halve often enough.
        RunError: The loss is not finite.
    """
    multiple = 2 ** (len(config.channels) - 1)
    if any(side % multiple for side in slices.images.shape[1:]):
        raise InputError(
            explain(
                "the slices do not fit the segmentation network",
                got="{} x {} pixels".format(*slices.images.shape[1:]),
                expected=f"sides that are multiples of {multiple}",
            )
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(config).to(device)
    rng = np.random.default_rng(seed)
    loss_of = DiceCELoss(sigmoid=True, batch=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=1e-4)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.steps + 1)
    network.train()
    with progress(total=config.steps, desc="segmentation", unit="step", disable=not show_progress) as bar:
        for step in range(config.steps):
            chosen = rng.integers(0, len(slices), config.batch_size)
            images = torch.from_numpy(slices.images[chosen][:, None]).to(device)
            labels = torch.from_numpy(slices.labels[chosen][:, None].astype(np.float32)).to(device)
            images, labels = augmented(images, labels, config, rng)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=config.bfloat16):
                logits = network(images)
            loss = loss_of(logits.float(), labels)
            if not torch.isfinite(loss):
                raise RunError(explain(f"the segmentation loss is not finite at step {step}", got=float(loss.detach())))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            cycle.step()
            bar.update(1)
    return network.eval()
