"""From a condition of the plan to the slices that a network is trained on, with the truth they are measured against."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mhvae_kit.degradation.labels import propagated
from mhvae_kit.degradation.operators import OPERATORS, Scene, degrade
from mhvae_kit.degradation.plan import BASELINE, HIGHEST_TEMPERATURE, TRIVIAL, UPPER_BOUND, Condition, Study
from mhvae_kit.degradation.sources import SOURCE, TARGET, Cohort, Patient, condition_model, synthetic
from mhvae_kit.degradation.sweeps import virtual_sweeps
from mhvae_kit.errors import InputError, explain
from mhvae_kit.segmentation import SegmentationSlices
from mhvae_kit.table1 import find_row


@dataclass(frozen=True)
class TrainingPatient:
    """What one patient gives to the training of a cell.

    Args:
        case: The patient.
        scene: Images and labels to train on.
        truth: Real ultrasound of the same slices, (D, H, W), where the images claim to be it; None where they do not.
        true_labels: The labels before any error, (D, H, W) bool.
        drawn: What chance decided, as JSON types.
    """

    case: str
    scene: Scene
    truth: np.ndarray | None
    true_labels: np.ndarray
    drawn: dict[str, Any]


@dataclass(frozen=True)
class Context:
    """What all cells of one study have in common.

    Args:
        study: Its sizes.
        preset: smoke, demo or paper.
        root: Folder of all runs.
        train, test: Cohorts.
        cache: Folder of kept images; None = the default.
        data_dir: Cache folder of the phantom; None = the default.
    """

    study: Study
    preset: str
    root: Path
    train: Cohort
    test: Cohort
    cache: Path | None = None
    data_dir: str | Path | None = None


def open_context(study: Study, preset: str, root: Path, data_dir: str | Path | None = None) -> Context:
    """Read the cohorts of a study."""
    train = Cohort(study.phantom, "train", study.n_train, data_dir)
    test = Cohort(study.phantom, "test", study.n_test, data_dir)
    return Context(study, preset, root, train, test, None if data_dir is None else Path(data_dir), data_dir)


def case_generator(condition: Condition, case: str) -> np.random.Generator:
    """The generator of what a condition draws for a patient: by defect and patient, so that doses, and errors of
    labels, share their draws."""
    name = condition.name.rpartition("-")[0] if condition.name.startswith("labels-") else condition.name
    return np.random.default_rng([zlib.crc32(name.encode()), zlib.crc32(case.encode())])


def training_patients(condition: Condition, context: Context) -> Iterator[TrainingPatient]:
    """The patients that a condition trains on, degraded, one after the other.

    Raises:
        InputError: The patient-specific route, which has one training set a test patient: see `patient_specific`.
        MissingError: The model that the condition needs is not trained.
    """
    name, study = condition.name, context.study
    if name == "patient-specific":
        raise InputError(explain("patient-specific is one training set a patient", mend="use patient_specific"))
    cohort = Cohort(study.ood_phantom, "ood", study.n_train, context.data_dir) if name == "mr-cohort" else context.train
    made = None if _is_real(condition) else _synthetic(condition, context, cohort)
    for case in cohort.cases:
        patient = cohort.patient(case)
        images = patient.images[SOURCE if name == TRIVIAL else TARGET] if made is None else made[case]
        yield _changed(condition, patient, images, cohort.spacing_mm, has_truth=made is not None)


def _is_real(condition: Condition) -> bool:
    return condition.name in (UPPER_BOUND, TRIVIAL) or condition.name.startswith("labels-")


def _changed(
    condition: Condition, patient: Patient, images: np.ndarray, spacing_mm: float, *, has_truth: bool
) -> TrainingPatient:
    """One patient's images after the defect, or with the labels that registration would have brought."""
    rng, drawn = case_generator(condition, patient.case), {}
    scene = Scene(images, patient.labels, patient.fov, spacing_mm)
    if condition.name in OPERATORS:
        worse, drawn = degrade(condition.name, condition.dose or 0.0, scene, rng)
        scene = replace(scene, images=worse)
    elif condition.name.startswith("labels-"):
        _, kind, error = condition.name.split("-")
        moved, drawn = propagated(
            patient.labels, float(error.removesuffix("mm")), spacing_mm, rng, deform=kind == "deformed"
        )
        scene = replace(scene, labels=moved & patient.fov)
    truth = patient.images[TARGET] if has_truth else None
    return TrainingPatient(patient.case, scene, truth, patient.labels, drawn)


def temperature_of(condition: Condition, study: Study) -> float:
    """Temperature of a condition's images."""
    clean, dose = study.temperature, condition.dose or 0.0
    if condition.name == "synthetic-tau-100":
        return 1.0
    if condition.name == "temperature-low":
        return clean * (1.0 - dose)
    if condition.name == "temperature-high":
        return clean + (HIGHEST_TEMPERATURE - clean) * dose
    if condition.name.startswith("table1-"):
        return find_row(condition.name.removeprefix("table1-")).temperature or 0.0
    return clean


def _synthetic(condition: Condition, context: Context, cohort: Cohort) -> dict[str, np.ndarray]:
    model = condition_model(condition.name, condition.dose, context.study, context.preset, context.root)()
    observed = (SOURCE, TARGET) if condition.name == "synthetic-t2-us" else (SOURCE,)
    options = {"temperature": temperature_of(condition, context.study), "observed": observed, "cache": context.cache}
    return synthetic(cohort, model, **options)


def training_slices(patients: list[TrainingPatient]) -> SegmentationSlices:
    """The slices of some patients in one array, those without a fan left out."""
    keep = [p.scene.fov.any(axis=(1, 2)) for p in patients]
    stack = {
        name: np.concatenate([getattr(p.scene, name)[k] for p, k in zip(patients, keep, strict=True)])
        for name in ("images", "labels", "fov")
    }
    return SegmentationSlices(
        **stack, cases=tuple(p.case for p, k in zip(patients, keep, strict=True) for _ in range(int(k.sum())))
    )


def patient_specific(context: Context, case: str) -> TrainingPatient:
    """Virtual sweeps over the one patient to be operated: MR and its label alone, ultrasound by the model."""
    condition = Condition("patient-specific", None, "route", "")
    model = condition_model(BASELINE, None, context.study, context.preset, context.root)()
    scene, drawn = virtual_sweeps(
        case, context.study, model, case_generator(condition, case), data_dir=context.data_dir
    )
    return TrainingPatient(case, scene, None, scene.labels, drawn)
