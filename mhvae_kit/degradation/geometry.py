"""Small tools on volumes (D, H, W): smooth fields, warps that leave the fan filled, distances, and the beam's frame."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

BACKGROUND = np.float32(-1.0)
LOWEST = np.float32(1 / 127.5 - 1)
"""Grey level 1, the lowest inside the fan: level 0 is outside of it."""


def framed(image: np.ndarray, fov: np.ndarray) -> np.ndarray:
    """The image clipped to grey levels 1 to 255 of stored images inside the fan, and -1 outside, float32."""
    return np.where(fov, np.clip(image, LOWEST, 1.0), BACKGROUND).astype(np.float32)


def filled(image: np.ndarray, fov: np.ndarray) -> np.ndarray:
    """The image with the nearest value of the fan written everywhere outside it, slice by slice."""
    out = np.array(image, dtype=np.float32)
    for k in range(len(out)):
        if fov[k].any() and not fov[k].all():
            nearest = ndimage.distance_transform_edt(~fov[k], return_distances=False, return_indices=True)
            out[k] = out[k][tuple(nearest)]
    return out


def smoothed(image: np.ndarray, fov: np.ndarray, sigma_px: float) -> np.ndarray:
    """Gaussian smoothing within each slice of what lies in the fan; what lies outside has no weight."""
    sigma = (0.0, sigma_px, sigma_px)
    weight = ndimage.gaussian_filter(fov.astype(np.float32), sigma)
    total = ndimage.gaussian_filter(np.where(fov, image, 0.0).astype(np.float32), sigma)
    return np.where(fov, total / np.maximum(weight, 1e-6), image).astype(np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma_px: tuple[float, ...]) -> np.ndarray:
    """A Gaussian random field of mean 0 and standard deviation 1 with the given correlation, float32."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma_px, mode="reflect")
    return ((field - field.mean()) / max(float(field.std()), 1e-12)).astype(np.float32)


def warped(volume: np.ndarray, displacement_px: np.ndarray, *, order: int = 1) -> np.ndarray:
    """The volume read at displaced places within its slices.

    Args:
        volume: (D, H, W).
        displacement_px: Rows and columns, (2, D, H, W): the result at p is the volume at p + displacement.
        order: 1 for images, 0 for labels.
    """
    depth, height, width = volume.shape
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    out = np.empty_like(volume)
    for k in range(depth):
        places = [rows + displacement_px[0, k], columns + displacement_px[1, k]]
        out[k] = ndimage.map_coordinates(volume[k], places, order=order, mode="nearest")
    return out


def rigid_px(shape: tuple[int, int, int], angle_rad: float, shift_px: tuple[float, float]) -> np.ndarray:
    """Displacement (2, D, H, W) of a turn about the slice's centre and a shift, the same in every slice."""
    depth, height, width = shape
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    rows -= (height - 1) / 2
    columns -= (width - 1) / 2
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    moved = np.stack([c * rows - s * columns - rows + shift_px[0], s * rows + c * columns - columns + shift_px[1]])
    return np.broadcast_to(moved[:, None], (2, depth, height, width)).astype(np.float32)


def signed_distance_px(label: np.ndarray) -> np.ndarray:
    """Distance to the label's border within each slice: negative inside, positive outside; large where it is absent."""
    out = np.full(label.shape, float(max(label.shape[1:])), dtype=np.float32)
    for k in np.flatnonzero(label.any(axis=(1, 2))):
        outside = ndimage.distance_transform_edt(~label[k])
        inside = ndimage.distance_transform_edt(label[k])
        out[k] = np.where(label[k], 0.5 - inside, outside - 0.5)
    return out


def beam_frame(fov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of a slice lies in the beam's frame, from the fan's own outline.

    The apex is where the fan's two straight sides meet. They are fitted to its outermost columns at each row.

    Args:
        fov: One slice (H, W), bool, with a fan in it.
    Returns:
        Depth below the fan's top in pixels, and angle in radians from the middle beam, (H, W) float32 each.
    """
    rows = np.flatnonzero(fov.any(axis=1))
    left = np.array([np.argmax(fov[r]) for r in rows], dtype=float)
    right = np.array([fov.shape[1] - 1 - np.argmax(fov[r, ::-1]) for r in rows], dtype=float)
    width, middle = right - left, float(np.mean((left + right) / 2))
    upper = slice(len(rows) // 8, max(len(rows) // 8 + 2, len(rows) * 5 // 8))  # below it the arc cuts the sides
    grows, start = np.polyfit(rows[upper], width[upper], 1) if len(rows) > 4 else (0.0, float(width.mean()))
    apex = -start / grows if grows > 1e-3 else rows[0] - 1e4
    r, c = np.mgrid[0 : fov.shape[0], 0 : fov.shape[1]].astype(np.float32)
    radius = np.hypot(r - apex, c - middle)
    angle = np.arctan2(c - middle, r - apex)
    return (radius - radius[fov].min()).astype(np.float32), angle.astype(np.float32)
