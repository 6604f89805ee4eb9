"""The probe's voxel grid, and smooth random fields on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

FACE_ROW_MM = 3.0
"""Depth of the image above the centre of the probe's face."""


@dataclass(frozen=True)
class Grid:
    """The regular voxel grid in the probe's frame: axis 0 depth, axis 1 lateral, axis 2 elevation.

    Attributes:
        shape: (H, W, D).
        spacing_mm: Size of the cubic voxels.
    """

    shape: tuple[int, int, int]
    spacing_mm: float

    @property
    def depth_mm(self) -> np.ndarray:
        """Depth of each row below the centre of the probe's face, (H,)."""
        return np.arange(self.shape[0]) * self.spacing_mm - FACE_ROW_MM

    @property
    def lateral_mm(self) -> np.ndarray:
        """Lateral position of each column, 0 in the middle, (W,)."""
        return (np.arange(self.shape[1]) - (self.shape[1] - 1) / 2) * self.spacing_mm

    @property
    def elevation_mm(self) -> np.ndarray:
        """Position of each slice, 0 in the middle, (D,)."""
        return (np.arange(self.shape[2]) - (self.shape[2] - 1) / 2) * self.spacing_mm


def _spline_basis(position: np.ndarray, n: int) -> np.ndarray:
    """Cubic B-spline weights (len(position), n) of control points 0 .. n-1, scaled to keep unit variance on average."""
    distance = np.abs(position[:, None] - np.arange(n)[None])
    inner = 2 / 3 - distance**2 + distance**3 / 2
    outer = np.clip(2 - distance, 0, None) ** 3 / 6
    weights = np.where(distance < 1, inner, outer)
    return weights / np.sqrt((weights**2).sum(axis=1).mean())


@lru_cache(maxsize=64)
def _bases(grid: Grid, scale_mm: float) -> tuple[np.ndarray, ...]:
    """One basis an axis. The control points cover the same millimetres in every preset."""
    half = (60.0, 60.0, 18.0)  # centred box that holds the field of every preset
    centre = (45.0, 0.0, 0.0)
    bases = []
    for axis, middle, reach in zip((grid.depth_mm, grid.lateral_mm, grid.elevation_mm), centre, half, strict=True):
        n = int(2 * reach / scale_mm) + 5
        bases.append(_spline_basis((axis - middle + reach) / scale_mm + 1.5, n))
    return tuple(bases)


def smooth_field(rng: np.random.Generator, grid: Grid, scale_mm: float) -> np.ndarray:
    """A smooth Gaussian random field of mean 0 and variance 1, float32 (H, W, D).

    Args:
        rng: Source of the control values; their number depends on `scale_mm` only, so that a patient's fields are the
            same at every resolution.
        grid: Where to evaluate it.
        scale_mm: Distance of the control points: structures are about twice as large.
    """
    rows, columns, slices = _bases(grid, scale_mm)
    control = rng.standard_normal((rows.shape[1], columns.shape[1], slices.shape[1]))
    field = np.tensordot(control, slices, axes=(2, 1))
    field = np.tensordot(rows, field, axes=(1, 0))
    return np.matmul(columns.astype(np.float32), field.astype(np.float32))
