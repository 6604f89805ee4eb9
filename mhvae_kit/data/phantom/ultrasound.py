"""The ultrasound image: a physical model of speckle, specular echoes, attenuation, shadows and the display.

The image is formed on the scan grid (depth x beam x slice). What belongs to the patient - echogenicity, interfaces,
attenuation - is fixed in a `Scan`; only the sub-resolution scatterers are drawn again for another speckle pattern of
the same patient. Steps: white complex scatterers x echo amplitude, point-spread function (a matrix an axis, its lateral
width depending on depth), steered looks of the same scatterers, specular echoes added coherently, envelope, mean over
the looks, scan conversion to the fan, log compression.

Sources:
    Speckle as a filtered field of random scatterers: Bamber and Dickinson, Phys Med Biol 25 (1980). Envelope statistics
    and compounding: Wagner et al., IEEE Trans Sonics Ultrason 30 (1983). Echogenicity of brain tissues: sulci, falx and
    tumours bright, ventricles and cysts dark, as in the intra-operative literature.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage, sparse

from .fields import Grid
from .presets import USSettings

FACE_RADIUS_MM = 14.0
HALF_ANGLE_LIMIT_DEG = 31.5
DEPTH_LIMIT_MM = 89.5
FWHM = 2.3548200450309493
"""Full width at half maximum of a Gaussian of standard deviation 1."""


@dataclass(frozen=True)
class Fan:
    """The displayed sector: half opening angle and depth below the centre of the face."""

    half_angle_deg: float
    depth_mm: float


@dataclass(frozen=True)
class ScanGrid:
    """The probe's own sampling: radius from the virtual apex, angle, slice; two samples a pixel along the beam."""

    radius_mm: np.ndarray
    angle_rad: np.ndarray
    n_slices: int
    slice_mm: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """(samples along the beam, beams, slices)."""
        return (len(self.radius_mm), len(self.angle_rad), self.n_slices)


@dataclass(frozen=True)
class Operators:
    """What depends on the grid alone: resampling matrices between the voxel grid and the scan grid."""

    scan: ScanGrid
    to_scan: sparse.csr_matrix
    to_image: sparse.csr_matrix


@dataclass(frozen=True)
class Scan:
    """Everything that is fixed for a patient; drawing speckle needs nothing else.

    Attributes:
        amplitude: Standard deviation of the diffuse echo and noise before the point-spread function, (R, A, D) float32.
        specular: Coherent echoes of each look after the point-spread function, (looks, R, A, D) float32.
        axial, elevation: Point-spread matrices (R, R) and (D, D).
        lateral: Point-spread matrices of each look at each depth, (looks, R, A, A) complex64.
        fov: Mask of the fan (H, W, D).
        gain_db: Gain of this patient's image.
    """

    amplitude: np.ndarray
    specular: np.ndarray
    axial: np.ndarray
    elevation: np.ndarray
    lateral: np.ndarray
    fov: np.ndarray
    gain_db: float


def fan_mask(fan: Fan, grid: Grid) -> np.ndarray:
    """Mask (H, W, D) of the fan: between the probe's face and the largest depth, within the opening angle."""
    below = grid.depth_mm[:, None] + FACE_RADIUS_MM
    radius = np.hypot(below, grid.lateral_mm[None])
    angle = np.degrees(np.arctan2(grid.lateral_mm[None], below))
    mask = (radius >= FACE_RADIUS_MM) & (radius <= FACE_RADIUS_MM + fan.depth_mm)
    mask &= np.abs(angle) <= fan.half_angle_deg
    return np.repeat(mask[:, :, None], grid.shape[2], axis=2)


@lru_cache(maxsize=4)
def operators(grid: Grid) -> Operators:
    """Resampling matrices of a voxel grid; both are bilinear within the slice."""
    step = grid.spacing_mm / 2
    radius = FACE_RADIUS_MM + step * np.arange(int(np.ceil((DEPTH_LIMIT_MM + 1) / step)) + 1)
    half = np.radians(HALF_ANGLE_LIMIT_DEG)
    n_beams = int(np.ceil(2 * half * radius[-1] / (0.9 * grid.spacing_mm)))
    angle = np.linspace(-half, half, n_beams)
    scan = ScanGrid(radius, angle, grid.shape[2], grid.spacing_mm)
    rows = (radius[:, None] * np.cos(angle) - FACE_RADIUS_MM - grid.depth_mm[0]) / grid.spacing_mm
    columns = (radius[:, None] * np.sin(angle) - grid.lateral_mm[0]) / grid.spacing_mm
    below = grid.depth_mm[:, None] + FACE_RADIUS_MM
    samples = (np.hypot(below, grid.lateral_mm) - radius[0]) / step
    beams = (np.arctan2(grid.lateral_mm[None], below) + half) / (angle[1] - angle[0])
    return Operators(scan, _bilinear(rows, columns, grid.shape[:2]), _bilinear(samples, beams, scan.shape[:2]))


def _bilinear(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Sparse matrix that reads an image of `shape` at the given positions, clamped at its border."""
    r, c = np.clip(rows.ravel(), 0, shape[0] - 1), np.clip(columns.ravel(), 0, shape[1] - 1)
    r0, c0 = np.minimum(r.astype(int), shape[0] - 2), np.minimum(c.astype(int), shape[1] - 2)
    fr, fc = r - r0, c - c0
    index, weight = [], []
    for dr, dc in ((0, 0), (0, 1), (1, 0), (1, 1)):
        index.append((r0 + dr) * shape[1] + c0 + dc)
        weight.append((fr if dr else 1 - fr) * (fc if dc else 1 - fc))
    columns_index = np.stack(index, axis=1).ravel()
    pointer = np.arange(0, 4 * len(r) + 1, 4)
    values = np.stack(weight, axis=1).ravel().astype(np.float32)
    return sparse.csr_matrix((values, columns_index, pointer), shape=(len(r), shape[0] * shape[1]))


def _gaussian_matrix(n: int, sigma: float) -> np.ndarray:
    """Gaussian point-spread matrix (n, n) on unit samples, rows of unit energy."""
    offset = np.arange(n)[:, None] - np.arange(n)[None]
    matrix = np.exp(-0.5 * (offset / sigma) ** 2)
    return (matrix / np.sqrt((matrix**2).sum(axis=1, keepdims=True))).astype(np.float32)


@lru_cache(maxsize=1)  # 600 MB at "paper"
def point_spread(grid: Grid, settings: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Point-spread matrices, rows of unit energy: axial (R, R), elevation (D, D), lateral (looks, R, A, A), envelope.

    Args:
        grid: The voxel grid.
        settings: (axial_fwhm_px, lateral_fwhm_px, elevation_fwhm_px, lateral_growth, focus_mm, n_looks, look_spacing).
    Returns:
        The last one is `lateral` without steering, rows adding up to 1, (R, A, A) float32: it spreads specular echoes.
    """
    axial_px, lateral_px, elevation_px, growth, focus, n_looks, spacing = settings
    scan = operators(grid).scan
    axial = _gaussian_matrix(scan.shape[0], 2 * axial_px / FWHM)
    elevation = _gaussian_matrix(scan.shape[2], elevation_px / FWHM)
    depth = scan.radius_mm - FACE_RADIUS_MM
    width_mm = lateral_px * grid.spacing_mm * (1 + growth * np.abs(depth - focus))
    beam_step = scan.angle_rad[1] - scan.angle_rad[0]
    sigma = width_mm / FWHM / (scan.radius_mm * beam_step)  # in beams
    offset = np.arange(scan.shape[1])[:, None] - np.arange(scan.shape[1])[None]
    plain = np.exp(-0.5 * (offset[None] / sigma[:, None, None]) ** 2)
    energy = plain / np.sqrt((plain**2).sum(axis=2, keepdims=True))
    steer = (np.arange(int(n_looks)) - (n_looks - 1) / 2) * spacing
    # A look steered sideways has its lateral spectrum shifted: a carrier on the same scatterers.
    looks = np.empty((len(steer), *energy.shape), dtype=np.complex64)
    for look, k in zip(looks, steer, strict=True):
        look[:] = energy * np.exp(1j * k * offset[None] / sigma[:, None, None])
    mean = plain / plain.sum(axis=2, keepdims=True)
    return axial, elevation, looks, mean.astype(np.float32)


def _tissue_property(maps: dict[str, np.ndarray], values: dict[str, float]) -> np.ndarray:
    return sum(np.float32(values[tissue]) * share for tissue, share in maps.items())


def make_scan(
    maps: dict[str, np.ndarray],
    contrast: float,
    heterogeneity: np.ndarray,
    gain_db: float,
    fan: Fan,
    grid: Grid,
    settings: USSettings,
) -> Scan:
    """Fix a patient's acoustic maps on the scan grid.

    Args:
        maps: Share of each tissue in every voxel of the image grid.
        contrast: The tumour's own draw: a tumour bright in T2 is less echogenic.
        heterogeneity: Field of variance about 1 in the solid tumour, 0 elsewhere.
        gain_db: Error of the operator's gain.
        fan: The displayed sector.
        grid: The voxel grid.
        settings: The machine and the tissues.
    """
    ops = operators(grid)
    axial, elevation, lateral, spread = point_spread(grid, _psf_key(settings))
    echo_db = settings.echo_db | {k: settings.echo_db[k] - 1.0 * contrast for k in ("tumour", "rim")}
    power = {tissue: 10 ** (db / 10) for tissue, db in echo_db.items()}
    shape = ops.scan.shape
    stack = [_tissue_property(maps, table) for table in (power, settings.impedance, settings.attenuation_db_mm)]
    stack[0] *= 10 ** (settings.heterogeneity_db / 10 * heterogeneity)
    flat = np.concatenate([p.reshape(-1, shape[2]) for p in stack], axis=1)
    on_scan = np.asarray(ops.to_scan @ flat).reshape(shape[0], shape[1], 3, shape[2])
    power_map, impedance, loss = (np.ascontiguousarray(on_scan[:, :, i]) for i in range(3))
    step = float(ops.scan.radius_mm[1] - ops.scan.radius_mm[0])
    lost_db = 2 * step * np.cumsum(loss, axis=0)
    lost_db = ndimage.gaussian_filter1d(lost_db, 1.5, axis=1, mode="nearest")  # the beam has a width
    depth = (ops.scan.radius_mm - FACE_RADIUS_MM).astype(np.float32)[:, None, None]
    lift_db = np.minimum(2 * settings.compensated_db_mm * depth, settings.max_gain_db)
    through = 10 ** ((lift_db - lost_db) / 10)
    noise = 10 ** ((settings.noise_db + lift_db) / 10)
    amplitude = np.sqrt((power_map * through + noise) / 2).astype(np.float32)
    specular = _specular(impedance, ops.scan, settings) * np.sqrt(through)
    specular = np.stack([_spread(s, axial, elevation, spread) for s in specular])
    return Scan(amplitude, specular, axial, elevation, lateral, fan_mask(fan, grid), gain_db)


def _psf_key(s: USSettings) -> tuple[float, ...]:
    return (
        s.axial_fwhm_px,
        s.lateral_fwhm_px,
        s.elevation_fwhm_px,
        s.lateral_growth,
        s.focus_mm,
        s.n_looks,
        s.look_spacing,
    )


def _specular(impedance: np.ndarray, scan: ScanGrid, settings: USSettings) -> np.ndarray:
    """Amplitude of the mirror echoes of each look: relative impedance step x cosine to the beam, (looks, R, A, D)."""
    log_z = np.log(impedance)
    step = scan.radius_mm[1] - scan.radius_mm[0]
    along = np.gradient(log_z, step, axis=0)
    across = np.gradient(log_z, axis=1) / (scan.radius_mm * (scan.angle_rad[1] - scan.angle_rad[0]))[:, None, None]
    across = across.astype(np.float32)
    out_of_plane = np.gradient(log_z, scan.slice_mm, axis=2)
    norm = np.sqrt(along**2 + across**2 + out_of_plane**2) + np.float32(1e-6)
    looks = []
    for angle in np.radians(np.linspace(-1, 1, settings.n_looks) * settings.steering_deg):
        cosine = np.abs(np.float32(np.cos(angle)) * along + np.float32(np.sin(angle)) * across) / norm
        looks.append(settings.specular_gain * norm * cosine**settings.directivity)
    return np.stack(looks).astype(np.float32)


def _spread(echo: np.ndarray, axial: np.ndarray, elevation: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Point-spread function on a coherent sheet of echoes: the same widths, but rows that add up to 1."""
    n_r, n_a, n_d = echo.shape
    echo = np.matmul(spread, echo)
    echo = (axial / axial.sum(axis=1, keepdims=True)) @ echo.reshape(n_r, -1)
    return echo.reshape(n_r, n_a, n_d) @ (elevation / elevation.sum(axis=1, keepdims=True)).T


def speckle_envelopes(rng: np.random.Generator, scan: Scan) -> np.ndarray:
    """Envelope of every look for one draw of scatterers, (looks, R, A, D) float32."""
    shape = scan.amplitude.shape
    field = rng.standard_normal((*shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    field *= scan.amplitude
    flat = field.reshape(shape[0], -1)
    field = np.matmul(scan.axial, flat.view(np.float32)).view(np.complex64).reshape(shape)
    field = np.matmul(field, scan.elevation.T.astype(np.complex64))
    looks = np.matmul(scan.lateral, field[None])
    looks += scan.specular
    return np.abs(looks)


def ultrasound_image(
    rng: np.random.Generator, scan: Scan, grid: Grid, settings: USSettings, quantise: bool = True
) -> np.ndarray:
    """One displayed ultrasound volume: a draw of speckle, compounded, scan-converted and log-compressed.

    Returns:
        (H, W, D): uint8 1..255 in the fan and 0 outside; with `quantise` off float32 in the same units.
    """
    compound = speckle_envelopes(rng, scan).mean(axis=0)
    image = operators(grid).to_image @ compound.reshape(-1, compound.shape[2])
    level_db = 20 * np.log10(np.maximum(image.reshape(grid.shape), np.float32(1e-9)))
    level_db += np.float32(scan.gain_db - settings.reference_db)
    shown = 255.0 + 254.0 * level_db / settings.dynamic_range_db
    shown = np.where(scan.fov, np.clip(shown, 1.0, 255.0), 0.0)
    return np.round(shown).astype(np.uint8) if quantise else shown.astype(np.float32)
