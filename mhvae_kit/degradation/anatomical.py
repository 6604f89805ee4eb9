"""Defects of place and content: things elsewhere than the label says, missing, or invented."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mhvae_kit.degradation.appearance import STRUCTURE_MM
from mhvae_kit.degradation.geometry import (
    beam_frame,
    filled,
    rigid_px,
    signed_distance_px,
    smooth_noise,
    smoothed,
    warped,
)

if TYPE_CHECKING:
    from mhvae_kit.degradation.operators import Scene

FULL_SHIFT_MM = 10.0
FULL_TURN_RAD = float(np.radians(10.0))
FULL_ELASTIC_MM = 8.0
ELASTIC_SCALE_MM = 10.0
RING_MM = 6.0
"""Width of the surroundings that the tumour is compared with."""
EDGE_MM = 1.5
CORE_MM = 1.5
"""What is finer than a Gaussian of this width stays in a tumour without contrast."""
FULL_BORDER_MM = 6.0
FULL_BORDER_SHIFT_MM = 5.0
FADES_MM = 6.0
FULL_MASSES = 8
MASS_LEVEL = 0.45
N_BEAMS = 48


def draw_dose(rng: np.random.Generator, dose: float, scene: Scene) -> dict[str, Any]:
    """Nothing is left to chance: the dose is the parameter."""
    return {"dose": dose}


def draw_rigid(rng: np.random.Generator, dose: float, scene: Scene) -> dict[str, Any]:
    """Direction of the shift and sense of the turn; their sizes are the dose's.

    They are those of the place that is read: the image itself moves the other way.
    """
    direction = rng.uniform(0, 2 * np.pi)
    shift = FULL_SHIFT_MM * dose
    return {
        "angle_rad": FULL_TURN_RAD * dose * int(rng.choice((-1, 1))),
        "shift_mm": [float(shift * np.sin(direction)), float(shift * np.cos(direction))],
    }


def displaced(scene: Scene, parameters: dict[str, Any]) -> np.ndarray:
    """The image moved as a whole; what the fan then lacks is filled with its nearest pixels."""
    shift = tuple(s / scene.spacing_mm for s in parameters["shift_mm"])
    return warped(filled(scene.images, scene.fov), rigid_px(scene.images.shape, parameters["angle_rad"], shift))


def draw_elastic(rng: np.random.Generator, dose: float, scene: Scene) -> dict[str, Any]:
    """Size of the displacement (root mean square, mm) and the seed of its field."""
    return {"rms_mm": FULL_ELASTIC_MM * dose, "seed": int(rng.integers(2**31))}


def elastic_px(shape: tuple[int, int, int], rms_mm: float, seed: int, spacing_mm: float) -> np.ndarray:
    """A smooth displacement (2, D, H, W) in pixels within the slices, root mean square length `rms_mm`."""
    rng = np.random.default_rng(seed)
    sigma = (ELASTIC_SCALE_MM / spacing_mm,) * 3
    field = np.stack([smooth_noise(rng, shape, sigma) for _ in range(2)])
    return field * np.float32(rms_mm / spacing_mm / np.sqrt(np.mean((field**2).sum(axis=0))))


def elastic(scene: Scene, parameters: dict[str, Any]) -> np.ndarray:
    """The image deformed smoothly."""
    field = elastic_px(scene.images.shape, parameters["rms_mm"], parameters["seed"], scene.spacing_mm)
    return warped(filled(scene.images, scene.fov), field)


def contrast_lost(scene: Scene, parameters: dict[str, Any]) -> np.ndarray:
    """The tumour's structure, cyst and rim included, moved to the mean level of its surroundings; its texture stays."""
    distance = signed_distance_px(scene.labels) * scene.spacing_mm
    ring = (distance > 0) & (distance < RING_MM) & scene.fov
    inside = scene.labels & scene.fov
    if not ring.any() or not inside.any():
        return scene.images
    structure = smoothed(scene.images, scene.fov, CORE_MM / scene.spacing_mm)
    soft = np.clip(0.5 - distance / (2 * EDGE_MM), 0.0, 1.0)
    return scene.images + np.float32(parameters["dose"]) * soft * (scene.images[ring].mean() - structure)


def border_blurred(scene: Scene, parameters: dict[str, Any]) -> np.ndarray:
    """The structure near the border smoothed; its texture stays, so that no smooth ring betrays the border."""
    width = FULL_BORDER_MM * parameters["dose"]
    structure = smoothed(scene.images, scene.fov, 1.0 / scene.spacing_mm)
    wide = smoothed(scene.images, scene.fov, width / scene.spacing_mm)
    near = np.exp(-0.5 * (signed_distance_px(scene.labels) * scene.spacing_mm / max(width, 1e-6)) ** 2)
    return scene.images + near * (wide - structure)


def draw_border_shift(rng: np.random.Generator, dose: float, scene: Scene) -> dict[str, Any]:
    """How far the border moves outwards (positive) or inwards, in mm."""
    return {"shift_mm": FULL_BORDER_SHIFT_MM * dose * int(rng.choice((-1, 1)))}


def border_shifted(scene: Scene, parameters: dict[str, Any]) -> np.ndarray:
    """The image pushed along the normal of the tumour's border, less with distance from where the border then lies."""
    distance = signed_distance_px(scene.labels)
    rows, columns = np.gradient(distance, axis=(1, 2))
    shift = np.float32(parameters["shift_mm"] / scene.spacing_mm)
    reach = np.exp(-0.5 * ((distance - shift) * scene.spacing_mm / FADES_MM) ** 2)
    push = shift * reach  # the whole shift where the moved border lies, so that the old border is read there
    # The result at p is read at p - push * normal: what was at the border is then seen further out.
    return warped(filled(scene.images, scene.fov), np.stack([-push * rows, -push * columns]))


def draw_hallucinated(rng: np.random.Generator, dose: float, scene: Scene) -> dict[str, Any]:
    """Place (slice, row, column) and half axes (mm) of each false mass.

    The place is at least `RING_MM` from the tumour's outline in its slice; a large mass may still reach into the tumour
    with its edge, also from a neighbouring slice.
    """
    distance = signed_distance_px(scene.labels) * scene.spacing_mm
    allowed = np.argwhere(scene.fov & (distance > RING_MM))
    masses = []
    for _ in range(round(FULL_MASSES * dose) if len(allowed) else 0):
        place = allowed[rng.integers(len(allowed))]
        masses.append({"place": [int(p) for p in place], "half_axes_mm": [float(a) for a in rng.uniform(4.0, 9.0, 3)]})
    return {"masses": masses, "level": MASS_LEVEL}


def hallucinated(scene: Scene, parameters: dict[str, Any]) -> np.ndarray:
    """Bright masses with soft borders where there is nothing; the speckle goes through them."""
    grids = np.ogrid[tuple(slice(0, n) for n in scene.images.shape)]
    out = scene.images.copy()
    for mass in parameters["masses"]:
        axes = zip(grids, mass["place"], mass["half_axes_mm"], strict=True)
        radius = np.sqrt(sum(((g - p) * scene.spacing_mm / a) ** 2 for g, p, a in axes))
        out += np.float32(parameters["level"]) * np.clip((1.0 - radius) / 0.3 + 0.5, 0.0, 1.0).astype(np.float32)
    return out


def shadows_missing(scene: Scene, parameters: dict[str, Any]) -> np.ndarray:
    """Shadows filled: a shadow is where a beam, from there down to the end of the fan, stays below its depth's mean."""
    structure = smoothed(scene.images, scene.fov, STRUCTURE_MM / scene.spacing_mm)
    out = scene.images.copy()
    for k in np.flatnonzero(scene.fov.any(axis=(1, 2))):
        lift = shadow_depth(structure[k], scene.fov[k])
        out[k] += np.float32(parameters["dose"]) * lift
    return out


def shadow_depth(structure: np.ndarray, fov: np.ndarray) -> np.ndarray:
    """How much darker than the means of their depths a beam is at least, from a pixel down to its end; 0 if it is not.

    Args:
        structure: One slice (H, W) without speckle.
        fov: Its fan, bool.
    Returns:
        (H, W) float32, at least 0.
    """
    depth, angle = beam_frame(fov)
    row = np.where(fov, depth, 0.0).astype(int)
    half = float(np.abs(angle[fov]).max()) + 1e-6
    beam = np.clip(((angle + half) / (2 * half) * N_BEAMS).astype(int), 0, N_BEAMS - 1)
    n_rows = int(row[fov].max()) + 1
    total, count = np.zeros((n_rows, N_BEAMS)), np.zeros((n_rows, N_BEAMS))
    np.add.at(total, (row[fov], beam[fov]), structure[fov])
    np.add.at(count, (row[fov], beam[fov]), 1)
    profile = total.sum(axis=1) / np.maximum(count.sum(axis=1), 1)
    level = np.where(count > 0, total / np.maximum(count, 1), -np.inf)
    below = np.where(np.isfinite(level), level - profile[:, None], -np.inf)
    brightest = np.maximum.accumulate(below[::-1], axis=0)[::-1]  # from each depth down to the end of the beam
    lift = np.where(np.isfinite(brightest), np.maximum(-brightest, 0.0), 0.0)
    return np.where(fov, lift[row, beam], 0.0).astype(np.float32)
