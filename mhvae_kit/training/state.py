"""Everything a training run carries from one step to the next, and how it is written to disk and read back."""

from __future__ import annotations

import dataclasses
import statistics
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mhvae_kit.config import TrainingConfig
from mhvae_kit.errors import DataError, InputError, RunError, explain
from mhvae_kit.files import atomic_path
from mhvae_kit.networks.backbone import MultimodalVAE
from mhvae_kit.networks.blocks import checkpoint_gradients
from mhvae_kit.networks.discriminator import PatchDiscriminator
from mhvae_kit.networks.storage import make_model

CHECKPOINT_VERSION = 1
GUARD_WINDOW = 100
GUARD_MINIMUM = 20  # gradient norms seen before the guard judges


class MovingAverage:
    """Exponential moving average of a model's weights, with a short memory in the first steps."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after a step (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = model.state_dict()
        averaged = [self.weights[name] for name in current]
        get_ema_multi_avg_fn(decay)(averaged, list(current.values()), step)  # one call, few launches on a GPU


class GradientGuard:
    """Skips steps whose gradient norm is far above the running median, and counts them.

    Skipped norms enter the median too, so that a lasting change of scale is accepted after a while.
    """

    def __init__(self, factor: float, max_bad_steps: int) -> None:
        self.factor = factor
        self.max_bad_steps = max_bad_steps
        self.norms: deque[float] = deque(maxlen=GUARD_WINDOW)
        self.skipped = 0
        self.skipped_in_a_row = 0

    def accepts(self, norm: float) -> bool:
        """Whether to apply a step of this gradient norm.

        Raises:
            RunError: More than max_bad_steps in a row were refused.
        """
        enough = len(self.norms) >= GUARD_MINIMUM
        median = statistics.median(self.norms) if enough else norm
        self.norms.append(norm)
        if norm <= self.factor * median:
            self.skipped_in_a_row = 0
            return True
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.max_bad_steps:
            raise RunError(
                explain(
                    f"{self.skipped_in_a_row} steps in a row had a gradient norm over {self.factor} times the median",
                    got=f"{norm:.4g} against {median:.4g}",
                    mend="lower learning_rate or adversarial_weight, or raise guard_factor",
                )
            )
        return False

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {"norms": list(self.norms), "skipped": self.skipped, "in_a_row": self.skipped_in_a_row}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """The inverse of `to_dict`."""
        self.norms = deque(saved["norms"], maxlen=GUARD_WINDOW)
        self.skipped, self.skipped_in_a_row = saved["skipped"], saved["in_a_row"]


class TrainingState:
    """Model, critics, their optimisers, averaged weights, guard and step; made from the config and its seed."""

    def __init__(self, config: TrainingConfig, device: torch.device) -> None:
        self.config = config
        self.step = 0
        self.best_psnr_db = float("-inf")
        with torch.random.fork_rng(devices=[]):  # initial weights come from the config's seed alone
            torch.manual_seed(config.seed)
            self.model = make_model(config.model).to(device)
            size, width, depth = config.model.image_size, config.discriminator_channels, config.discriminator_layers
            names = config.model.modalities if config.gan else ()
            self.critics = nn.ModuleDict({m: PatchDiscriminator(size, width, depth) for m in names}).to(device)
        checkpoint_gradients(self.model, config.checkpoint_gradients)
        self.optimizer = torch.optim.Adamax(self.model.parameters(), lr=config.learning_rate)
        rate = config.discriminator_learning_rate
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=rate) if config.gan else None
        self.average = MovingAverage(self.model, config.ema_decay)
        self.guard = GradientGuard(config.guard_factor, config.max_bad_steps)

    def begin_with(self, model: MultimodalVAE, source: str) -> None:
        """Take over another model's weights as the initial ones.

        Args:
            model: The other model.
            source: Where it comes from, for the message.
        Raises:
            InputError: It has another architecture than the config; the message names what differs.
        """
        mine, theirs = dataclasses.asdict(self.config.model), dataclasses.asdict(model.config)
        changed = sorted(name for name in mine if mine[name] != theirs[name])
        if changed:
            raise InputError(
                explain(
                    f"the model in {source} cannot be the start of this training",
                    got=", ".join(f"{name}={theirs[name]}" for name in changed),
                    expected=", ".join(f"{name}={mine[name]}" for name in changed),
                    mend="train with the settings of that model, or leave start_from out",
                )
            )
        device = next(self.model.parameters()).device
        self.model.load_state_dict({k: v.to(device) for k, v in model.state_dict().items()})
        self.average = MovingAverage(self.model, self.config.ema_decay)

    def to_dict(self) -> dict[str, Any]:
        """Tensors and JSON types only, so that it loads with weights_only=True."""
        return {
            "version": CHECKPOINT_VERSION,
            "config": self.config.to_dict(),
            "step": self.step,
            "best_psnr_db": self.best_psnr_db,
            "model": self.model.state_dict(),
            "average": self.average.weights,
            "optimizer": self.optimizer.state_dict(),
            "critics": self.critics.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict() if self.critic_optimizer else None,
            "guard": self.guard.to_dict(),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over a checkpoint's content; critics only where this run has some and the checkpoint too.

        Raises:
            DataError: The checkpoint is that of another architecture.
        """
        found, expected = saved["config"]["model"].get("architecture", "mhvae"), self.config.model.architecture
        if found != expected:  # checkpoints older than this setting are of an MHVAE
            raise DataError(
                explain(
                    "the checkpoint is that of another architecture",
                    got=found,
                    expected=expected,
                    mend="resume with the run's own config, or train anew in another folder",
                )
            )
        self.step, self.best_psnr_db = saved["step"], saved["best_psnr_db"]
        self.model.load_state_dict(saved["model"])
        device = next(self.model.parameters()).device
        self.average.weights = {k: v.to(device) for k, v in saved["average"].items()}
        self.optimizer.load_state_dict(saved["optimizer"])
        self.guard.restore(saved["guard"])
        if self.critic_optimizer and saved["critic_optimizer"]:
            self.critics.load_state_dict(saved["critics"])
            self.critic_optimizer.load_state_dict(saved["critic_optimizer"])


def write_checkpoint(state: TrainingState, path: Path) -> None:
    """Write a checkpoint, whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save(state.to_dict(), temporary)


def read_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint; no code in it is ever run.

    Raises:
        DataError: The file is damaged, holds other things than tensors and plain values, or has another version.
    """
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        version = saved["version"]
    except OSError:
        raise
    except Exception as error:  # a damaged file makes the unpickler fail in any way; all of them mean the same
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            explain(f"checkpoint {path} cannot be read ({first_line})", mend="delete it and resume")
        ) from error
    if version != CHECKPOINT_VERSION:
        raise DataError(
            explain(
                f"checkpoint {path} has another version", got=version, expected=CHECKPOINT_VERSION, mend="train anew"
            )
        )
    return saved


def check_finite(values: Mapping[str, Tensor], batch: Mapping[str, Any], folder: Path, stage: str, step: int) -> None:
    """Stop when a value is NaN or infinite, with the batch saved and the stage, step and tensor named.

    Raises:
        RunError: Names the first tensor that is not finite and the file that holds the batch.
    """
    bad = [name for name, value in values.items() if not bool(torch.isfinite(value).all())]
    if not bad:
        return
    path = folder / f"bad_batch_step_{step:06d}.pt"
    with atomic_path(path) as temporary:
        torch.save({"stage": stage, "step": step, "tensors": bad, "batch": dict(batch)}, temporary)
    raise RunError(
        explain(
            f"{bad[0]} is not finite in stage {stage!r}, step {step}",
            got=", ".join(bad),
            mend=f"look at the batch saved in {path}; lower learning_rate, or use float32",
        )
    )
