"""The tumour: an irregular core with a rim, sometimes a cyst or calcifications, and oedema around it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from .fields import Grid, smooth_field

TUMOUR_TISSUES = ("oedema", "tumour", "rim", "cyst", "calcification")


@dataclass(frozen=True)
class Tumour:
    """Drawn parameters of a tumour.

    Attributes:
        radius_mm: Mean radius of the core.
        aspect: Half axes relative to the radius, in the probe's frame.
        irregularity: Standard deviation of the border relative to the radius.
        oedema_mm: Mean width of the oedema; 0 for none.
        cyst: Radius of the cyst relative to the core; 0 for none.
        rim_mm: Width of the enhancing rim; 0 for a tumour that does not enhance.
        calcified: Whether it has calcifications.
        contrast: Standard-normal draw that moves T2 signal and echogenicity together: a wet tumour is bright in T2 and
            less echogenic.
        mass_mm: How far it pushes the brain around it.
    """

    radius_mm: float
    aspect: tuple[float, float, float]
    irregularity: float
    oedema_mm: float
    cyst: float
    rim_mm: float
    calcified: bool
    contrast: float
    mass_mm: float

    def describe(self) -> dict[str, object]:
        """The parameters as JSON types."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def draw_tumour(rng: np.random.Generator) -> Tumour:
    """Draw a tumour's parameters."""
    radius = float(rng.uniform(9.0, 19.0))
    return Tumour(
        radius_mm=radius,
        aspect=tuple(float(a) for a in rng.uniform(0.8, 1.2, size=3)),
        irregularity=float(rng.uniform(0.08, 0.2)),
        oedema_mm=float(rng.uniform(3.0, 10.0)) if rng.random() < 0.8 else 0.0,
        cyst=float(rng.uniform(0.35, 0.65)) if rng.random() < 0.45 else 0.0,
        rim_mm=float(rng.uniform(2.0, 4.0)) if rng.random() < 0.7 else 0.0,
        calcified=bool(rng.random() < 0.25),
        contrast=float(np.clip(rng.standard_normal(), -2, 2)),
        mass_mm=float(rng.uniform(0.1, 0.3) * radius),
    )


def radial_frame(tumour: Tumour, centre_mm: np.ndarray, grid: Grid) -> tuple[np.ndarray, list[np.ndarray]]:
    """Elliptic distance to the tumour's centre in mm (H, W, D), and the three offsets, broadcastable to it."""
    offsets = [
        (axis - centre).astype(np.float32).reshape([-1 if i == k else 1 for i in range(3)])
        for k, (axis, centre) in enumerate(
            zip((grid.depth_mm, grid.lateral_mm, grid.elevation_mm), centre_mm, strict=True)
        )
    ]
    distance = np.sqrt(sum((o / np.float32(a)) ** 2 for o, a in zip(offsets, tumour.aspect, strict=True)))
    return distance, offsets


def mass_effect(tumour: Tumour, distance: np.ndarray, offsets: list[np.ndarray], axes: np.ndarray) -> np.ndarray:
    """Displacement (3, H, W, D) of the sampling points in MNI coordinates: tissue is pushed outwards.

    A voxel shows the tissue that was nearer to the centre; the effect fades within about a radius beyond the border.
    """
    strength = tumour.mass_mm * np.exp(-0.5 * ((distance - tumour.radius_mm) / (0.8 * tumour.radius_mm)) ** 2)
    scale = strength / np.maximum(distance, 1.0)
    inwards = [-scale * o for o in offsets]
    return np.stack([sum(np.float32(axes[i, k]) * inwards[k] for k in range(3)) for i in range(3)])


def tumour_maps(
    rng: np.random.Generator, tumour: Tumour, distance: np.ndarray, maps: dict[str, np.ndarray], grid: Grid
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Put the tumour into the tissue maps.

    Args:
        rng: Source of the irregular borders.
        tumour: Its parameters.
        distance: Elliptic distance to its centre in mm, (H, W, D).
        maps: Healthy tissue shares; not modified.
        grid: The voxel grid.
    Returns:
        Tissue shares of all classes, adding up to 1; the label (uint8, 1 inside the core, rim and cyst); and the
        heterogeneity, a field of variance about 1 in the solid tumour and 0 elsewhere.
    """
    border = (
        tumour.irregularity
        * tumour.radius_mm
        * (0.85 * smooth_field(rng, grid, 9.0) + 0.5 * smooth_field(rng, grid, 5.0))
    )
    wide = smooth_field(rng, grid, 12.0)
    fine = smooth_field(rng, grid, 4.5)
    # It grows in brain, not through fluid, falx or dura.
    brain = np.clip(1.5 * (maps["grey"] + maps["white"] + 0.6 * maps["csf"] * (distance < tumour.radius_mm)), 0, 1)
    depth = tumour.radius_mm - distance + border  # mm inside the border, positive inside
    core = _edge(depth) * brain
    cyst = 0 * core
    if tumour.cyst:
        wall = (1 - tumour.cyst) * tumour.radius_mm
        cyst = _edge(depth - wall + 1.2 * fine + 0.2 * tumour.radius_mm * wide) * core
    rim = _edge(tumour.rim_mm - depth) * (core - cyst) if tumour.rim_mm else 0 * core
    oedema = _oedema(tumour, depth, wide, maps["white"]) * (1 - core) if tumour.oedema_mm else 0 * core
    calcium = np.clip(2.0 * (fine - 2.0), 0, 1) * (core - cyst) if tumour.calcified else 0 * core
    new = {"cyst": cyst, "rim": rim, "oedema": oedema, "calcification": calcium}
    new["tumour"] = core - cyst - rim
    new["rim"], new["tumour"] = new["rim"] * (1 - calcium), new["tumour"] * (1 - calcium)
    left = np.clip(1 - sum(new.values()), 0, 1) / np.maximum(sum(maps.values()), 1e-6)
    filled = {name: share * left for name, share in maps.items()} | {k: new[k] for k in TUMOUR_TISSUES}
    heterogeneity = (core - cyst) * smooth_field(rng, grid, 3.5)
    return filled, (core > 0.5).astype(np.uint8), heterogeneity


def _oedema(tumour: Tumour, depth_mm: np.ndarray, wide: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Share of oedema around a border: it follows white matter and reaches further on some sides than on others."""
    reach_mm = tumour.oedema_mm * np.clip(1 + 0.5 * wide, 0.1, None)
    return np.clip(0.5 + (depth_mm + reach_mm) / 3.0, 0, 1) * np.clip(1.3 * white, 0, 1)


def _edge(depth_mm: np.ndarray) -> np.ndarray:
    """Share of a voxel inside a border, from the depth below it: a ramp 1.2 mm wide."""
    return np.clip(0.5 + depth_mm / 1.2, 0.0, 1.0)
