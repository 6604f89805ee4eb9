"""The anatomy every patient is made from: MNI152 tissue maps of the nilearn wheel, turned into sampling volumes."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from scipy import ndimage

from mhvae_kit.files import atomic_path

FILE_NAME = "atlas-v1.npz"
VENTRICLES = [(s * x, y, z) for s in (-1, 1) for x, y, z in ((9, 5, 19), (9, -10, 22), (30, -10, -21))]
"""Points (MNI mm) in the bodies and temporal horns of the lateral ventricles; the thin third one stays a cistern."""

DISTANCE_SCALE = 5.0
"""Steps of the stored hull distance per mm."""


@dataclass(frozen=True)
class Atlas:
    """Sampling volumes on one 1 mm grid, 8-bit so that they load and interpolate fast.

    Attributes:
        grey, white, ventricle, falx: Share of the voxel, 255 = all of it. Sulcal fluid is what is left inside.
        hull: Signed distance to the outside of the brain in mm, stored as 128 + 5 * mm (positive outside, clipped).
        origin_mm: MNI coordinates (RAS) of voxel (0, 0, 0); the axes are those of MNI, 1 mm apart.
    """

    grey: np.ndarray
    white: np.ndarray
    ventricle: np.ndarray
    falx: np.ndarray
    hull: np.ndarray
    origin_mm: np.ndarray


def build_atlas() -> Atlas:
    """Make the sampling volumes from nilearn's MNI152 maps (offline: they are in the wheel). About 6 s.

    Source:
        ICBM 152 nonlinear symmetric 2009a (Fonov et al., NeuroImage 54, 2011), as packaged by nilearn.
    """
    from nilearn import datasets

    image = datasets.load_mni152_gm_template(resolution=1)
    grey = np.asarray(image.dataobj, dtype=np.float32)
    white = np.asarray(datasets.load_mni152_wm_template(resolution=1).dataobj, dtype=np.float32)
    inside = np.asarray(datasets.load_mni152_brain_mask(resolution=1).dataobj) > 0
    box = tuple(slice(max(int(i.min()) - 12, 0), int(i.max()) + 13) for i in np.nonzero(inside))
    grey, white, inside = grey[box], white[box], inside[box]
    origin = np.asarray(image.affine[:3, 3] + [s.start for s in box], dtype=np.float64)

    # The average of many brains has blurred sulci: their share of fluid is raised to what one brain would show.
    closed = ndimage.binary_closing(inside, iterations=10)  # the mask has holes at the basal cisterns
    depth = ndimage.distance_transform_edt(closed).astype(np.float32)
    fluid = np.clip(1.0 - grey - white, 0.0, 1.0) * inside
    ventricle = fluid * ndimage.gaussian_filter(_ventricle_region(fluid, depth, origin).astype(np.float32), 0.6)
    sulci = np.clip(2.4 * np.maximum(fluid - ventricle - 0.03, 0.0), 0.0, 1.0)
    falx = _falx(grey, white, ventricle, inside, origin)
    tissue = np.maximum(grey + white, 1e-3)
    rest = np.clip(1.0 - sulci - ventricle, 0.0, 1.0) * (1.0 - falx) * inside
    sharp = white**2 / (white**2 + grey**2 + 1e-6)
    share = 0.5 * white / tissue + 0.5 * sharp
    outside = ndimage.distance_transform_edt(~inside).astype(np.float32)
    hull = np.where(inside, 0.5 - depth, outside - 0.5)
    hull = ndimage.gaussian_filter(hull, 0.7)
    return Atlas(
        grey=_bytes(rest * (1.0 - share)),
        white=_bytes(rest * share),
        ventricle=_bytes(ventricle * (1.0 - falx)),
        falx=_bytes(falx),
        hull=np.clip(np.round(128.0 + DISTANCE_SCALE * hull), 0, 255).astype(np.uint8),
        origin_mm=origin,
    )


def _bytes(share: np.ndarray) -> np.ndarray:
    return np.round(255.0 * np.clip(share, 0.0, 1.0)).astype(np.uint8)


def _ventricle_region(fluid: np.ndarray, depth: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Deep fluid spaces connected to the lateral ventricles, two voxels wider than their bright part."""
    candidate = (fluid > 0.5) & (depth > 14)  # basal cisterns and fissures, which echo like sulci, stay apart
    labels, _ = ndimage.label(candidate)
    seeds = [np.round(np.array([x, y, z]) - origin).astype(int) for x, y, z in VENTRICLES]
    region = np.zeros(fluid.shape, dtype=bool)
    for seed in seeds:
        near = labels[tuple(slice(s - 4, s + 5) for s in seed)]
        for label in np.unique(near[near > 0]):
            region |= labels == label
    return ndimage.binary_dilation(region, iterations=2)


def _falx(
    grey: np.ndarray, white: np.ndarray, ventricle: np.ndarray, inside: np.ndarray, origin: np.ndarray
) -> np.ndarray:
    """A sheet 1.5 mm thick in the midline plane, from the vault down to 5 mm above the corpus callosum."""
    middle = round(-origin[0])
    plane = ndimage.binary_dilation((white[middle] > 0.3) | (ventricle[middle] > 0.2), iterations=5)
    z = np.arange(grey.shape[2]) + origin[2]
    blocked = np.maximum.accumulate((plane | ~inside[middle] & (z < 20))[:, ::-1], axis=1)[:, ::-1]
    sheet = inside[middle] & ~blocked & (z > -5)
    profile = np.exp(-0.5 * ((np.arange(grey.shape[0]) + origin[0]) / 0.8) ** 2)
    return profile[:, None, None].astype(np.float32) * ndimage.gaussian_filter(sheet.astype(np.float32), 0.7)


_loaded: list[Atlas] = []
"""The atlas of this process, once it is there: it is the same whichever folder it came from."""


def load_atlas(folder: str | Path) -> Atlas:
    """The atlas, made on first use and kept as one file in `folder`."""
    if not _loaded:
        path = Path(folder) / FILE_NAME
        _loaded.append(_read(path) or _make(path))
    return _loaded[0]


def _read(path: Path) -> Atlas | None:
    """The kept atlas; None if there is none or it is damaged, as it can be made again from the wheel."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Atlas(**{field.name: stored[field.name] for field in fields(Atlas)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _make(path: Path) -> Atlas:
    atlas = build_atlas()
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **{field.name: getattr(atlas, field.name) for field in fields(Atlas)})
    return atlas
