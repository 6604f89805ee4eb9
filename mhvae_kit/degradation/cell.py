"""`run_cell`: one set of training images, a network for every seed, its scores on real ultrasound, in one run folder.

<preset>-degradation-<key>/   patients.csv      seed, case, Dice, HD95, ASSD, volumes: real ultrasound of test patients
                              images.csv        metrics of the training images against the truth, where there is one
                              drawn.json        what chance decided for each training patient
                              example.npz       a training slice, and a real slice with its segmentation
                              results.json      last
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from mhvae_kit.degradation.build import (
    Context,
    TrainingPatient,
    open_context,
    patient_specific,
    training_patients,
    training_slices,
)
from mhvae_kit.degradation.measure import measured
from mhvae_kit.degradation.plan import PATIENT_SPECIFIC_SHARE, Condition, find_condition, plan_digest, study_of
from mhvae_kit.degradation.sources import TARGET, model_name
from mhvae_kit.errors import InputError, explain
from mhvae_kit.files import atomic_path, write_json, write_text
from mhvae_kit.memory import keep_freed_memory
from mhvae_kit.plain import json_safe
from mhvae_kit.progress import progress
from mhvae_kit.recording import is_done_with, recording
from mhvae_kit.runs import default_root, read_results, run_folder, write_results
from mhvae_kit.segmentation import (
    SegmentationConfig,
    SegmentationSlices,
    score_patients,
    segment_cases,
    train_segmenter,
)

NOTEBOOK = "degradation"


def cell_folder(key: str, preset: str, root: str | Path | None = None) -> Path:
    """Where the run of a cell is or would be."""
    base = Path(root if root is not None else default_root()).expanduser().resolve()
    return base / f"{preset}-degradation-{key}"


def run_cell(
    name: str,
    dose: float | None = None,
    *,
    preset: str = "demo",
    root: str | Path | None = None,
    data_dir: str | Path | None = None,
) -> Path:
    """Train on one condition's images and score on real ultrasound; a cell that is done is left as it is.

    Args:
        name: Of the condition.
        dose: Of a defect; None for a route.
        preset: smoke, demo or paper.
        root: Folder of all runs; None = `mhvae_kit.runs.default_root()`.
        data_dir: Cache folder of the phantom and of the kept images; None = the default.
    Returns:
        The run folder; see the head of this module for what is in it.
    Raises:
        InputError: No such condition or dose; a folder made by another plan.
        MissingError: A model that the condition needs is not trained.
        RunError: The cell is being made by another process, or its training could not go on.
    """
    condition, study = find_condition(preset, name, dose), study_of(preset)
    folder = cell_folder(condition.key, preset, root)
    parameters = {"condition": name, "dose": condition.dose, "preset": preset, "plan": plan_digest(preset)}
    if is_done_with(folder, parameters, f"cell {condition.key}", mend="move that folder away, or give another --root"):
        return folder
    run_folder(folder.parent, NOTEBOOK, folder.name)
    keep_freed_memory()
    with recording(folder, notebook=NOTEBOOK, preset=preset, seed=study.seeds[0], parameters=parameters):
        begun = time.monotonic()
        with threadpool_limits(1, "blas"):
            context = open_context(study, preset, folder.parent, data_dir)
            _Cell(condition, context, folder).run(parameters, begun)
    return folder


class _Cell:
    """One cell in the making."""

    def __init__(self, condition: Condition, context: Context, folder: Path) -> None:
        self.condition, self.context, self.folder = condition, context, folder
        self.tested = {case: context.test.patient(case) for case in context.test.cases}
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def run(self, parameters: dict[str, Any], begun: float) -> None:
        """Make the images, train, score, and write results.json last."""
        study = self.context.study
        with progress(total=len(study.seeds), desc=f"{self.condition.key} training", unit="network") as bar:
            if self.condition.name == "patient-specific":
                scores, patients, masks = self._one_network_a_patient(bar)
            else:
                scores, patients, masks = self._one_network_for_all(bar)
        images = measured(patients)
        write_text(self.folder / "patients.csv", scores.to_csv(index=False))
        write_text(self.folder / "images.csv", images.to_csv(index=False) if len(images) else "case,slice\n")
        write_json(self.folder / "drawn.json", json_safe({p.case: p.drawn for p in patients}))
        self._write_example(patients[0], masks)
        self._finish(scores, images, patients, parameters, time.monotonic() - begun)

    def _config(self, share: float = 1.0) -> SegmentationConfig:
        return SegmentationConfig(steps=max(1, round(share * self.context.study.steps)))

    def _one_network_for_all(self, bar: Any) -> tuple[pd.DataFrame, list[TrainingPatient], dict[str, np.ndarray]]:
        patients = list(training_patients(self.condition, self.context))
        slices, parts, first = training_slices(patients), [], {}
        for seed in self.context.study.seeds:
            scores, masks = self._trained_and_scored(slices, self._config(), seed, list(self.tested))
            parts.append(scores.assign(seed=seed))
            first = first or masks
            bar.update(1)
        return pd.concat(parts, ignore_index=True), patients, first

    def _one_network_a_patient(self, bar: Any) -> tuple[pd.DataFrame, list[TrainingPatient], dict[str, np.ndarray]]:
        patients = [patient_specific(self.context, case) for case in self.tested]
        parts, first = [], {}
        for seed in self.context.study.seeds:
            for patient in patients:
                slices = training_slices([patient])
                config = self._config(PATIENT_SPECIFIC_SHARE)
                scores, masks = self._trained_and_scored(slices, config, seed, [patient.case])
                parts.append(scores.assign(seed=seed))
                first = masks | first
            bar.update(1)
        return pd.concat(parts, ignore_index=True), patients, first

    def _trained_and_scored(
        self, slices: SegmentationSlices, config: SegmentationConfig, seed: int, cases: list[str]
    ) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
        network = train_segmenter(slices, config, seed, device=self.device)
        spacing = self.context.test.spacing_mm
        volumes = {case: self.tested[case].images[TARGET] for case in cases}
        masks = segment_cases(network, volumes, slice_mm=spacing)
        truth = {case: self.tested[case].labels for case in cases}
        return score_patients(masks, truth, (spacing,) * 3), masks

    def _write_example(self, trained: TrainingPatient, masks: dict[str, np.ndarray]) -> None:
        """The slice through the middle of the first training patient's tumour, and of a test patient's."""
        case = next(iter(self.tested))
        tested = self.tested[case]
        k = int(np.argmax(trained.true_labels.sum(axis=(1, 2))))
        j = int(np.argmax(tested.labels.sum(axis=(1, 2))))
        arrays = {
            "training_image": trained.scene.images[k],
            "training_label": trained.scene.labels[k],
            "real_image": tested.images[TARGET][j],
            "true_mask": tested.labels[j],
            "predicted_mask": masks[case][j],
        }
        with atomic_path(self.folder / "example.npz") as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)

    def _finish(
        self,
        scores: pd.DataFrame,
        images: pd.DataFrame,
        patients: list[TrainingPatient],
        parameters: dict[str, Any],
        seconds: float,
    ) -> None:
        """Write results.json."""
        study, names = self.context.study, ("dice", "hd95_mm", "assd_mm")
        measures = {m: float(images[m].mean()) for m in images.columns if m not in ("case", "slice")}
        write_results(
            self.folder,
            notebook=NOTEBOOK,
            parameters=parameters,
            preset=self.context.preset,
            seed=study.seeds[0],
            dataset={"name": self.context.test.dataset.name, "digest": self.context.test.dataset.digest},
            metrics={**{n: float(scores[n].mean()) for n in names}, "images": measures},
            seconds=seconds,
            extra={
                "title": self.condition.title,
                "group": self.condition.group,
                "seeds": list(study.seeds),
                "steps": study.steps,
                "model": model_name(self.condition, study),
                "training_patients": len(patients),
                "test_cases": list(self.tested),
            },
        )


def one_line(folder: str | Path) -> str:
    """A finished cell in one line for a terminal."""
    results = read_results(folder)
    dice, psnr_db = results["metrics"]["dice"], results["metrics"]["images"].get("psnr_fov_db")
    told = "" if psnr_db is None else f", training images {psnr_db:.1f} dB"
    return f"{results['run_id']}: Dice {dice:.3f} on real phantom ultrasound{told}; {results['seconds']:.0f} s"


def train_for_ages(preset: str, root: str | Path | None = None, data_dir: str | Path | None = None) -> Path:
    """The training whose checkpoints are the ages of "age"; all checkpoints of it are kept.

    Raises:
        InputError: The plan at that preset has no ages.
    """
    from mhvae_kit.commands import train_in_run_folder
    from mhvae_kit.degradation.sources import age_folder
    from mhvae_kit.training import TrainingConfig

    if not study_of(preset).ages:
        raise InputError(explain(f"the plan at {preset} has no checkpoint ages", expected="demo or paper"))
    base = TrainingConfig.from_preset(preset)
    every = max(1, base.steps // 20)
    config = TrainingConfig.from_preset(preset, checkpoint_every=every, keep_checkpoints=base.steps)
    folder = age_folder(preset, Path(root if root is not None else default_root()))
    return train_in_run_folder(config, run_id=folder.name, root=folder.parent, data_dir=data_dir)
