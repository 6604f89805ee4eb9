"""A made patient: a fan, layers with speckle, a bright tumour and a shadow, so that every defect has what it spoils."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from mhvae_kit.degradation import Scene

SIDE, DEPTH = 80, 6
APEX_ROW, MIDDLE, HALF_ANGLE = -20.0, (SIDE - 1) / 2, np.radians(22.0)
RADII = (25.0, 95.0)


def beam_of(side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Radius and angle of each pixel seen from the fan's apex."""
    rows, columns = np.mgrid[0:side, 0:side]
    return np.hypot(rows - APEX_ROW, columns - MIDDLE), np.arctan2(columns - MIDDLE, rows - APEX_ROW)


def fan_of(side: int = SIDE) -> np.ndarray:
    """One slice of an ideal fan."""
    radius, angle = beam_of(side)
    return (radius >= RADII[0]) & (radius <= RADII[1]) & (np.abs(angle) <= HALF_ANGLE)


def discs(row: float, column: float, radius: float, depth: int = DEPTH) -> np.ndarray:
    """The same disc in every slice but the first and the last."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    label = np.repeat((np.hypot(rows - row, columns - column) <= radius)[None], depth, axis=0)
    label[[0, -1]] = False
    return label


def made_scene() -> Scene:
    """Read-only arrays: an operator that writes into its input fails."""
    rng = np.random.default_rng(0)
    fov = np.repeat(fan_of()[None], DEPTH, axis=0)
    labels = discs(40, 44, 9)
    _, angle = beam_of()
    rows = np.arange(SIDE)[None, :, None]
    image = 0.15 * np.sin(rows / 5.0) + np.where(labels, 0.45, -0.1)
    image = image - 0.4 * ((angle < -0.2) & (angle > -0.32) & (rows > 30))
    speckle = ndimage.gaussian_filter(rng.standard_normal(labels.shape), (0, 0.8, 0.8))
    image = np.clip(image + 0.15 * speckle / speckle.std(), -0.95, 0.95)
    arrays = (np.where(fov, image, -1.0).astype(np.float32), labels & fov, fov)
    for array in arrays:
        array.flags.writeable = False
    return Scene(*arrays, spacing_mm=1.0)
