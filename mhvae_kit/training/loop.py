"""`train`: from a config to a finished run folder, stopping and resuming anywhere on the way."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mhvae_kit import runs
from mhvae_kit.config import TrainingConfig, digest
from mhvae_kit.data import PhantomDataset, SliceDataset, load_phantom
from mhvae_kit.errors import DataError, InputError, MissingError, explain
from mhvae_kit.files import write_json
from mhvae_kit.memory import keep_freed_memory
from mhvae_kit.networks.storage import save_model
from mhvae_kit.training.distributed import Processes
from mhvae_kit.training.logs import TrainingLog
from mhvae_kit.training.schedule import first_step, flips_of_step, slices_of_step, stage_at
from mhvae_kit.training.state import TrainingState, read_checkpoint, write_checkpoint
from mhvae_kit.training.step import Batch, train_step
from mhvae_kit.training.validation import validate

CHECKPOINTS = "checkpoints"
BEFORE_ADVERSARIAL = "before_adversarial.pt"
CONFIG = "config.json"


def train(
    config: TrainingConfig,
    run_dir: str | Path,
    *,
    dataset: PhantomDataset | None = None,
    data_dir: str | Path | None = None,
) -> Path:
    """Train until the budget is spent and return the run folder; a run that was stopped goes on where it was.

    The folder gets config.json, metrics.csv, validation.csv, tensorboard/, checkpoints/ (the last few, the one
    before the adversarial stage), best/ (by validation), model/ (averaged weights of the last step) and, written
    last, results.json. Started by torchrun, several processes share each batch and the first one writes.

    Args:
        config: What to train and how.
        run_dir: A new folder, or that of a run with the same config.
        dataset: Where the slices come from; None = the phantom of the config's preset.
        data_dir: Cache folder of the phantom; None = the default.
    Raises:
        InputError: The folder belongs to a run with another config, or batch and processes do not fit.
        RunError: A value became NaN or infinite, or too many steps were refused by the gradient guard.
        KeyboardInterrupt: Stopped by Ctrl-C or SIGTERM, after the current step was saved.
    """
    keep_freed_memory()
    folder = Path(run_dir).resolve()
    processes = Processes()
    try:
        processes.share(config.batch_size)
        if processes.is_first:
            _open_folder(folder, config)
        processes.wait()
        if (folder / "results.json").exists():
            return folder
        if dataset is None:
            dataset = _load_data(config, data_dir, processes)
        Trainer(config, folder, dataset, processes).run()
    finally:
        processes.close()
    return folder


def branch_without_gan(run_dir: str | Path, new_dir: str | Path) -> Path:
    """Prepare a run that continues another one from before its adversarial stage, with the term left out.

    Both then have the same number of steps, and the same first part bit for bit: they differ by that term alone.
    Call `train` with the returned folder's config to run it.

    Raises:
        MissingError: The run has not reached that point.
        InputError: The run was without GAN, or the new folder holds a run already.
    """
    source, target = Path(run_dir), Path(new_dir)
    checkpoint = source / CHECKPOINTS / BEFORE_ADVERSARIAL
    config = read_config(source)
    if not config.gan:
        raise InputError(explain(f"{source} was trained without GAN", mend="branch from a run with gan=true"))
    if (target / CONFIG).exists():
        raise InputError(
            explain(f"{target} holds a run already", mend="call train with its config, or choose another folder")
        )
    if not checkpoint.exists():
        raise MissingError(
            explain(f"{checkpoint} is not there", mend="train the run beyond its second stage before branching")
        )
    saved = read_checkpoint(checkpoint, torch.device("cpu"))
    (target / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    changed = config.to_dict() | {"gan": False}
    state = TrainingState(TrainingConfig.from_saved(changed), torch.device("cpu"))
    state.restore(saved)
    write_checkpoint(state, target / CHECKPOINTS / f"step_{state.step:06d}.pt")
    for name in ("metrics.csv", "validation.csv"):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    write_json(target / CONFIG, changed)
    return target


def read_config(run_dir: str | Path) -> TrainingConfig:
    """The config of a training run's folder."""
    path = Path(run_dir) / CONFIG
    if not path.exists():
        raise MissingError(explain(f"no training run in {run_dir}: {CONFIG} is missing"))
    return TrainingConfig.from_saved(json.loads(path.read_text(encoding="utf-8")))


def _open_folder(folder: Path, config: TrainingConfig) -> None:
    """Make the run folder, or check that it belongs to the same config."""
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    if (folder / CONFIG).exists():
        before = read_config(folder)
        if before != config:
            old, new = before.to_dict(), config.to_dict()
            changed = sorted(k for k in new if old.get(k) != new[k])
            raise InputError(
                explain(
                    f"{folder} belongs to a run with other settings",
                    got=", ".join(f"{k}={new[k]}" for k in changed),
                    expected=", ".join(f"{k}={old.get(k)}" for k in changed),
                    mend="choose another run folder or the same settings",
                )
            )
    else:
        write_json(folder / CONFIG, config.to_dict())


def _load_data(config: TrainingConfig, data_dir: str | Path | None, processes: Processes) -> PhantomDataset:
    """The phantom's training and validation patients; the first process makes them, the others read."""
    options = {"splits": ("train", "validation"), "cache_dir": data_dir}
    if processes.is_first:
        dataset = load_phantom(config.preset, **options)
    processes.wait()
    return dataset if processes.is_first else load_phantom(config.preset, show_progress=False, **options)


class Trainer:
    """The loop over steps: batches in, logs, checkpoints and validation out."""

    def __init__(self, config: TrainingConfig, folder: Path, dataset: PhantomDataset, processes: Processes) -> None:
        self.config, self.folder, self.dataset, self.processes = config, folder, dataset, processes
        self.slices = SliceDataset(dataset, "train", config.model.modalities)
        self.validation = SliceDataset(dataset, "validation", config.model.modalities)
        self.share = processes.share(config.batch_size)
        self.state = TrainingState(config, processes.device)
        self.started = time.monotonic()
        resumed = newest_checkpoint(folder, processes.device)
        if resumed is not None:
            self.state.restore(resumed)

    def run(self) -> None:
        """Go through the remaining steps and close the run."""
        state, config = self.state, self.config
        log = None
        values: dict[str, float] = {}
        if self.processes.is_first:
            log = TrainingLog(self.folder, first_step=state.step, total=config.steps, log_every=config.log_every)
        try:
            with stop_at_step_boundary() as stop:
                while state.step < config.steps:
                    self._keep_before_adversarial()
                    stage = stage_at(config, state.step)
                    values = train_step(state, self._batch(), self.processes, self.folder)
                    values = self._average(values)
                    if log is not None:
                        log.step(state.step, stage, values)
                        self._after_step(log)
                    if stop.is_set():
                        self._save()
                        raise KeyboardInterrupt
        finally:
            if log is not None:
                log.close()
        if self.processes.is_first:
            self._finish(values)
        self.processes.wait()

    def _batch(self) -> Batch:
        """This process's part of the step's slices, mirrored as drawn."""
        indices = slices_of_step(self.config, self.state.step, len(self.slices))
        flips = flips_of_step(self.config, self.state.step)
        items = self.slices.batch([indices[p] for p in self.share])
        device = self.processes.device
        mirrored = torch.tensor([flips[p] for p in self.share])[:, None, None, None]
        images = {m: torch.where(mirrored, x.flip(-1), x).to(device) for m, x in items["images"].items()}
        sources = [(case, int(k)) for case, k in zip(items["case"], items["slice"], strict=True)]
        return Batch(images, list(self.share), sources)

    def _average(self, values: dict[str, float]) -> dict[str, float]:
        stacked = self.processes.average(torch.tensor(list(values.values()), device=self.processes.device))
        return dict(zip(values, stacked.tolist(), strict=True)) if self.processes.size > 1 else values

    def _keep_before_adversarial(self) -> None:
        """Keep the state in which GAN and no-GAN runs are still the same."""
        path = self.folder / CHECKPOINTS / BEFORE_ADVERSARIAL
        begin = first_step(self.config, self.config.discriminator_from)
        if self.config.gan and self.state.step == begin and self.processes.is_first and not path.exists():
            write_checkpoint(self.state, path)

    def _after_step(self, log: TrainingLog) -> None:
        state, config = self.state, self.config
        last = state.step == config.steps
        if state.step % config.validate_every == 0 or last:
            scores = validate(state, self.validation, config.validation_slices)
            log.validate(state.step, scores)
            if scores["psnr_mean_db"] > state.best_psnr_db:
                state.best_psnr_db = scores["psnr_mean_db"]
                save_model(state.model, self.folder / "best", self._card(scores), state.average.weights)
        if state.step % config.checkpoint_every == 0 or last:
            self._save()

    def _save(self) -> None:
        """Write a checkpoint and drop the oldest."""
        if not self.processes.is_first:
            return
        folder = self.folder / CHECKPOINTS
        write_checkpoint(self.state, folder / f"step_{self.state.step:06d}.pt")
        for old in sorted(folder.glob("step_*.pt"))[: -self.config.keep_checkpoints]:
            old.unlink()

    def _card(self, scores: dict[str, float]) -> dict[str, Any]:
        """What is known of the weights at this moment."""
        return {
            "data": self.dataset.name,
            "data_digest": self.dataset.digest,
            "training_cases": self.dataset.case_ids("train"),
            "steps": self.state.step,
            "seed": self.config.seed,
            "gan": self.config.gan,
            "config_digest": digest(self.config),
            "validation": scores,
        }

    def _finish(self, last_values: dict[str, float]) -> None:
        """Write the model, then results.json."""
        state, config = self.state, self.config
        scores = validate(state, self.validation, config.validation_slices)
        save_model(state.model, self.folder / "model", self._card(scores), state.average.weights)
        runs.write_results(
            self.folder,
            notebook="train",
            parameters=config.to_dict(),
            preset=config.preset,
            seed=config.seed,
            dataset={"name": self.dataset.name, "digest": self.dataset.digest},
            metrics={"steps": state.step, "skipped_steps": state.guard.skipped, **scores, **last_values},
            seconds=time.monotonic() - self.started,
        )


def newest_checkpoint(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The newest checkpoint that can be read, None when there is none; a damaged one is named and passed over.

    Raises:
        DataError: There are checkpoints, but none can be read.
    """
    problem: DataError | None = None
    for path in sorted((folder / CHECKPOINTS).glob("step_*.pt"), reverse=True):
        try:
            return read_checkpoint(path, device)
        except DataError as error:
            print(f"{error} Going on from the one before.", file=sys.stderr)
            problem = error
    if problem is not None:
        raise problem
    return None


@contextlib.contextmanager
def stop_at_step_boundary() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a wish to stop after the current step; a second one stops at once."""
    wish = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return

    def handle(number: int, frame: Any) -> None:
        if wish.is_set():
            raise KeyboardInterrupt
        wish.set()

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
