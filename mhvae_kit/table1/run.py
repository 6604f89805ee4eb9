"""`run_row`: one row of Table 1 from its training to its scores, in one run folder.

<preset>-table1-<row>/   training/          a training run: config.json, metrics.csv, checkpoints/, model/
                         scores.csv         a line per slice, direction and mode
                         patients.csv       their means over each patient's slices
                         examples/          the slices of the figure
                         cost.json          parameters, multiply-accumulates, time
                         results.json       last
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from mhvae_kit.data import load_phantom
from mhvae_kit.errors import InputError, MissingError, explain
from mhvae_kit.files import write_json, write_text
from mhvae_kit.metrics import lpips_available
from mhvae_kit.plain import json_safe
from mhvae_kit.progress import progress
from mhvae_kit.recording import is_done_with, recording
from mhvae_kit.runs import check_run_id, read_results, run_folder, run_status, write_results
from mhvae_kit.table1.cost import cost_of
from mhvae_kit.table1.predictions import TEST, TRAIN, Shown, model_predictions, reference_predictions
from mhvae_kit.table1.rows import ROWS, SAMPLES, Row, budget_of, find_row, row_folder
from mhvae_kit.table1.scores import EXAMPLES, Examples, example_slices, headline, per_patient, score
from mhvae_kit.table1.train import TRAINING, load_row, train_row, training_config

NOTEBOOK = "table1"


def run_row(
    row: str,
    preset: str,
    *,
    run_id: str | None = None,
    root: str | Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    phantom: str | None = None,
    n_samples: int = SAMPLES,
    source: str | Path | None = None,
    dataset: Any = None,
    data_dir: str | Path | None = None,
) -> Path:
    """Train a row and score it on the phantom's test patients; a row that is done is left as it is.

    Args:
        row: Its name in `ROWS`.
        preset: smoke, demo or paper.
        run_id: Name of the run folder; None = "<preset>-table1-<row>".
        root: Folder of all runs; None = `mhvae_kit.runs.default_root()`.
        seed: Of the training and of the samples.
        steps: Training steps; None = those of the preset in `BUDGETS`.
        phantom: Cohort to train and test on; None = that of the preset.
        n_samples: K of the mean of K.
        source: For mhvae, the run folder of mhvae-gan; None = "<preset>-table1-mhvae-gan" beside it.
        dataset: Data with splits train, validation and test; None = the phantom.
        data_dir: Cache folder of the phantom; None = the default.
    Returns:
        The run folder; see the head of this module for what is in it.
    Raises:
        InputError: Unknown row or preset; a folder with other settings; a test patient that was in training.
        MissingError: The row that this one continues is not trained.
        RunError: The row is being made by another process, or its training could not go on.
    """
    known = find_row(row)
    budget = budget_of(preset) | ({} if steps is None else {"steps": steps})
    if isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < 1:
        raise InputError(explain("n_samples must be a whole number of at least 1", got=repr(n_samples)))
    parameters = {"row": row, "preset": preset, "seed": seed, **budget, "phantom": phantom}
    parameters |= {"temperature": known.temperature, "n_samples": n_samples}
    default = row_folder(row, preset, root)
    folder = default if run_id is None else default.parent / check_run_id(run_id)
    if is_done_with(folder, parameters, f"row {row}"):
        return folder
    if known.after is not None and source is None:
        source = row_folder(known.after, preset, root)
    run_folder(folder.parent, NOTEBOOK, folder.name)
    with recording(folder, notebook=NOTEBOOK, preset=preset, seed=seed, parameters=parameters):
        if dataset is None:
            dataset = load_phantom(phantom or preset, splits=(TRAIN, "validation", TEST), cache_dir=data_dir)
        _Making(known, parameters, folder, dataset, None if source is None else Path(source)).run()
    return folder


class _Making:
    """One row in the making."""

    def __init__(self, row: Row, parameters: dict[str, Any], folder: Path, dataset: Any, source: Path | None) -> None:
        self.row, self.parameters, self.folder, self.dataset, self.source = row, parameters, folder, dataset, source
        self.begun = time.monotonic()

    def run(self) -> None:
        """Train, score, measure, and write results.json last."""
        row, folder = self.row, self.folder
        cost: dict[str, Any] = {"training_seconds": 0.0}
        card: dict[str, Any] = {}
        if row.kind == "references":
            made = reference_predictions(self.dataset)
        else:
            names = ("seed", "steps", "batch_size", "phantom")
            config = training_config(row, self.parameters["preset"], **{k: self.parameters[k] for k in names})
            spent = train_row(row, config, folder, source=self.source, dataset=self.dataset)
            cost = {"training_seconds": spent["seconds"], "shared_seconds": spent["shared_seconds"]}
            model = load_row(folder, row.name)
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            options = {name: self.parameters[name] for name in ("temperature", "n_samples", "seed")}
            made = model_predictions(row.name, model, self.dataset, **options)
            cost |= cost_of(model)
            card = dict(model.card)
        patients, examples = self._score(made)
        write_json(folder / "cost.json", json_safe(cost))
        self._finish(patients, examples, cost, card)

    def _score(self, made: Iterable[Shown]) -> tuple[pd.DataFrame, Examples]:
        """Score all that was made; writes scores.csv, patients.csv and examples/."""
        examples, parts = Examples(example_slices(self.dataset)), []
        # The scores multiply small matrices: more threads than one only wait for each other.
        with progress(desc=f"{self.row.name} scoring", unit="image") as bar, threadpool_limits(1, "blas"):
            for shown in made:
                part = score(shown, self.dataset)
                parts.append(part)
                examples.add(shown)
                bar.update(len(part))
        if not parts:
            raise InputError(explain(f"there is nothing to score in {self.dataset.name}", expected="test patients"))
        scores = pd.concat(parts, ignore_index=True)
        patients = per_patient(scores)
        write_text(self.folder / "scores.csv", scores.to_csv(index=False))
        write_text(self.folder / "patients.csv", patients.to_csv(index=False))
        examples.write(self.folder / EXAMPLES)
        return patients, examples

    def _finish(self, patients: pd.DataFrame, examples: Examples, cost: dict[str, Any], card: dict[str, Any]) -> None:
        """Write results.json: what was done, in every detail that a reader of the table may ask for."""
        row, data = self.row, self.dataset
        modes = patients[["mode", "temperature", "n_samples"]].drop_duplicates().to_dict("records")
        seen = set(card.pop("training_cases", ()))
        extra = {
            "title": row.title,
            "network_mode": "eval",
            "modes": modes,
            "noise_seeds": [self.parameters["seed"] + k for k in range(self.parameters["n_samples"])]
            if row.temperature is not None
            else [],
            "split": TEST,
            "test_cases": data.case_ids(TEST),
            "n_training_cases": len(seen),
            "lpips": lpips_available()[1] or "computed",
            "slice_exposures": self.parameters["steps"] * self.parameters["batch_size"] if card else 0,
            "examples": [list(place) for place in examples.slices],
            "training": TRAINING if card else None,
            "continues": self.source.name if row.kind == "branch" and self.source is not None else None,
            "perceptual_term": card.get("perceptual"),
            "card": card,
            "cost": cost,
        }
        write_results(
            self.folder,
            notebook=NOTEBOOK,
            parameters=self.parameters,
            preset=self.parameters["preset"],
            seed=self.parameters["seed"],
            dataset={"name": data.name, "digest": data.digest},
            metrics=headline(patients),
            seconds=time.monotonic() - self.begun,
            extra=extra,
        )


def one_line(folder: str | Path) -> str:
    """A finished row in one line for a terminal: data, synthesis scores of its first mode, training time."""
    results = read_results(folder)
    told = []
    for name, modes in results["metrics"].items():
        mode, scores = next(iter(modes.items()))
        for direction in ("t2_to_us", "us_to_t2"):
            if direction in scores:
                psnr_db, ssim = scores[direction]["psnr_fov_db"], scores[direction]["ssim_fov"]
                shown = "inf" if psnr_db is None else f"{psnr_db:.1f}"
                told.append(f"{name} {direction.replace('_', ' ')} {shown} dB, SSIM {ssim:.3f} ({mode})")
    minutes = results["extra"]["cost"]["training_seconds"] / 60
    return f"{results['dataset']['name']}: {'; '.join(told)}; trained in {minutes:.1f} min"


def read_table(root: str | Path | None, preset: str, file: str = "scores.csv") -> pd.DataFrame:
    """The scores of every row, one under the other, in the order of the table.

    Args:
        root: Folder of all runs; None = `mhvae_kit.runs.default_root()`.
        preset: smoke, demo or paper.
        file: "scores.csv" (by slice) or "patients.csv" (means by patient).
    Raises:
        MissingError: A row is not done; the message names all of them and says how to make them.
        InputError: The rows are of different data or budgets, so that they are no table.
    """
    folders = {name: row_folder(name, preset, root) for name in ROWS}
    absent = [name for name, folder in folders.items() if run_status(folder) != "done"]
    if absent:
        mend = f"snakemake --cores 2 table1 --config preset={preset}, or `mhvae table1 ROW --preset {preset}` for each"
        raise MissingError(explain(f"rows of Table 1 are not done: {', '.join(absent)}", mend=mend))
    found = {name: read_results(folder) for name, folder in folders.items()}
    for place in ("dataset", "steps", "batch_size", "seed"):
        values = {str(r[place] if place == "dataset" else r["parameters"][place]) for r in found.values()}
        if len(values) > 1:
            raise InputError(
                explain(f"the rows differ in {place}", got="; ".join(sorted(values)), mend="make them anew")
            )
    return pd.concat([pd.read_csv(folder / file) for folder in folders.values()], ignore_index=True)
