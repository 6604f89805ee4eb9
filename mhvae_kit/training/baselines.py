"""`train_baseline`: a compared method trained on the same batches, by the same schedule, as MHVAE."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mhvae_kit import runs
from mhvae_kit.baselines.registry import make_method
from mhvae_kit.baselines.storage import save_method
from mhvae_kit.config import digest
from mhvae_kit.data import PhantomDataset, SliceDataset, load_phantom
from mhvae_kit.errors import InputError, explain
from mhvae_kit.memory import keep_freed_memory
from mhvae_kit.metrics import psnr
from mhvae_kit.training.baseline_config import BaselineConfig
from mhvae_kit.training.batches import batch_of_step
from mhvae_kit.training.distributed import Processes
from mhvae_kit.training.folder import newest_checkpoint, open_folder, save_checkpoint, stop_at_step_boundary
from mhvae_kit.training.logs import TrainingLog
from mhvae_kit.training.schedule import local_generator, warm_cosine
from mhvae_kit.training.state import CHECKPOINT_VERSION, MovingAverage, check_finite
from mhvae_kit.training.validation import VALIDATION_BATCH

STAGE = "training"  # a compared method has a single stage


def train_baseline(
    config: BaselineConfig,
    run_dir: str | Path,
    *,
    dataset: PhantomDataset | None = None,
    data_dir: str | Path | None = None,
) -> Path:
    """Train until the budget is spent and return the run folder; a run that was stopped goes on where it was.

    The folder gets config.json, metrics.csv, validation.csv, tensorboard/, checkpoints/ (the last few), model/ (the
    method with its averaged weights) and, written last, results.json.

    Args:
        config: What to train and how.
        run_dir: A new folder, or that of a run with the same config.
        dataset: Where the slices come from; None = the phantom of the config.
        data_dir: Cache folder of the phantom; None = the default.
    Raises:
        InputError: The folder belongs to a run with another config, the data do not fit the method, or torchrun
            started several processes.
        RunError: A value became NaN or infinite.
        KeyboardInterrupt: Stopped by Ctrl-C or SIGTERM, after the current step was saved.
    """
    keep_freed_memory()
    folder = Path(run_dir).resolve()
    processes = Processes()
    try:
        if processes.size > 1:
            raise InputError(
                explain("compared methods train in one process", got=f"{processes.size}", mend="start without torchrun")
            )
        open_folder(folder, config, BaselineConfig.from_saved)
        if not (folder / "results.json").exists():
            if dataset is None:
                splits = ("train", "validation")
                dataset = load_phantom(config.phantom or config.preset, splits=splits, cache_dir=data_dir)
            BaselineTrainer(config, folder, dataset, processes.device).run()
    finally:
        processes.close()
    return folder


class FloatingWeights(nn.Module):
    """A network without its integer buffers, which have no mean: batch normalisation counts its batches in one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The network's, floating-point tensors only."""
        state = self.network.state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if value.is_floating_point()}


class BaselineState:
    """Method, optimisers, averaged weights, step and time spent; made from the config and its seed."""

    def __init__(self, config: BaselineConfig, device: torch.device) -> None:
        self.config = config
        self.step = 0
        self.seconds = 0.0
        with torch.random.fork_rng(devices=[]):  # initial weights come from the config's seed alone
            torch.manual_seed(config.seed)
            self.method = make_method(config.method, config.settings).to(device)
        self.optimizers = self.method.optimizers()
        self.initial_rates = {name: [g["lr"] for g in o.param_groups] for name, o in self.optimizers.items()}
        self.floating = FloatingWeights(self.method.averaged())
        self.average = MovingAverage(self.floating, config.ema_decay)

    def averaged_weights(self) -> dict[str, Tensor]:
        """Averaged weights as a state dict of `averaged()`; what cannot be averaged is the newest."""
        return {**self.method.averaged().state_dict(), **self.average.weights}

    def set_learning_rates(self) -> float:
        """Set each optimiser's rate for the coming step; returns the share of the initial rates."""
        config = self.config
        final, warmup = config.final_learning_rate_share, config.warmup_steps
        share = warm_cosine(1.0, final, warmup, config.steps, self.step)
        for name, optimizer in self.optimizers.items():
            for group, initial in zip(optimizer.param_groups, self.initial_rates[name], strict=True):
                group["lr"] = share * initial
        return share

    def to_dict(self) -> dict[str, Any]:
        """Tensors and JSON types only, so that it loads with weights_only=True."""
        return {
            "version": CHECKPOINT_VERSION,
            "config": self.config.to_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "method": self.method.state_dict(),
            "average": self.average.weights,
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over a checkpoint's content."""
        self.step, self.seconds = saved["step"], saved["seconds"]
        self.method.load_state_dict(saved["method"])
        device = next(self.method.parameters()).device
        self.average.weights = {k: v.to(device) for k, v in saved["average"].items()}
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][name])


class BaselineTrainer:
    """The loop over steps: batches in, logs, checkpoints and validation out."""

    def __init__(self, config: BaselineConfig, folder: Path, dataset: PhantomDataset, device: torch.device) -> None:
        self.config, self.folder, self.dataset, self.device = config, folder, dataset, device
        size, shape = tuple(config.settings.image_size), tuple(dataset.shape[:2])
        if size != shape:
            raise InputError(
                explain(f"{config.method} is made for other slices", got=f"image_size {size}", expected=f"{shape}")
            )
        self.slices = SliceDataset(dataset, "train", config.settings.modalities)
        self.validation = SliceDataset(dataset, "validation", config.settings.modalities)
        self.state = BaselineState(config, device)
        resumed = newest_checkpoint(folder, device)
        if resumed is not None:
            self.state.restore(resumed)
        self.before_s, self.started = self.state.seconds, time.monotonic()
        self.last_batch: dict[str, Any] = {}

    def run(self) -> None:
        """Go through the remaining steps and close the run."""
        state, config = self.state, self.config
        values: dict[str, float] = {}
        options = {"total": config.steps, "log_every": config.log_every, "name": config.method}
        log = TrainingLog(self.folder, first_step=state.step, **options)
        try:
            with stop_at_step_boundary() as stop:
                while state.step < config.steps:
                    values = self._step()
                    log.step(state.step, STAGE, values)
                    if state.step % config.validate_every == 0 and state.step < config.steps:
                        log.validate(state.step, self._validate())
                    if state.step % config.checkpoint_every == 0 or state.step == config.steps or stop.is_set():
                        self._save()
                    if stop.is_set():
                        raise KeyboardInterrupt
            scores = self._validate()
            log.validate(config.steps, scores)
        finally:
            log.close()
        self._finish(scores, values)

    def _step(self) -> dict[str, float]:
        """One step of the method on the step's slices; returns the numbers to log."""
        state, config = self.state, self.config
        share = state.set_learning_rates()
        batch = batch_of_step(self.slices, config, state.step, range(config.batch_size), self.device)
        generator = local_generator(config.seed, "step", state.step, device=self.device)
        with self._own_dropout():
            values = state.method.training_step(
                batch["images"], batch["fov"], state.optimizers, generator, state.step / config.steps
            )
        self.last_batch = {"images": batch["images"], "sources": [list(source) for source in batch["sources"]]}
        self._check({name: torch.tensor(value) for name, value in values.items()})
        state.average.update(state.floating, state.step)
        state.step += 1
        return {**values, "learning_rate_share": share}

    def _check(self, values: dict[str, Tensor]) -> None:
        """Stop when a value is not finite, naming method, step and value."""
        check_finite(values, self.last_batch, self.folder, f"{STAGE} of {self.config.method}", self.state.step)

    @contextmanager
    def _own_dropout(self) -> Iterator[None]:
        """Let torch's global generator, which dropout draws from, depend on seed and step alone."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(local_generator(self.config.seed, "dropout", self.state.step).initial_seed())
            yield

    def _validate(self) -> dict[str, float]:
        """PSNR in dB inside the fan at temperature 0 with the averaged weights, by direction and as their mean."""
        method, count = self.state.method, min(self.config.validation_slices, len(self.validation))
        chosen = [i * len(self.validation) // count for i in range(count)]
        sums = {f"psnr_{'+'.join(observed)}_to_{target}_db": 0.0 for observed, target in method.directions}
        with self._averaged(), torch.no_grad():
            for start in range(0, count, VALIDATION_BATCH):
                items = self.validation.batch(chosen[start : start + VALIDATION_BATCH])
                encoding = method.encode({m: x.to(self.device) for m, x in items["images"].items()})
                for name, (observed, target) in zip(sums, method.directions, strict=True):
                    made = method.decode(encoding, observed, targets=[target]).images[target].cpu().clamp(-1, 1)
                    scores = psnr(made, items["images"][target], data_range=2.0, mask=items["fov"])
                    sums[name] += float(scores.sum())
        means = {name: value / count for name, value in sums.items()}
        return {**means, "psnr_mean_db": sum(means.values()) / len(means)}

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the averaged weights into the method, in evaluation mode, and take them out again."""
        part = self.state.method.averaged()
        current = {k: v.clone() for k, v in part.state_dict().items()}
        part.load_state_dict(self.state.averaged_weights())
        self.state.method.eval()
        try:
            yield
        finally:
            part.load_state_dict(current)
            self.state.method.train()

    def _save(self) -> None:
        """Write a checkpoint, unless the last step left weights that are not finite."""
        self._check(self.state.floating.state_dict())
        self.state.seconds = self.before_s + time.monotonic() - self.started
        save_checkpoint(self.state, self.folder, self.config.keep_checkpoints)

    def _finish(self, scores: dict[str, float], last_values: dict[str, float]) -> None:
        """Write the method, then results.json."""
        state, config = self.state, self.config
        card = {
            "data": self.dataset.name,
            "data_digest": self.dataset.digest,
            "training_cases": self.dataset.case_ids("train"),
            "steps": state.step,
            "batch_size": config.batch_size,
            "seed": config.seed,
            "config_digest": digest(config),
            "validation": scores,
            **state.method.card,
        }
        save_method(state.method, self.folder / "model", card, state.averaged_weights())
        runs.write_results(
            self.folder,
            notebook="train",
            parameters=config.to_dict(),
            preset=config.preset,
            seed=config.seed,
            dataset={"name": self.dataset.name, "digest": self.dataset.digest},
            metrics={"steps": state.step, **scores, **last_values},
            seconds=self.before_s + time.monotonic() - self.started,
        )
