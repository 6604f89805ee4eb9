"""Where training images come from: real ones, a model's, other models', checkpoints on the way, virtual sweeps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mhvae_kit.data import load_phantom
from mhvae_kit.degradation.plan import AGES, TRIVIAL, UPPER_BOUND, Condition, Study, row_of
from mhvae_kit.errors import MissingError, explain
from mhvae_kit.evaluation import predictions
from mhvae_kit.evaluation.predictions import read_case, slices_first
from mhvae_kit.files import atomic_path, default_cache_dir
from mhvae_kit.networks.storage import find_model, make_model
from mhvae_kit.table1 import row_folder
from mhvae_kit.table1.train import load_row
from mhvae_kit.training.folder import CHECKPOINTS
from mhvae_kit.training.loop import read_config
from mhvae_kit.training.state import read_checkpoint

BACKGROUND = np.float32(-1.0)
TARGET, SOURCE = "us", "t2"
BATCH_SIZE = 32


@dataclass(frozen=True)
class Patient:
    """What the study knows of one patient.

    Args:
        case: Its id.
        images: By modality, (D, H, W) float32 in [-1, 1], -1 outside the fan.
        labels, fov: (D, H, W) bool.
    """

    case: str
    images: dict[str, np.ndarray]
    labels: np.ndarray
    fov: np.ndarray


class Cohort:
    """Patients of one split of a phantom, read once.

    Args:
        preset: Of the phantom.
        split: "train", "test" or "ood".
        count: The first so many; None for all.
        data_dir: Cache folder; None = the default.
    """

    def __init__(self, preset: str, split: str, count: int | None, data_dir: str | Path | None = None) -> None:
        options = {"splits": [split], "cache_dir": data_dir, "show_progress": False}
        if count is not None:
            options = {"cases": [f"phantom-{split}-{i:03d}" for i in range(count)], **options}
        self.dataset = load_phantom(preset, **options)
        self.split = split
        self.cases = self.dataset.case_ids(split)
        self.spacing_mm = self.dataset.spacing_mm

    def patient(self, case: str) -> Patient:
        """Images, label and fan of one patient."""
        images, fov = read_case(self.dataset, case, (SOURCE, TARGET))
        labels = slices_first(self.dataset.volume(case, "tumour")) > 0
        return Patient(case, images, labels & fov, fov)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over a model's weights and what else its state holds (SPADE's perceptual term), to keep images by."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        else:
            digest.update(json.dumps(value, sort_keys=True).encode())
    return digest.hexdigest()


def synthetic(
    cohort: Cohort,
    model: Any,
    *,
    temperature: float,
    observed: tuple[str, ...] = (SOURCE,),
    seed: int = 0,
    cache: Path | None = None,
) -> dict[str, np.ndarray]:
    """Synthetic ultrasound of every patient of a cohort, rounded to 8 bits as stored images are.

    Images are kept by the digests of weights and data, so that cells which need the same ones make them once.

    Args:
        cohort: The patients. That the model may have seen their images is the routes' own situation.
        model: An MHVAE or a `Translator`.
        temperature: 0 is the mean, without noise.
        observed: What the model is given.
        seed: Of the noise.
        cache: Folder of the kept images; None = below the phantom's cache.
    Returns:
        By case, (D, H, W) float32 in [-1, 1], -1 outside the fan.
    """
    key = "|".join([weights_digest(model), cohort.dataset.digest, "+".join(observed), f"{temperature:g}", str(seed)])
    folder = (cache or default_cache_dir()) / "degradation"
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"
    shape = (len(cohort.cases), *slices_first(cohort.dataset.volume(cohort.cases[0], "fov")).shape)
    levels = _kept(path, shape)
    if levels is None:
        levels = _made(cohort, model, shape, {"temperature": temperature, "observed": [observed], "seed": seed})
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, levels, allow_pickle=False)
    return {case: levels[k].astype(np.float32) / np.float32(127.5) - 1 for k, case in enumerate(cohort.cases)}


def _kept(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Images made before; None if there are none, or the file is damaged, as they can be made again."""
    try:
        kept = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return kept if kept.shape == shape and kept.dtype == np.uint8 else None


def _made(cohort: Cohort, model: Any, shape: tuple[int, ...], options: dict[str, Any]) -> np.ndarray:
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    levels = np.zeros(shape, dtype=np.uint8)
    row = {case: k for k, case in enumerate(cohort.cases)}
    made = predictions(
        model,
        cohort.dataset,
        split=cohort.split,
        targets=[TARGET],
        batch_size=BATCH_SIZE,
        allow_training_cases=True,
        **options,
    )
    for part in made:
        levels[row[part.case], list(part.slices)] = to_levels(part.images[TARGET], part.fov)
    return levels


def to_levels(images: np.ndarray, fov: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as stored ones: 1 to 255 inside the fan, 0 outside."""
    return np.where(fov, np.clip(np.round((images + 1.0) * 127.5), 1, 255), 0).astype(np.uint8)


def row_model(row: str, preset: str, root: str | Path | None) -> Any:
    """The model of a row of Table 1 and what it has to be given for ultrasound from T2."""
    return load_row(row_folder(row, preset, root), row)


def age_folder(preset: str, root: Path) -> Path:
    """Where the training of the checkpoint ages is."""
    return Path(root) / f"{preset}-degradation-training"


def aged_model(dose: float, preset: str, root: Path) -> nn.Module:
    """The averaged weights at an age of the training: dose 0 is its end, 0.95 its first twentieth.

    Raises:
        MissingError: The training, or its checkpoint of that age, is not there.
    """
    folder = age_folder(preset, root)
    mend = f"run `mhvae degradation-training --preset {preset}`"
    if not (folder / CHECKPOINTS).is_dir():
        raise MissingError(explain(f"no training with its checkpoints in {folder}", mend=mend))
    config = read_config(folder)
    path = folder / CHECKPOINTS / f"step_{round(config.steps * (1.0 - dose)):06d}.pt"
    if not path.is_file():
        ages = ", ".join(f"{a:.0%}" for a in AGES)
        raise MissingError(explain(f"{path.name} is not in {folder}", expected=f"checkpoints at {ages}", mend=mend))
    saved = read_checkpoint(path, torch.device("cpu"))
    model = make_model(config.model)
    model.load_state_dict(saved["average"])
    return model.eval()


def model_name(condition: Condition, study: Study) -> str | None:
    """What made a condition's images, for the record: None for real ones."""
    name = condition.name
    if name in (UPPER_BOUND, TRIVIAL) or name.startswith("labels-"):
        return None
    if name.startswith("table1-"):
        return f"table1:{name.removeprefix('table1-')}"
    return "age" if name == "age" else study.model_without_gan if name == "gan-off" else study.model


def condition_model(name: str, dose: float | None, study: Study, preset: str, root: Path) -> Callable[[], Any]:
    """How to load the model that makes a condition's images."""
    if name.startswith("table1-"):
        return lambda: row_model(name.removeprefix("table1-"), preset, root)
    if name == "age":
        return lambda: aged_model(dose or 0.0, preset, root)
    model = study.model_without_gan if name == "gan-off" else study.model
    row = row_of(model)
    return (lambda: row_model(row, preset, root)) if row else (lambda: find_model(model))
