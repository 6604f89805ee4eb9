"""Defects of texture and intensity: what the image looks like, not where things are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from mhvae_kit.degradation.geometry import beam_frame, filled, smooth_noise, smoothed

if TYPE_CHECKING:
    from mhvae_kit.degradation.operators import Scene

FULL_BLUR_MM = 3.0
FULL_SPECKLE_DB = 8.0
RANGE_DB = 40.0
"""What -1 to 1 stands for in the phantom's ultrasound."""
GRAIN_MM = 0.8
"""Standard deviation of the correlation of added speckle, near the phantom's own grain."""
STRUCTURE_MM = 3.0
"""What is finer than a Gaussian of this width is texture."""
FULL_GRAIN = 3.0
FULL_GAIN = 0.6
FULL_ATTENUATION = 1.2


def draw_blur(rng: np.random.Generator, dose: float, scene: Scene) -> dict[str, Any]:
    """Standard deviation of the blur, in mm."""
    return {"sigma_mm": FULL_BLUR_MM * dose}


def blur(scene: Scene, parameters: dict[str, Any]) -> np.ndarray:
    """The image without what is finer than the blur."""
    return smoothed(scene.images, scene.fov, parameters["sigma_mm"] / scene.spacing_mm)


def draw_excess_speckle(rng: np.random.Generator, dose: float, scene: Scene) -> dict[str, Any]:
    """Spread of the added pattern in dB, and its seed."""
    return {"spread_db": FULL_SPECKLE_DB * dose, "seed": int(rng.integers(2**31))}


def excess_speckle(scene: Scene, parameters: dict[str, Any]) -> np.ndarray:
    """A second pattern multiplied onto the first: added in the logarithm, of Rayleigh shape and mean 0."""
    rng = np.random.default_rng(parameters["seed"])
    sigma = (0.0, GRAIN_MM / scene.spacing_mm, GRAIN_MM / scene.spacing_mm)
    parts = [smooth_noise(rng, scene.images.shape, sigma) for _ in range(2)]
    pattern = np.log(np.hypot(*parts) + 1e-3)
    pattern = (pattern - pattern.mean()) / pattern.std()
    return scene.images + pattern * np.float32(2.0 * parameters["spread_db"] / RANGE_DB)


def draw_speckle_size(rng: np.random.Generator, dose: float, scene: Scene) -> dict[str, Any]:
    """How many times wider the grain is."""
    return {"factor": 1.0 + FULL_GRAIN * dose}


def speckle_size(scene: Scene, parameters: dict[str, Any]) -> np.ndarray:
    """Structure as it is; texture taken off, magnified about the slice's centre with its spread kept, and put back."""
    structure = smoothed(scene.images, scene.fov, STRUCTURE_MM / scene.spacing_mm)
    texture = filled(scene.images - structure, scene.fov)
    factor, (height, width) = parameters["factor"], texture.shape[1:]
    rows = ((np.arange(height) - (height - 1) / 2) / factor + (height - 1) / 2)[:, None] + np.zeros((1, width))
    columns = ((np.arange(width) - (width - 1) / 2) / factor + (width - 1) / 2)[None] + np.zeros((height, 1))
    large = np.stack([ndimage.map_coordinates(t, [rows, columns], order=1, mode="nearest") for t in texture])
    inside = scene.fov
    large *= texture[inside].std() / max(float(large[inside].std()), 1e-6)
    return structure + large


def _sign(rng: np.random.Generator) -> int:
    return int(rng.choice((-1, 1)))


def draw_gain(rng: np.random.Generator, dose: float, scene: Scene) -> dict[str, Any]:
    """Shift of the grey level, up or down."""
    return {"shift": FULL_GAIN * dose * _sign(rng)}


def gain(scene: Scene, parameters: dict[str, Any]) -> np.ndarray:
    """All of the fan brighter or darker."""
    return scene.images + np.float32(parameters["shift"])


def draw_attenuation(rng: np.random.Generator, dose: float, scene: Scene) -> dict[str, Any]:
    """Change of the grey level from the top to the bottom of the fan, either way."""
    return {"change": FULL_ATTENUATION * dose * _sign(rng)}


def attenuation(scene: Scene, parameters: dict[str, Any]) -> np.ndarray:
    """A ramp along the beam that leaves the middle of the depths as it is."""
    out = scene.images.copy()
    for k in np.flatnonzero(scene.fov.any(axis=(1, 2))):
        depth, _ = beam_frame(scene.fov[k])
        share = depth / max(float(depth[scene.fov[k]].max()), 1e-6)
        out[k] += np.float32(parameters["change"]) * (share - 0.5)
    return out


def draw_quantisation(rng: np.random.Generator, dose: float, scene: Scene) -> dict[str, Any]:
    """How many grey levels are left: 256 at dose 0, 2 at dose 1."""
    return {"levels": round(2.0 ** (8.0 - 7.0 * dose))}


def quantisation(scene: Scene, parameters: dict[str, Any]) -> np.ndarray:
    """Grey levels rounded to a few, evenly spaced from -1 to 1."""
    steps = parameters["levels"] - 1
    return np.round((scene.images + 1.0) / 2.0 * steps) / steps * 2.0 - 1.0
