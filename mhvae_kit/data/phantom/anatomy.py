"""A patient's geometry: where the tumour lies, where the probe stands, and which tissue fills each voxel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from .atlas import DISTANCE_SCALE, Atlas
from .fields import Grid, smooth_field

TISSUES = ("grey", "white", "csf", "ventricle", "falx", "dura", "bone")
SUBARACHNOID_MM = 1.2
DURA_MM = 1.6


@dataclass(frozen=True)
class Pose:
    """Where the probe stands.

    Attributes:
        face_mm: Centre of the probe's face, MNI coordinates.
        axes: Columns: unit vectors of depth, lateral and elevation, MNI coordinates.
        tumour_mm: Centre of the tumour in the probe's frame (depth, lateral, elevation).
    """

    face_mm: np.ndarray
    axes: np.ndarray
    tumour_mm: np.ndarray


@dataclass(frozen=True)
class Similarity:
    """World (patient) coordinates from MNI coordinates: scale * rotation @ x + shift."""

    rotation: np.ndarray
    scale: float
    shift_mm: np.ndarray


def draw_similarity(rng: np.random.Generator) -> Similarity:
    """Pose and size of the head: up to about 10 degrees about each axis, 6 % in size."""
    rotation = Rotation.from_euler("xyz", rng.uniform(-10, 10, size=3), degrees=True).as_matrix()
    return Similarity(rotation, float(rng.uniform(0.94, 1.06)), rng.uniform(-10, 10, size=3))


def sample(atlas: Atlas, name: str, points_mm: np.ndarray) -> np.ndarray:
    """Trilinear value of an atlas volume at MNI points, float32. `points_mm` is (3, ...)."""
    index = points_mm - atlas.origin_mm.astype(points_mm.dtype).reshape(3, *[1] * (points_mm.ndim - 1))
    outside = 255.0 if name == "hull" else 0.0
    return ndimage.map_coordinates(getattr(atlas, name), index, np.float32, order=1, mode="constant", cval=outside)


def hull_mm(atlas: Atlas, points_mm: np.ndarray) -> np.ndarray:
    """Signed distance to the surface of the brain in mm at MNI points: negative inside."""
    return (sample(atlas, "hull", points_mm) - 128.0) / DISTANCE_SCALE


def draw_pose(rng: np.random.Generator, atlas: Atlas, radius_mm: float) -> Pose:
    """Draw a tumour site in the cerebrum, then a probe on the convexity near it that looks at it.

    Args:
        rng: Source of the draw.
        atlas: The anatomy.
        radius_mm: Radius of the tumour, which keeps it inside the brain and clear of the probe.
    """
    while True:
        site = rng.uniform((-62.0, -85.0, -2.0), (62.0, 52.0, 68.0))
        depth = -float(hull_mm(atlas, site[:, None])[0])
        white = float(sample(atlas, "white", site[:, None])[0])
        if depth > 0.9 * radius_mm + 4 and depth < 34 and white > 90 and abs(site[0]) > 12:
            break
    # Candidate ways out: the shortest one that leaves through the convexity is where a surgeon would open.
    way = rng.standard_normal((96, 3))
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    steps = np.arange(2.0, 90.0, 1.5)
    points = site + steps[None, :, None] * way[:, None, :]
    out = hull_mm(atlas, np.moveaxis(points, -1, 0)) > 0
    length = np.where(out.any(axis=1), steps[out.argmax(axis=1)], 1e3)
    exits = site + length[:, None] * way
    cost = length + 2.0 * np.clip(25.0 - exits[:, 2], 0, None) + 1e3 * (np.sign(exits[:, 0]) != np.sign(site[0]))
    far = hull_mm(atlas, np.moveaxis(exits - 65.0 * way, -1, 0))  # the view should hold brain, not the other side
    best = int(np.argmin(cost + 1.5 * np.clip(far + 8.0, 0, None)))
    face, inward = exits[best], -way[best]
    tilt = Rotation.from_rotvec(np.radians(np.clip(rng.normal(0.0, 9.0, size=3), -16, 16))).as_matrix()
    inward = tilt @ inward
    across = rng.standard_normal(3)
    across -= inward * (across @ inward)
    across /= np.linalg.norm(across)
    axes = np.stack([inward, across, np.cross(inward, across)], axis=1)
    return Pose(face, axes, axes.T @ (site - face))


def deformation_mm(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """Smooth displacement (3, H, W, D) in mm: differences between brains, coarse (4 mm) and at the scale of gyri."""
    coarse = [4.0 * smooth_field(rng, grid, 40.0) for _ in range(3)]
    fine = [1.3 * smooth_field(rng, grid, 13.0) for _ in range(3)]
    return np.stack([a + b for a, b in zip(coarse, fine, strict=True)])


def settle(atlas: Atlas, pose: Pose, displacement: np.ndarray, grid: Grid) -> Pose:
    """Move the probe along its beam until its face touches the dura of the deformed brain."""
    row = int(np.argmin(np.abs(grid.depth_mm)))
    shift = displacement[:, row, grid.shape[1] // 2, grid.shape[2] // 2].astype(np.float64)
    steps = np.arange(-25.0, 25.0, 0.25)
    points = (pose.face_mm + shift)[:, None] + pose.axes[:, :1] * steps
    outside = hull_mm(atlas, points) > SUBARACHNOID_MM + 0.5 * DURA_MM
    touching = float(steps[outside][-1]) if outside[steps < 8].any() else 0.0
    if touching > 8.0:  # the far side of a thin part: stand where the beam first leaves the brain instead
        touching = float(steps[outside & (steps < 8)][-1])
    return Pose(pose.face_mm + touching * pose.axes[:, 0], pose.axes, pose.tumour_mm - np.array([touching, 0, 0]))


def voxel_points(pose: Pose, grid: Grid) -> np.ndarray:
    """MNI coordinates (3, H, W, D) of the voxel centres before any deformation, float32."""
    depth = pose.axes[:, 0, None] * grid.depth_mm
    lateral = pose.axes[:, 1, None] * grid.lateral_mm
    elevation = pose.axes[:, 2, None] * grid.elevation_mm
    points = (pose.face_mm[:, None] + depth)[:, :, None, None] + lateral[:, None, :, None]
    return (points + elevation[:, None, None, :]).astype(np.float32)


def tissue_maps(atlas: Atlas, points_mm: np.ndarray) -> dict[str, np.ndarray]:
    """Share of each healthy tissue in every voxel, float32 (H, W, D); they add up to 1.

    Args:
        atlas: The anatomy.
        points_mm: MNI coordinates (3, H, W, D) after deformation.
    """
    maps = {name: sample(atlas, name, points_mm) / np.float32(255.0) for name in ("grey", "white", "ventricle", "falx")}
    distance = hull_mm(atlas, points_mm)
    inside = np.clip(0.5 - (distance - SUBARACHNOID_MM), 0.0, 1.0)
    below_bone = np.clip(0.5 - (distance - SUBARACHNOID_MM - DURA_MM), 0.0, 1.0)
    maps["csf"] = np.clip(inside - sum(maps.values()), 0.0, 1.0)
    maps["dura"] = below_bone - inside
    maps["bone"] = 1.0 - below_bone
    total = sum(maps.values())
    return {name: maps[name] / total for name in TISSUES}


def affine_mm(pose: Pose, similarity: Similarity, grid: Grid) -> np.ndarray:
    """Voxel index to world (RAS) coordinates in mm, (4, 4): oblique, with the grid's spacing exactly."""
    axes = similarity.rotation @ pose.axes
    first = np.array([grid.depth_mm[0], grid.lateral_mm[0], grid.elevation_mm[0]])
    face = similarity.scale * similarity.rotation @ pose.face_mm + similarity.shift_mm
    affine = np.eye(4)
    affine[:3, :3] = axes * grid.spacing_mm
    affine[:3, 3] = face + axes @ first
    return affine
