"""Corners of volumes in space: how two affines are compared. Without SimpleITK, which takes its time to load."""

from __future__ import annotations

import itertools

import numpy as np

CORNER_TOLERANCE_MM = 0.01


def corners_mm(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """World positions of the centres of the eight corner voxels, (8, 3) in mm."""
    indices = np.array(list(itertools.product(*[(0, n - 1) for n in shape[:3]])), dtype=float)
    return indices @ affine[:3, :3].T + affine[:3, 3]


def corner_distance_mm(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far apart two affines put the farthest corner of a volume, in mm."""
    apart = corners_mm(np.asarray(first, float), shape) - corners_mm(np.asarray(second, float), shape)
    return float(np.linalg.norm(apart, axis=1).max())
