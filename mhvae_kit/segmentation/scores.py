"""What a segmentation network makes of held-out patients, and its scores against the true labels, by patient."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch
from monai.inferers import SliceInferer
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance
from monai.transforms import KeepLargestConnectedComponent
from scipy.ndimage import gaussian_filter1d
from torch import nn

from mhvae_kit.errors import InputError, explain

SMOOTH_MM = 2.0
"""Standard deviation over neighbouring slices."""
COLUMNS = ("case", "dice", "hd95_mm", "assd_mm", "volume_ml", "predicted_ml")


def segment_cases(
    network: nn.Module, volumes: Mapping[str, np.ndarray], *, slice_mm: float = 1.0, batch_size: int = 16
) -> dict[str, np.ndarray]:
    """Segment volumes slice by slice.

    The logits of a slice and of its mirror image are averaged, then smoothed over neighbouring slices, which see the
    same tumour through other speckle; of what is above 0 the largest connected piece is kept, as a patient has one
    tumour.

    Args:
        network: From `train_segmenter`.
        volumes: By case, (D, H, W) float32 in [-1, 1].
        slice_mm: Distance of neighbouring slices.
        batch_size: Slices a forward pass.
    Returns:
        By case, (D, H, W) bool.
    """
    device = next(network.parameters()).device
    keep = KeepLargestConnectedComponent(is_onehot=False, connectivity=1)
    found = {}
    with torch.inference_mode():
        for case, volume in volumes.items():
            inferer = SliceInferer(roi_size=volume.shape[1:], sw_batch_size=batch_size, spatial_dim=0)
            image = torch.from_numpy(np.ascontiguousarray(volume))[None, None].to(device)
            logits = (inferer(image, network) + inferer(image.flip(-1), network).flip(-1))[0, 0] / 2
            smooth = gaussian_filter1d(logits.float().cpu().numpy(), SMOOTH_MM / slice_mm, axis=0, mode="nearest")
            mask = torch.from_numpy((smooth > 0).astype(np.uint8))[None]
            found[case] = np.asarray(keep(mask))[0].astype(bool)
    return found


def score_patients(
    predicted: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], spacing_mm: tuple[float, float, float]
) -> pd.DataFrame:
    """Dice, HD95 and ASSD of each patient, in three dimensions, by MONAI.

    Args:
        predicted, truth: By case, (D, H, W) bool; the same cases.
        spacing_mm: Voxel size along D, H and W.
    Returns:
        One row a case with the columns `COLUMNS`. Nothing predicted: Dice 0, and both distances the volume's diagonal,
        the largest that the field of view allows, so that a mean over patients does not profit from an empty answer.
    Raises:
        InputError: Cases that differ, or a patient without a tumour.
    """
    if set(predicted) != set(truth):
        raise InputError(
            explain("predicted and true labels are of different cases", got=sorted(set(predicted) ^ set(truth)))
        )
    return pd.DataFrame([_score(case, predicted[case], truth[case], spacing_mm) for case in truth], columns=COLUMNS)


def _score(case: str, made: np.ndarray, true: np.ndarray, spacing_mm: Iterable[float]) -> dict[str, object]:
    spacing = tuple(float(s) for s in spacing_mm)
    voxel_ml = float(np.prod(spacing)) / 1000.0
    if not true.any():
        raise InputError(explain(f"{case} has no tumour to be found", expected="a label with at least one voxel"))
    row = {"case": case, "volume_ml": float(true.sum()) * voxel_ml, "predicted_ml": float(made.sum()) * voxel_ml}
    if not made.any():
        diagonal = float(np.linalg.norm(np.array(true.shape) * spacing))
        return row | {"dice": 0.0, "hd95_mm": diagonal, "assd_mm": diagonal}
    pair = [torch.from_numpy(np.ascontiguousarray(m))[None, None].float() for m in (made, true)]
    common = {"include_background": True, "spacing": spacing}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI announces its own future defaults
        return row | {
            "dice": float(compute_dice(*pair)),
            "hd95_mm": float(compute_hausdorff_distance(*pair, percentile=95, **common)),
            "assd_mm": float(compute_average_surface_distance(*pair, symmetric=True, **common)),
        }
