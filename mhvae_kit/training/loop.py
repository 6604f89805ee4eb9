"""`train`: from a config to a finished run folder, stopping and resuming anywhere on the way."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from mhvae_kit import runs
from mhvae_kit.config import TrainingConfig, digest
from mhvae_kit.data import PhantomDataset, SliceDataset, load_phantom
from mhvae_kit.errors import InputError, MissingError, explain
from mhvae_kit.files import write_json
from mhvae_kit.memory import keep_freed_memory
from mhvae_kit.networks.storage import find_model, save_model
from mhvae_kit.training.batches import batch_of_step
from mhvae_kit.training.distributed import Processes
from mhvae_kit.training.folder import (
    CHECKPOINTS,
    CONFIG,
    newest_checkpoint,
    open_folder,
    read_settings,
    save_checkpoint,
    stop_at_step_boundary,
)
from mhvae_kit.training.live import LiveCurves
from mhvae_kit.training.logs import TrainingLog
from mhvae_kit.training.schedule import first_step, missing_images, stage_at
from mhvae_kit.training.state import TrainingState, read_checkpoint, write_checkpoint
from mhvae_kit.training.step import Batch, train_step
from mhvae_kit.training.validation import validate

BEFORE_ADVERSARIAL = "before_adversarial.pt"


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
        dataset: Where the slices come from; None = the phantom of the config's preset. Validation takes the patients
            that have every image.
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
            open_folder(folder, config, TrainingConfig.from_saved)
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
    return read_settings(run_dir, TrainingConfig.from_saved)


def _load_data(config: TrainingConfig, data_dir: str | Path | None, processes: Processes) -> PhantomDataset:
    """The phantom's training and validation patients; the first process makes them, the others read."""
    cohort = config.phantom or config.preset
    options = {"splits": ("train", "validation"), "cache_dir": data_dir}
    if processes.is_first:
        dataset = load_phantom(cohort, **options)
    processes.wait()
    return dataset if processes.is_first else load_phantom(cohort, show_progress=False, **options)


def _lacking(config: TrainingConfig, dataset: PhantomDataset, split: str) -> dict[str, tuple[str, ...]]:
    """By case of a split, the images it lacks: never taken, or left out as the config says.

    Raises:
        InputError: A training case lacks an image, and the objective needs them all.
    """
    lacking = missing_images(config, dataset.case_ids(split), getattr(dataset, "absent", None))
    if lacking and split == "train" and config.objective != "mmhvae":
        case = next(iter(lacking))
        raise InputError(
            explain(
                f"objective {config.objective} needs every image of every training patient",
                got=f"{len(lacking)} that lack some, first {case} without {', '.join(lacking[case])}",
                mend="take the objective mmhvae, or fewer modalities",
            )
        )
    return lacking


class Trainer:
    """The loop over steps: batches in, logs, checkpoints and validation out."""

    def __init__(self, config: TrainingConfig, folder: Path, dataset: PhantomDataset, processes: Processes) -> None:
        self.config, self.folder, self.dataset, self.processes = config, folder, dataset, processes
        names = config.model.modalities
        self.lacking = _lacking(config, dataset, "train")
        self.slices = SliceDataset(dataset, "train", names, absent=self.lacking)
        incomplete = _lacking(dataclasses.replace(config, missing=0.0), dataset, "validation")
        complete = [case for case in dataset.case_ids("validation") if case not in incomplete]
        self.validation = SliceDataset(dataset, "validation", names, complete)
        self.share = processes.share(config.batch_size)
        self.state = TrainingState(config, processes.device)
        self.started = time.monotonic()
        resumed = newest_checkpoint(folder, processes.device)
        if resumed is not None:
            self.state.restore(resumed)
        elif config.start_from is not None:
            self.state.begin_with(find_model(config.start_from), config.start_from)

    def run(self) -> None:
        """Go through the remaining steps and close the run."""
        state, config = self.state, self.config
        log = curves = None
        values: dict[str, float] = {}
        if self.processes.is_first:
            curves = LiveCurves(self.folder, self.dataset.name)
            log = TrainingLog(self.folder, first_step=state.step, total=config.steps, log_every=config.log_every)
        try:
            with stop_at_step_boundary() as stop:
                while state.step < config.steps:
                    self._keep_before_adversarial()
                    stage = stage_at(config, state.step)
                    values = train_step(state, self._batch(), self.processes, self.folder)
                    values, stopping = self._average(values, stop.is_set())
                    if log is not None:
                        log.step(state.step, stage, values)
                        self._after_step(log)
                        curves.update()
                    if stopping:
                        self._save()
                        raise KeyboardInterrupt
        finally:
            if log is not None:
                log.close()
                curves.close()
        if self.processes.is_first:
            self._finish(values)
        self.processes.wait()

    def _batch(self) -> Batch:
        """This process's part of the step's slices, mirrored as drawn."""
        items = batch_of_step(self.slices, self.config, self.state.step, self.share, self.processes.device)
        return Batch(items["images"], list(self.share), items["sources"], items["present"])

    def _average(self, values: dict[str, float], stopping: bool) -> tuple[dict[str, float], bool]:
        """Means over the processes, and whether one of them is to stop: then all do, after the same step."""
        if self.processes.size == 1:
            return values, stopping
        stacked = torch.tensor([*values.values(), float(stopping)], device=self.processes.device)
        *means, asked = self.processes.average(stacked).tolist()
        return dict(zip(values, means, strict=True)), asked > 0

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
        if self.processes.is_first:
            save_checkpoint(self.state, self.folder, self.config.keep_checkpoints)

    def _card(self, scores: dict[str, float]) -> dict[str, Any]:
        """What is known of the weights at this moment."""
        return {
            "data": self.dataset.name,
            "data_digest": self.dataset.digest,
            "training_cases": self.dataset.case_ids("train"),
            "missing_images": {case: list(names) for case, names in self.lacking.items()},
            "steps": self.state.step,
            "seed": self.config.seed,
            "gan": self.config.gan,
            "start_from": self.config.start_from,
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
