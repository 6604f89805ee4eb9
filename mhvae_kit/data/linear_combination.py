"""How well MR explains ultrasound, place by place: the LC2 similarity, and the search for its best rigid pose.

Ultrasound shows tissue and, brighter, the walls between tissues. In every small window its grey values are fitted by a
linear combination of MR features, so the link between the two images may change from window to window. Mutual
information has one link for the whole fan, and attenuation with depth and noise pull its optimum away from the truth.

Sources:
    Wein et al., Med Image Anal 12 (2008), 577: linear correlation of linear combination (LC2). Wein et al., MICCAI
    2013, and Fuerst et al., Med Image Anal 18 (2014), 1312: MR and the size of its gradient, in windows. Roche et al.,
    IEEE Trans Med Imaging 20 (2001), 1038: a polynomial of the third degree in MR, as bright MR may be dark ultrasound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import optimize

from mhvae_kit.data.coordinates import FLIP, transform_ras

LEVER_MM = 40.0
"""Angles are counted in mm at this distance from the centre, so that all steps of a search are alike."""
LEAST_SHARE = 0.3
"""Share of a window that both images must fill for it to count."""
LEAST_WINDOWS = 3
WEIGHT_POWER = 0.25
"""A window counts by this power of its ultrasound's variance: with 1, as published, one strong edge decides alone.

Edges of ultrasound lie off those of MR by a part of the beam's width, so much weight on them shifts the optimum: along
the beam by 1.0 mm with 1 and by 0.7 mm with 0.25, in the worst of the phantom patients looked at.
"""
RIDGE = 1e-3
"""Added to the features' variances, as a share of their mean: in flat tissue they say nothing."""


@dataclass(frozen=True)
class Level:
    """One resolution: spacing of the grid, side of a window and smoothing of both images, all in mm.

    `tolerance` is the relative gain of LC2 over a round of the search below which it ends.
    """

    spacing_mm: float
    window_mm: float
    smooth_mm: float
    tolerance: float


COARSE = Level(4.0, 20.0, 2.0, 1e-3)
FINE = Level(2.0, 10.0, 0.7, 1e-4)


class LinearCombination:
    """LC2 of one pair of images; 0 = MR explains nothing of the ultrasound, 1 = everything.

    Args:
        fixed: Ultrasound.
        moving: MR.
        mask: The fan, uint8 on the fixed image's grid.
        level: The resolution.
    """

    def __init__(self, fixed: sitk.Image, moving: sitk.Image, mask: sitk.Image, level: Level = FINE) -> None:
        self.level = level
        self._grid = _coarser(fixed, level.spacing_mm)
        inside = sitk.Cast(mask > 0, sitk.sitkFloat32)
        share = sitk.Resample(inside, self._grid, sitk.Transform(), sitk.sitkLinear, 0.0)
        smooth = _smooth_inside(sitk.Cast(fixed, sitk.sitkFloat32), inside, level.smooth_mm)
        self._inside = (sitk.GetArrayFromImage(share) > 0.99).astype(np.float32)
        self._fixed = sitk.GetArrayFromImage(sitk.Resample(smooth, self._grid, sitk.Transform(), sitk.sitkLinear, 0.0))
        self._moving = _features(sitk.Cast(moving, sitk.sitkFloat32), level.smooth_mm)
        side = max(3, round(level.window_mm / level.spacing_mm))
        self._windows = [_windows(n, side) for n in self._fixed.shape]
        self._full = float(np.prod([w.sum(axis=1).max() for w in self._windows]))

    def value(self, transform: sitk.Transform) -> float:
        """LC2, 0 to 1, with MR brought onto the ultrasound by a transform of ultrasound points to MR points."""
        read = sitk.GetArrayFromImage(sitk.Resample(self._moving, self._grid, transform, sitk.sitkLinear, 0.0))
        both = self._inside * (read[..., -1] > 0.99)
        number = max(float(both.sum()), 1.0)
        images = [self._fixed, *np.moveaxis(read[..., :-1], -1, 0)]
        images = [(image - (image * both).sum() / number) * both for image in images]
        pairs = [(i, j) for i in range(len(images)) for j in range(i, len(images))]
        sums = self._sums(np.stack([both, *images, *(images[i] * images[j] for i, j in pairs)]))
        sums = sums[:, sums[0] > LEAST_SHARE * self._full]
        if sums.shape[1] < LEAST_WINDOWS:
            return 0.0
        return _explained(sums, pairs, len(images))

    def _sums(self, stack: np.ndarray) -> np.ndarray:
        """Sums of arrays (C, Z, Y, X) over every window, (C, windows) in float64."""
        for matrix in self._windows[::-1]:  # the last axis is summed and goes to the front of the others
            summed = stack.reshape(-1, stack.shape[3]) @ matrix.T
            stack = np.ascontiguousarray(np.moveaxis(summed.reshape(*stack.shape[:3], -1), 3, 1))
        return stack.reshape(len(stack), -1).astype(np.float64)


def _explained(sums: np.ndarray, pairs: list[tuple[int, int]], n_images: int) -> float:
    """Weighted mean over windows of the share of the first image's variance that the other images explain."""
    mean = sums[1 : 1 + n_images] / sums[0]
    covariance = np.empty((sums.shape[1], n_images, n_images))
    for total, (i, j) in zip(sums[1 + n_images :], pairs, strict=True):
        covariance[:, i, j] = covariance[:, j, i] = total / sums[0] - mean[i] * mean[j]
    features, link = covariance[:, 1:, 1:].copy(), covariance[:, 0, 1:]
    diagonal = np.arange(n_images - 1)
    features[:, diagonal, diagonal] += RIDGE * features[:, diagonal, diagonal].mean(axis=0) + 1e-9
    explained = (link * np.linalg.solve(features, link[..., None])[..., 0]).sum(axis=1)
    variance = np.maximum(covariance[:, 0, 0], 0.0) + 1e-9
    weight = sums[0] * variance**WEIGHT_POWER
    return float((weight * explained / variance).sum() / weight.sum())


def _coarser(image: sitk.Image, spacing_mm: float) -> sitk.Image:
    """An empty grid of cubic voxels over an image, centred on it."""
    spacing = np.array(image.GetSpacing())
    extent = np.array(image.GetSize()) * spacing
    size = np.maximum(np.floor(extent / spacing_mm + 1e-6), 1).astype(int)
    first = (extent - (size - 1) * spacing_mm) / 2 / spacing - 0.5
    grid = sitk.Image(size.tolist(), sitk.sitkUInt8)
    grid.SetSpacing([spacing_mm] * 3)
    grid.SetDirection(image.GetDirection())
    grid.SetOrigin(image.TransformContinuousIndexToPhysicalPoint(first.tolist()))
    return grid


def _smooth_inside(image: sitk.Image, inside: sitk.Image, sigma_mm: float) -> sitk.Image:
    """Gaussian smoothing of what is inside alone: the black around a fan must not darken its rim."""

    def blurred(x: sitk.Image) -> sitk.Image:
        return sitk.Cast(sitk.DiscreteGaussian(x, sigma_mm**2, 32, 0.01, True), sitk.sitkFloat32)

    return sitk.Cast(blurred(image * inside) / (blurred(inside) + 1e-4), sitk.sitkFloat32) * inside


def _features(image: sitk.Image, sigma_mm: float) -> sitk.Image:
    """MR, its square and cube, the size of its gradient, and 1 where there is an image, as one image of vectors."""
    top = float(sitk.GetArrayViewFromImage(image).max()) or 1.0
    unit = sitk.Cast(image / top, sitk.sitkFloat32)
    smooth = sitk.Cast(sitk.SmoothingRecursiveGaussian(unit, sigma_mm), sitk.sitkFloat32)
    edges = sitk.Cast(sitk.GradientMagnitudeRecursiveGaussian(unit, sigma_mm), sitk.sitkFloat32)
    square = smooth * smooth
    return sitk.Compose(smooth, square, smooth * square, edges, sitk.Cast(image * 0 + 1, sitk.sitkFloat32))


def _windows(n: int, side: int) -> np.ndarray:
    """Matrix (windows, n) that sums `side` samples each, half a window apart."""
    starts = range(0, max(n - side, 0) + 1, max(1, side // 2))
    matrix = np.zeros((len(starts), n), np.float32)
    for row, start in zip(matrix, starts, strict=True):
        row[start : start + side] = 1
    return matrix


def nearest_rigid(transform: sitk.Transform, centre: tuple[float, ...]) -> sitk.Euler3DTransform:
    """The rotation of a linear transform, with its shift of the centre: no scales, no shears."""
    lps = FLIP @ transform_ras(transform) @ FLIP
    left, _, right = np.linalg.svd(lps[:3, :3])
    rigid = sitk.Euler3DTransform()
    rigid.SetCenter(centre)
    rigid.SetMatrix((left @ right).ravel().tolist(), 1e-6)
    rigid.SetTranslation((np.array(transform.TransformPoint(centre)) - centre).tolist())
    return rigid


def search(similarity: LinearCombination, start: sitk.Euler3DTransform) -> sitk.Euler3DTransform:
    """Climb to the best LC2 near a rigid start with Powell's method, which needs no derivatives.

    Args:
        similarity: What is climbed.
        start: Where from.
    Returns:
        The rigid transform at the top, about the start's centre.
    """
    centre = start.GetCenter()
    angles = np.array([start.GetAngleX(), start.GetAngleY(), start.GetAngleZ()]) * LEVER_MM
    result = optimize.minimize(
        lambda x: -similarity.value(_pose(x, centre)),
        np.concatenate([angles, start.GetTranslation()]),
        method="Powell",
        options={"xtol": 0.02, "ftol": similarity.level.tolerance, "maxiter": 10},
    )
    return _pose(result.x, centre)


def _pose(x: np.ndarray, centre: tuple[float, ...]) -> sitk.Euler3DTransform:
    """The rigid transform of three angles and three shifts, all in mm."""
    rigid = sitk.Euler3DTransform()
    rigid.SetCenter(centre)
    rigid.SetRotation(*(x[:3] / LEVER_MM).tolist())
    rigid.SetTranslation(x[3:].tolist())
    return rigid
