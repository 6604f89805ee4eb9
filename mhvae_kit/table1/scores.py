"""Scores of a row by slice and by patient, and the few slices of it that the figure shows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mhvae_kit.errors import MissingError, explain
from mhvae_kit.evaluation import subset_name
from mhvae_kit.evaluation.extras import KEYS, extra_scores, patient_means
from mhvae_kit.evaluation.predictions import BACKGROUND, check_cases, scored_slices, slices_first
from mhvae_kit.evaluation.scoring import score_images
from mhvae_kit.files import atomic_path, write_json
from mhvae_kit.table1.predictions import TEST, Dataset, Mode, Shown
from mhvae_kit.table1.rows import MODALITIES, REFERENCES

COLUMNS = ("data", *KEYS, "slice")
EXAMPLES = "examples"
N_EXAMPLES = 3
_INDEX = "index.json"


def score(shown: Shown, dataset: Dataset) -> pd.DataFrame:
    """Scores of one batch: a row per target and slice, with the columns `COLUMNS` and one per score.

    Images outside the fan are set to -1, for every method alike, before anything sees the whole frame.
    """
    made, mode, parts = shown.prediction, shown.mode, []
    for target, images in made.images.items():
        truth, fov = made.targets[target], made.fov
        scores = score_images(images, truth, fov)
        scores |= extra_scores(images, truth, fov, target=target, spacing_mm=dataset.spacing_mm)
        frame = pd.DataFrame({"slice": list(made.slices), **scores}).assign(
            data=dataset.name,
            row=shown.row,
            observed=subset_name(made.observed),
            target=target,
            mode=mode.name,
            temperature=mode.temperature,
            n_samples=mode.n_samples,
            case=made.case,
        )
        parts.append(frame[[*COLUMNS, *scores]])
    return pd.concat(parts, ignore_index=True)


def per_patient(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean of every score over the slices of each patient, with n_slices and the name of the data.

    Raises:
        InputError: A score is NaN, or a slice is scored twice.
    """
    # Target by target, as speckle is measured in ultrasound alone.
    means = [patient_means(part) for _, part in scores.groupby("target", sort=False)]
    table = pd.concat(means, ignore_index=True)
    table.insert(0, "data", scores["data"].iloc[0])
    return table


def headline(patients: pd.DataFrame) -> dict[str, Any]:
    """Means over patients by line, mode, direction and score, nested, as `results.json` keeps them."""
    names = [c for c in patients.columns if c not in (*COLUMNS, "n_slices")]
    nested: dict[str, Any] = {}
    for (row, mode, observed, target), group in patients.groupby(["row", "mode", "observed", "target"], sort=False):
        present = [name for name in names if not group[name].isna().all()]
        means = {name: float(np.mean(group[name].to_numpy(dtype=float))) for name in present}
        nested.setdefault(row, {}).setdefault(mode, {})[f"{observed}_to_{target}"] = means
    return nested


def example_slices(dataset: Dataset, n: int = N_EXAMPLES) -> list[tuple[str, int]]:
    """(case, slice) of the slices that the figure shows, the same for every row.

    They are of test patients spread evenly over the split; of each, the slice with most of the tumour among those that
    are scored.
    """
    cases = check_cases(dataset, TEST, None)
    found = []
    for case in (cases[i * len(cases) // min(n, len(cases))] for i in range(min(n, len(cases)))):
        usable, _ = scored_slices(slices_first(dataset.volume(case, "fov")) > 0)
        if usable.size:
            area = (slices_first(dataset.volume(case, "tumour"))[usable] > 0).sum(axis=(1, 2))
            found.append((case, int(usable[area.argmax()])))
    return found


class Examples:
    """Collects the shown slices of the synthesis directions and writes them as 8-bit arrays.

    Args:
        slices: (case, slice) of each, from `example_slices`.
    """

    def __init__(self, slices: Iterable[tuple[str, int]]) -> None:
        self.slices = list(slices)
        self._images: dict[tuple[str, str, str, Mode], dict[tuple[str, int], np.ndarray]] = {}

    def add(self, shown: Shown) -> None:
        """Keep what is to be shown of a batch, set to -1 outside the fan."""
        made = shown.prediction
        for target, images in made.images.items():
            if (shown.row not in REFERENCES and {target, *made.observed} != set(MODALITIES)) or target in made.observed:
                continue
            place = (shown.row, subset_name(made.observed), target, shown.mode)
            for index, k in enumerate(made.slices):
                if (made.case, k) in self.slices:
                    framed = np.where(made.fov[index], images[index], BACKGROUND)
                    self._images.setdefault(place, {})[made.case, k] = to_uint8(framed)

    def write(self, folder: Path) -> None:
        """Write one .npy file (n, H, W) a line, direction and mode, and the index of them all, last."""
        entries = []
        for (row, observed, target, mode), images in self._images.items():
            name = f"{row}-{observed}_to_{target}-{mode.name.replace(' ', '_')}.npy"
            with atomic_path(folder / name) as path, open(path, "wb") as file:
                np.save(file, np.stack([images[place] for place in self.slices]), allow_pickle=False)
            keys = {"row": row, "observed": observed, "target": target, "mode": mode.name}
            entries.append({**keys, "temperature": mode.temperature, "n_samples": mode.n_samples, "file": name})
        slices = [{"case": case, "slice": k} for case, k in self.slices]
        write_json(folder / _INDEX, {"slices": slices, "range": "0 to 255 is -1 to 1", "images": entries})


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] to 0..255, rounded; what is out of range is set to its nearer end."""
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)


def read_examples(folder: str | Path) -> tuple[list[tuple[str, int]], list[dict[str, Any]]]:
    """The shown slices of a row.

    Args:
        folder: Its run folder.
    Returns:
        (case, slice) of each, then one dict a line, direction and mode: row, observed, target, mode, temperature,
        n_samples and "images", uint8 (n, H, W) with 0 to 255 for -1 to 1.
    Raises:
        MissingError: The row has none; it is not done.
    """
    folder = Path(folder) / EXAMPLES
    if not (folder / _INDEX).is_file():
        raise MissingError(explain(f"no example slices in {folder}", mend="the row is not done; run it to its end"))
    index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
    shown = []
    for entry in index["images"]:
        images = np.load(folder / entry["file"], allow_pickle=False)
        shown.append({**{k: v for k, v in entry.items() if k != "file"}, "images": images})
    return [(place["case"], place["slice"]) for place in index["slices"]], shown
