"""Protocol "authors-2025": the scores of the authors' later script, kept as it is and kept apart from the kit's.

The script (ReubenDo/MMHVAE:evaluation/evaluation_batch_path.py) is the only public evaluation of this family of models.
It differs from the kit's protocol in four ways, each of which moves the numbers:

* Whole frame. Nothing is masked, so the background, which every method predicts, counts: PSNR and SSIM rise.
* Range of each slice. PSNR and SSIM take the range of the true slice, its maximum minus its minimum, not the range of
  the format: a dark slice is scored on another scale than a bright one.
* SSIM of rows. Called with channel_axis=0 on a 2-D slice, scikit-image takes every row for a channel of a
  one-dimensional image: a mean of 1-D SSIMs with a 7 pixel box window, blind to what lies above and below.
* 8 bits, and every slice counts alike: images are rounded down to 0..255 first, and nothing is averaged by patient.

No number of this protocol may stand beside one of the kit's as if they were the same thing: its columns have names of
their own, and `check_one_protocol` refuses tables that hold both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mhvae_kit.errors import InputError, explain
from mhvae_kit.evaluation.extras import AUTHORS_PROTOCOL as PROTOCOL
from mhvae_kit.evaluation.extras import check_one_protocol
from mhvae_kit.evaluation.predictions import BACKGROUND, Dataset, Temperature, predictions, subset_name
from mhvae_kit.evaluation.scoring import KEYS, temperature_label
from mhvae_kit.metrics import as_masks, lpips, lpips_available, paired_images

AUTHORS_SCORES = ("l1_authors2025", "ssim_authors2025", "psnr_authors2025_db", "lpips_authors2025")

_TOP = 255.0
_ROUNDING = 1e-3
# scikit-image's default window; a row must hold one.
_WINDOW_PX = 7


def stored_as_8_bit(images: np.ndarray, fov: np.ndarray | None = None) -> np.ndarray:
    """Images in [-1, 1] as the authors store them: floor(255 (x + 1) / 2), outside the fan 0.

    Args:
        images: (N, H, W) or (H, W) in [-1, 1].
        fov: The fan, same shape, or None when the images have their background already.
    Returns:
        (N, H, W) float64, whole numbers from 0 to 255.
    Source:
        ReubenDo/MHVAE:inference.py, utilities/utils.py.
    """
    values, _ = paired_images(images, images, data_range=2.0)
    if fov is not None:
        values = np.where(as_masks(fov, values.shape, name="fov"), values, BACKGROUND)
    # What was a whole number before it became float32 stays that number; the authors' own rounding is not known.
    return np.floor(np.clip(_TOP * (values + 1.0) / 2.0 + _ROUNDING, 0.0, _TOP))


def authors_scores(images: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of 8-bit images by the authors' script, one value a slice.

    Args:
        images: Predictions (N, H, W), values from 0 to 255, see `stored_as_8_bit`.
        targets: Truth, same shape and range.
    Returns:
        By column, (N,): mean absolute difference in grey levels, row-wise SSIM, PSNR in dB, and LPIPS (AlexNet, full
        frame) where its weights are there.
    Raises:
        InputError: NaN, values outside 0..255, or given in [-1, 1]; a true slice that is all background, which the
            script leaves out, or constant, for which its range is 0.
    """
    made, truth = paired_images(images, targets, data_range=_TOP)
    if truth.shape[2] < _WINDOW_PX:
        raise InputError(explain("rows are shorter than the SSIM window", got=truth.shape, expected=f"{_WINDOW_PX} px"))
    if truth.max() <= 1.0:
        raise InputError(
            explain(
                f"{PROTOCOL} scores 8-bit images",
                got=f"a largest value of {truth.max():g}",
                expected="values from 0 to 255, background 0",
                mend="Convert images in [-1, 1] with stored_as_8_bit; leave out slices that are all background",
            )
        )
    ranges = truth.max(axis=(1, 2)) - truth.min(axis=(1, 2))
    if (ranges == 0).any():
        index = int((ranges == 0).argmax())
        what = "all background" if truth[index].max() == 0 else "constant"
        raise InputError(
            explain(
                f"a true slice is {what}, so {PROTOCOL} has no range for it",
                got=f"image {index} of {len(truth)}",
                mend="Leave it out, as the authors' script does with empty slices: keep targets.sum(axis=(1, 2)) > 0",
            )
        )
    pairs = list(zip(made, truth, ranges, strict=True))
    scores = {
        "l1_authors2025": np.abs(made - truth).mean(axis=(1, 2)),
        # channel_axis=0 on a 2-D array is the slip that makes this a mean over rows; it is reproduced, not repaired.
        "ssim_authors2025": np.array(
            [structural_similarity(t, p, data_range=span, channel_axis=0) for p, t, span in pairs]
        ),
        "psnr_authors2025_db": np.array([_psnr(t, p, span) for p, t, span in pairs]),
    }
    if lpips_available()[0]:
        scores["lpips_authors2025"] = lpips(made, truth, data_range=_TOP)
    return scores


def _psnr(truth: np.ndarray, made: np.ndarray, span: float) -> float:
    """PSNR of one slice; identical images give infinity."""
    if np.array_equal(truth, made):
        return float("inf")
    return float(peak_signal_noise_ratio(truth, made, data_range=span))


def evaluate_authors(
    model: Any,
    dataset: Dataset,
    *,
    temperature: Temperature = 0.7,
    split: str | None = "test",
    observed: Iterable[str | Iterable[str]] | None = None,
    targets: Iterable[str] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Score a model by protocol "authors-2025", a row a slice.

    Args:
        model: An MHVAE or another method, as for `evaluate`.
        dataset: The data set.
        temperature: The authors' inference writes 0.7.
        split: Whose cases to score; None takes all.
        observed: Observed subsets; None takes every non-empty one.
        targets: Modalities to score; None takes all.
        **options: cases, slices, batch_size, seed and allow_training_cases of `predictions`.
    Returns:
        The key columns of `evaluate`, "protocol", and `AUTHORS_SCORES` (LPIPS only where it can be computed). Slices
        whose truth is all background are left out, as in the script; so are slices whose fan is empty or too thin for
        the kit's SSIM, which `predictions` does not make.
    Raises:
        InputError: See `predictions`; or no slice is left.
    """
    keys = {"data": dataset.name, "temperature": temperature_label(temperature), "protocol": PROTOCOL}
    chosen = {"split": split, "observed": observed, "targets": targets, "temperature": temperature, **options}
    parts = []
    for p in predictions(model, dataset, **chosen):
        for target, images in p.images.items():
            made, truth = stored_as_8_bit(images, p.fov), stored_as_8_bit(p.targets[target])
            kept = truth.sum(axis=(1, 2)) > 0
            if kept.any():
                scores = authors_scores(made[kept], truth[kept])
                names = {"case": p.case, "observed": subset_name(p.observed), "target": target}
                parts.append(pd.DataFrame({"slice": np.array(p.slices)[kept], **scores}).assign(**names, **keys))
    if not parts:
        raise InputError(explain("there is nothing to score", got=f"no slice of {dataset.name} with any signal"))
    table = pd.concat(parts, ignore_index=True)
    return table[[*KEYS, "protocol", *(c for c in AUTHORS_SCORES if c in table.columns)]]


def authors_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Plain mean over all slices, the only aggregate the script's CSV invites; no interval, as slices are not patients.

    Args:
        table: From `evaluate_authors`.
    Returns:
        A row per data, observed, target and temperature: protocol, n_slices and the mean of each score.
    Raises:
        InputError: The table holds the kit's scores too, or none of this protocol.
    """
    if check_one_protocol(table.columns) != PROTOCOL:
        raise InputError(explain(f"there is no score of {PROTOCOL} in this table", got=", ".join(table.columns)))
    columns = [c for c in AUTHORS_SCORES if c in table.columns]
    groups = table.groupby(["data", "observed", "target", "temperature", "protocol"], sort=False)
    means = groups[columns].mean()
    means.insert(0, "n_slices", groups.size())
    return means.reset_index()
