"""What the longer commands do, callable without a command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mhvae_kit.config import MHVAEConfig
from mhvae_kit.data import PreparedDataset, load_phantom, load_prepared
from mhvae_kit.errors import InputError, explain
from mhvae_kit.evaluation import evaluate, format_table, summary
from mhvae_kit.files import write_text
from mhvae_kit.launch import check_devices, run_together
from mhvae_kit.networks.storage import find_model
from mhvae_kit.recording import recording
from mhvae_kit.runs import check_run_id, default_root, run_folder, run_status
from mhvae_kit.training import TrainingConfig, train
from mhvae_kit.training.distributed import share_of


def train_in_run_folder(
    config: TrainingConfig,
    *,
    run_id: str | None = None,
    root: str | Path | None = None,
    data_dir: str | Path | None = None,
    prepared: str | Path | None = None,
) -> Path:
    """Train in a run folder, recording how it ends; a stopped run of the same id goes on, a finished one is left.

    Args:
        config: What to train.
        run_id: Name of the run folder; None = a new one. Several processes under torchrun must be given one.
        root: Folder of all runs; None = `mhvae_kit.runs.default_root()`.
        data_dir: Cache folder of the phantom; None = the default.
        prepared: Folder of a prepared dataset to train on; None = the phantom.
    Returns:
        The run folder.
    Raises:
        InputError: No run id under torchrun.
    """
    first, several = os.environ.get("RANK", "0") == "0", int(os.environ.get("WORLD_SIZE", "1")) > 1
    if run_id is None and several:
        raise InputError(explain("several processes need one run folder", mend="give torchrun's command a --run-id"))
    if run_id is not None:
        folder = Path(root or default_root()).expanduser().resolve() / check_run_id(run_id)
        if run_status(folder) == "done":  # every process sees it, so none waits for the others
            return folder
        if not first:
            return train(config, folder, dataset=_patients(config, prepared), data_dir=data_dir)
    folder = run_folder(root, "train", run_id)
    with recording(folder, notebook="train", preset=config.preset, seed=config.seed, parameters=config.to_dict()):
        return train(config, folder, dataset=_patients(config, prepared), data_dir=data_dir)


def train_on_devices(
    config: TrainingConfig, arguments: Sequence[str], devices: int, *, run_id: str | None, root: str | Path | None
) -> Path:
    """`mhvae train` in several processes of this machine, one a GPU where there are GPUs.

    Args:
        config: What to train; looked at before anything is started.
        arguments: Of `mhvae train`, but run id and root.
        devices: How many processes.
        run_id, root: As for `train_in_run_folder`.
    Returns:
        The run folder.
    Raises:
        InputError: Fewer GPUs than devices, or a batch that cannot be shared evenly.
        SystemExit: A process failed, and has said why.
    """
    share_of(config.batch_size, check_devices(devices))
    root = Path(root or default_root()).expanduser().resolve()
    folder = root / check_run_id(run_id) if run_id else run_folder(root, "train")
    run_together(["train", *arguments, "--run-id", folder.name, "--root", str(root)], devices)
    return folder


def _patients(config: TrainingConfig, prepared: str | Path | None) -> PreparedDataset | None:
    """The prepared cases that have all images of a config, or some where its objective allows; None for the phantom.

    Raises:
        InputError: Their size is not the model's.
    """
    if prepared is None:
        return None
    options = {"modalities": config.model.modalities, "splits": ("train", "validation")}
    dataset = load_prepared(prepared, partial=config.objective == "mmhvae", **options)
    check_size(dataset, config.model)
    return dataset


def check_size(dataset: PreparedDataset, config: MHVAEConfig) -> None:
    """Refuse prepared slices of another size than the model's.

    Raises:
        InputError: Says which size to prepare.
    """
    size, wanted = tuple(dataset.shape[:2]), tuple(config.image_size)
    if size != wanted:
        mend = f"prepare with --size {wanted[0]}, or choose another preset"
        raise InputError(explain(f"{dataset.name} does not fit the model", got=size, expected=wanted, mend=mend))


def evaluate_to_csv(
    model: str | Path,
    preset: str,
    *,
    split: str = "test",
    temperature: float = 0.0,
    seed: int = 0,
    output: str | Path = "scores.csv",
    prepared: str | Path | None = None,
) -> tuple[str, list[Path]]:
    """Score a model on phantom patients, or on prepared cases, and write the scores.

    Args:
        model: What `find_model` understands.
        preset, split: Which phantom patients.
        temperature: Spread of the latents, at least 0.
        seed: Seed of the draws and of the bootstrap.
        output: CSV of the scores per slice; `<name>_summary.csv` goes beside it.
        prepared: Folder of a prepared dataset instead of the phantom.
    Returns:
        The summary as text (mean and 95 % interval over patients), and the files written.
    """
    output = Path(output)
    scored = find_model(model)
    if prepared is None:
        dataset = load_phantom(preset, splits=[split])
    else:
        dataset = load_prepared(prepared, modalities=scored.config.modalities, splits=[split])
        check_size(dataset, scored.config)
    scores = evaluate(scored, dataset, split=split, temperature=temperature, seed=seed)
    table = summary(scores, seed=seed)
    beside = output.with_name(f"{output.stem}_summary.csv")
    write_text(output, scores.to_csv(index=False))
    write_text(beside, table.to_csv(index=False))
    return format_table(table).to_string(index=False), [output, beside]
