"""The training of a row, and its trained model back from the run folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from mhvae_kit.baselines.storage import METHOD_FILE, load_method
from mhvae_kit.config import TrainingConfig
from mhvae_kit.errors import InputError, MissingError, explain
from mhvae_kit.files import write_json
from mhvae_kit.networks.storage import load_model
from mhvae_kit.runs import read_results
from mhvae_kit.table1.rows import Row, find_row
from mhvae_kit.training import branch_without_gan, train
from mhvae_kit.training.baselines import BaselineConfig, train_baseline
from mhvae_kit.training.folder import CHECKPOINTS, CONFIG
from mhvae_kit.training.loop import read_config
from mhvae_kit.training.schedule import first_step

TRAINING = "training"
BRANCH = "branch.json"


def training_config(row: Row, preset: str, **options: Any) -> TrainingConfig | BaselineConfig:
    """The settings that a row is trained with.

    Args:
        row: Any but the references.
        preset: smoke, demo or paper.
        options: seed, steps, batch_size, phantom.
    """
    if row.kind == "method":
        return BaselineConfig.from_preset(row.name, preset, **row.settings, **options)
    return TrainingConfig.from_preset(preset, **row.settings, **options)


def train_row(
    row: Row, config: TrainingConfig | BaselineConfig, folder: Path, *, source: Path | None = None, **data: Any
) -> dict[str, Any]:
    """Train a row in `training/` of its run folder; what was trained before is not trained again.

    Args:
        row: Any but the references.
        config: From `training_config`.
        folder: The run folder of the row.
        source: For a branch, the run folder of the row it continues.
        data: dataset, data_dir, as for `training.train`.
    Returns:
        "seconds" of the training, of which "shared_seconds" were spent in the row it continues.
    Raises:
        MissingError: The row to continue is not trained.
        InputError: `training/` or the row to continue has other settings.
    """
    training = folder / TRAINING
    if isinstance(config, BaselineConfig):
        train_baseline(config, training, **data)
    else:
        if row.kind == "branch" and source is not None:
            _branch(row, config, source, training)
        train(config, training, **data)
    seconds = float(read_results(training)["seconds"])
    shared = json.loads((training / BRANCH).read_text())["shared_seconds"] if (training / BRANCH).exists() else 0.0
    return {"seconds": round(seconds + shared, 3), "shared_seconds": round(shared, 3)}


def _branch(row: Row, config: TrainingConfig, source: Path, training: Path) -> None:
    """Take over the part of another row's training that both have in common, unless that was done before."""
    if (training / CONFIG).exists():
        return
    check_trained(source, row.after or "")
    whole = read_config(source / TRAINING)
    if dataclasses.replace(whole, gan=False) != config:
        old, new = whole.to_dict(), config.to_dict()
        changed = [name for name in new if name != "gan" and old.get(name) != new[name]]
        raise InputError(
            explain(
                f"row {row.name} cannot continue {source.name}, which was trained with other settings",
                got=", ".join(f"{name}={old.get(name)}" for name in changed),
                expected=", ".join(f"{name}={new[name]}" for name in changed),
                mend=f"train {row.after} with the same options",
            )
        )
    share = first_step(whole, whole.discriminator_from) / whole.steps
    seconds = float(read_results(source / TRAINING)["seconds"])
    write_json(training / BRANCH, {"source": source.name, "shared_seconds": share * seconds})
    branch_without_gan(source / TRAINING, training)


def check_trained(folder: Path, row: str) -> None:
    """Refuse a row whose training is not there or has not come to its end.

    Raises:
        MissingError: Says how far it has come and how to go on.
    """
    training = folder / TRAINING
    if (training / "results.json").is_file() and (training / "model").is_dir():
        return
    mend = f"train it with `mhvae table1 {row}`, which goes on where it was"
    saved = sorted((training / CHECKPOINTS).glob("step_*.pt"))
    if saved:
        raise MissingError(
            explain(f"row {row} in {folder} is half trained", got=f"{int(saved[-1].stem[5:])} steps", mend=mend)
        )
    raise MissingError(explain(f"row {row} is not trained: there is no checkpoint in {training}", mend=mend))


def load_row(folder: str | Path, row: str) -> Any:
    """The trained model of a row, in evaluation mode: a `Translator` or an MHVAE, which are used alike.

    Args:
        folder: The run folder of the row.
        row: Its name, for messages.
    Raises:
        MissingError: The row is not trained to its end.
        InputError: There is no such row, or nothing is trained for it.
    """
    if find_row(row).kind == "references":
        raise InputError(explain(f"row {row} has no model", expected="a row that is trained"))
    folder = Path(folder)
    check_trained(folder, row)
    model = folder / TRAINING / "model"
    return load_method(model) if (model / METHOD_FILE).is_file() else load_model(model)
