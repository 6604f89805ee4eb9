"""Does speckle look like speckle: envelope statistics, power spectrum and grain size, inside a mask.

None of these compares pixel with pixel, so a sample with other speckle of the same kind scores as well as the truth.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from mhvae_kit.errors import InputError, explain
from mhvae_kit.metrics.arrays import ArrayLike, as_images, as_masks, paired_images

# Step of an image stored with 8 bits, as a part of its range.
_STEP_8_BIT = 1.0 / 255.0
# Share of the mask's inner radius over which the taper rises from 0 to 1 (a Hann flank).
_TAPER_SHARE = 0.5


def _spacing(spacing_mm: float | tuple[float, float]) -> tuple[float, float]:
    """Pixel size (rows, columns) in mm from one number or two."""
    values = tuple(float(v) for v in np.atleast_1d(np.asarray(spacing_mm, dtype=float)))
    values = values * 2 if len(values) == 1 else values
    if len(values) != 2 or not all(np.isfinite(v) and v > 0 for v in values):
        raise InputError(
            explain("spacing_mm is not usable", got=spacing_mm, expected="one number above 0, or two: rows, columns")
        )
    return values[0], values[1]


def _positive(value: float, name: str) -> float:
    """`value` if it is a finite number above 0."""
    if isinstance(value, (str, bool)) or not (np.isfinite(value) and value > 0):
        raise InputError(explain(f"{name} is not usable", got=repr(value), expected="a finite number above 0"))
    return float(value)


def _local_mean(images: np.ndarray, masks: np.ndarray, sigma_px: tuple[float, float]) -> np.ndarray:
    """Gaussian-weighted mean of the masked pixels around each pixel; pixels outside the mask have no weight."""
    sigma = (0.0, *sigma_px)
    weight = ndimage.gaussian_filter(masks.astype(np.float64), sigma, mode="constant")
    total = ndimage.gaussian_filter(np.where(masks, images, 0.0), sigma, mode="constant")
    return np.divide(total, weight, out=np.zeros_like(total), where=masks & (weight > 0))


def linear_envelope(image: ArrayLike, *, dynamic_range_db: float) -> np.ndarray:
    """Undo the log compression of ultrasound in [-1, 1]: the envelope, as a part of the brightest (N, H, W).

    -1 stands for `dynamic_range_db` below the maximum and 1 for the maximum, so the envelope lies between
    10 ** (-dynamic_range_db / 20) and 1. What was clipped at either end stays clipped.

    Raises:
        InputError: Values outside [-1, 1], NaN, or a dynamic range that is not above 0.
    """
    images = as_images(image)
    depth = _positive(dynamic_range_db, "dynamic_range_db")
    if np.abs(images).max() > 1 + 1e-6:
        raise InputError(
            explain("image is not in [-1, 1]", got=f"values from {images.min():.6g} to {images.max():.6g}")
        )
    return 10.0 ** ((images - 1.0) / 2.0 * depth / 20.0)


def envelope_snr(
    image: ArrayLike, *, dynamic_range_db: float, mask: ArrayLike | None = None, local_sigma_px: float | None = None
) -> np.ndarray:
    """Mean over standard deviation of the linear envelope inside the mask, per image (N,).

    Fully developed speckle (a Rayleigh envelope) has sqrt(pi / (4 - pi)) = 1.91; a blurred image has more, since its
    grain is gone; tissue of many brightnesses in one mask has less.

    Args:
        image: Log-compressed ultrasound in [-1, 1], (H, W), (N, H, W) or (N, 1, H, W).
        dynamic_range_db: Span in dB that -1 to 1 stands for.
        mask: Pixels to use; None takes them all.
        local_sigma_px: When given, the envelope is first divided by its mean under a Gaussian of this width (inside
            the mask), so that differences between tissues do not count as speckle.
    Returns:
        Float array (N,); infinity for a constant image.
    Raises:
        InputError: See `linear_envelope` and `as_masks`.
    """
    envelope = linear_envelope(image, dynamic_range_db=dynamic_range_db)
    masks = as_masks(mask, envelope.shape)
    if local_sigma_px is not None:
        sigma = _positive(local_sigma_px, "local_sigma_px")
        mean = _local_mean(envelope, masks, (sigma, sigma))
        envelope = np.divide(envelope, mean, out=np.zeros_like(envelope), where=masks)
    scores = []
    for one, inside in zip(envelope, masks, strict=True):
        values = one[inside]
        spread = values.std()
        # A constant image has a spread of rounding errors only.
        scores.append(np.inf if spread <= 1e-12 * values.mean() else values.mean() / spread)
    return np.array(scores)


def local_texture(
    image: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    sigma_mm: float = 3.0,
    spacing_mm: float | tuple[float, float] = 1.0,
) -> np.ndarray:
    """What is left of an image after its Gaussian-smoothed self is taken away, (N, H, W); 0 outside the mask.

    Args:
        image: (H, W), (N, H, W) or (N, 1, H, W).
        mask: Pixels to use. The smoothing looks at no pixel outside it, so the fan's edge leaves no rim. None: all.
        sigma_mm: Standard deviation of the Gaussian.
        spacing_mm: Pixel size, one number or (rows, columns).
    Raises:
        InputError: See `as_images` and `as_masks`; a width or spacing that is not above 0.
    """
    images = as_images(image)
    masks = as_masks(mask, images.shape)
    width, (row, column) = _positive(sigma_mm, "sigma_mm"), _spacing(spacing_mm)
    return np.where(masks, images - _local_mean(images, masks, (width / row, width / column)), 0.0)


def _taper(mask: np.ndarray) -> np.ndarray:
    """Window (H, W) that is 0 outside the mask and rises smoothly from its edge, the frame being an edge too."""
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    rise = max(distance.max() * _TAPER_SHARE, 1.0)
    return np.sin(0.5 * np.pi * np.clip(distance / rise, 0.0, 1.0)) ** 2


def _tapered(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image (H, W) without its weighted mean, times the taper; and the taper."""
    window = _taper(mask)
    residual = (image - (image * window).sum() / window.sum()) * window
    scale = max(float(np.abs(image[mask]).max()), 1e-300)
    if np.sqrt((residual**2).mean()) <= 1e-12 * scale:
        raise InputError(explain("image is constant inside the mask", got="no texture to measure", mend="Leave it out"))
    return residual, window


def radial_power_spectrum(
    image: ArrayLike,
    *,
    spacing_mm: float | tuple[float, float],
    mask: ArrayLike | None = None,
    n_bins: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Power spectral density over radial frequency, of each image inside the mask.

    The weighted mean is removed and a smooth taper falls to 0 at the mask's edge, so that the outline of the fan, far
    stronger than speckle, does not show in the spectrum. Divided by the taper's power: white noise of variance s^2
    gives a flat s^2 * dy * dx whatever the mask.

    Args:
        image: (H, W), (N, H, W) or (N, 1, H, W).
        spacing_mm: Pixel size, one number or (rows, columns).
        mask: Pixels to use; None takes them all.
        n_bins: Number of rings of equal width, the last centred on the highest frequency that both axes hold. By
            default half the shorter side in pixels.
    Returns:
        Frequencies (K,) in cycles/mm, the mean of each ring, and power (N, K) in squared image units times mm^2.
    Raises:
        InputError: A constant image, an empty mask, a bad spacing, or more rings than the grid can fill.
    """
    images = as_images(image)
    masks = as_masks(mask, images.shape)
    (row, column), (height, width) = _spacing(spacing_mm), images.shape[1:]
    radius = np.hypot(np.fft.fftfreq(height, row)[:, None], np.fft.fftfreq(width, column)[None, :])
    count = max(min(height, width) // 2, 1) if n_bins is None else int(n_bins)
    if count < 1:
        raise InputError(explain("n_bins is not usable", got=n_bins, expected="at least 1"))
    # Ring k is centred on k steps, so that the grid's frequencies never fall on an edge; ring 0 is the removed mean.
    ring = np.rint(radius / (0.5 / max(row, column) / count)).astype(int) - 1
    used = (ring >= 0) & (ring < count)
    members = np.bincount(ring[used], minlength=count)
    if (members == 0).any():
        raise InputError(
            explain(
                "the rings are too narrow for the image",
                got=f"{count} rings over {height} x {width} px, {int((members == 0).sum())} of them empty",
                mend="Give a smaller n_bins",
            )
        )
    frequency = np.bincount(ring[used], radius[used], minlength=count) / members
    power = []
    for one, inside in zip(images, masks, strict=True):
        residual, window = _tapered(one, inside)
        density = np.abs(np.fft.fft2(residual)) ** 2 * (row * column / (window**2).sum())
        power.append(np.bincount(ring[used], density[used], minlength=count) / members)
    return frequency, np.stack(power)


def spectrum_distance_db(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Log-spectral distance in dB: root mean square over frequency of the difference of two spectra in dB.

    Args:
        first: Power (..., K) at the same frequencies, above 0.
        second: Power (..., K).
    Returns:
        Array of the leading shape: one number for two (K,) spectra. 0 only for equal spectra; a factor of 10 in power
        at all frequencies is 10 dB.
    Raises:
        InputError: Shapes that do not fit, or power that is not finite and above 0.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim == 0 or other.ndim == 0 or one.shape[-1] != other.shape[-1] or one.shape[-1] == 0:
        raise InputError(
            explain("the spectra differ in length", got=f"{one.shape} and {other.shape}", expected="(..., K) both")
        )
    for name, values in (("first", one), ("second", other)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise InputError(explain(f"{name} is not a power spectrum", expected="finite values above 0"))
    return np.sqrt((100.0 * (np.log10(one) - np.log10(other)) ** 2).mean(axis=-1))


def _half_width(correlation: np.ndarray) -> float:
    """Lag (in samples, interpolated) at which a correlation that starts at 1 first falls to one half."""
    below = np.flatnonzero(correlation <= 0.5)
    if below.size == 0:
        return float("inf")
    lag = int(below[0])
    upper, lower = correlation[lag - 1], correlation[lag]
    return float(lag - 1 + (upper - 0.5) / (upper - lower))


def autocorrelation_width(
    image: ArrayLike, *, spacing_mm: float | tuple[float, float], mask: ArrayLike | None = None
) -> np.ndarray:
    """Full width at half maximum in mm of the autocorrelation along each axis: the size of the grain.

    White noise gives one pixel; white noise under a Gaussian of standard deviation s gives 4 sqrt(ln 2) s = 3.33 s.
    Measure the grain of speckle on `local_texture`: brightness that varies from tissue to tissue is wide.

    Args:
        image: (H, W), (N, H, W) or (N, 1, H, W).
        spacing_mm: Pixel size, one number or (rows, columns).
        mask: Pixels to use; None takes them all. A taper keeps its edge out, and each lag is divided by the taper's
            own correlation, so the mask's size does not narrow the peak.
    Returns:
        Float array (N, 2): along rows (depth) and along columns (lateral). Infinity where the correlation does not fall
        to one half within half the image.
    Raises:
        InputError: See `radial_power_spectrum`.
    """
    images = as_images(image)
    masks = as_masks(mask, images.shape)
    spacing, (height, width) = _spacing(spacing_mm), images.shape[1:]
    widths = []
    for one, inside in zip(images, masks, strict=True):
        residual, window = _tapered(one, inside)
        size = (2 * height, 2 * width)  # padded, so that no lag wraps round
        shared = np.fft.irfft2(np.abs(np.fft.rfft2(window, size)) ** 2, size)
        product = np.fft.irfft2(np.abs(np.fft.rfft2(residual, size)) ** 2, size)
        rows, columns = max(height // 2, 2), max(width // 2, 2)
        lags = [(product[:rows, 0], shared[:rows, 0]), (product[0, :columns], shared[0, :columns])]
        # Lags that hardly any pair of pixels has are noise: they end the search.
        curves = [p[: _reach(s)] / s[: _reach(s)] for p, s in lags]
        widths.append([2.0 * _half_width(c / c[0]) * mm for c, mm in zip(curves, spacing, strict=True)])
    return np.array(widths)


def _reach(shared: np.ndarray) -> int:
    """Number of lags, from 0 on, at which the taper overlaps itself by at least a tenth."""
    short = np.flatnonzero(shared < 0.1 * shared[0])
    return int(short[0]) if short.size else len(shared)


def _is_flat(image: np.ndarray, mask: np.ndarray) -> bool:
    """Whether an image (H, W) has the same value everywhere inside the mask."""
    values = image[mask]
    return bool(values.min() == values.max())


def radial_spectrum_distance_db(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    data_range: float,
    mask: ArrayLike | None = None,
    low: float | None = None,
    spacing_mm: float | tuple[float, float] = 1.0,
) -> np.ndarray:
    """Log-spectral distance in dB between the radial power spectra of each image and its target; 0 if identical.

    Rounding to 8 bits adds a white noise that no stored image is free of; its power is added to both spectra, so that
    power below it, which nobody could see, weighs little, and a constant prediction has a finite distance.

    Args:
        prediction: (H, W), (N, H, W) or (N, 1, H, W).
        target: As many images of the same size.
        data_range: Length of the interval in which the values lie; its 255th part is the step of an 8-bit image.
        mask: Pixels to use, see `radial_power_spectrum`. None takes them all.
        low: Lower end of the interval; None means -1 for a data range of 2 and 0 otherwise.
        spacing_mm: Pixel size, one number or (rows, columns); only its ratio matters here.
    Returns:
        Float array (N,).
    Raises:
        InputError: See `paired_images` and `radial_power_spectrum`; a target that is constant inside the mask.
    """
    first, second = paired_images(prediction, target, data_range=data_range, low=low)
    masks, (row, column) = as_masks(mask, first.shape), _spacing(spacing_mm)
    _, wanted = radial_power_spectrum(second, spacing_mm=spacing_mm, mask=masks)
    made = np.zeros_like(wanted)
    varied = np.array([not _is_flat(x, m) for x, m in zip(first, masks, strict=True)])
    if varied.any():
        made[varied] = radial_power_spectrum(first[varied], spacing_mm=spacing_mm, mask=masks[varied])[1]
    floor = (data_range * _STEP_8_BIT) ** 2 / 12.0 * row * column
    return spectrum_distance_db(made + floor, wanted + floor)


def speckle_statistics(
    image: ArrayLike, *, dynamic_range_db: float, sigma_px: float, mask: ArrayLike | None = None
) -> dict[str, np.ndarray]:
    """Contrast and grain of the speckle of each image, brightness of the tissue taken out first.

    Args:
        image: Log-compressed ultrasound in [-1, 1], (H, W), (N, H, W) or (N, 1, H, W).
        dynamic_range_db: Span in dB that -1 to 1 stands for.
        sigma_px: Structure wider than a Gaussian of this standard deviation is anatomy, not speckle.
        mask: Pixels to use; None takes them all.
    Returns:
        By name, (N,): envelope_snr (1.91 for fully developed speckle, see `envelope_snr`) and autocorrelation_px (full
        width at half maximum, geometric mean of depth and lateral, see `autocorrelation_width`). A constant image has
        no speckle: infinity both.
    Raises:
        InputError: See `envelope_snr` and `local_texture`.
    """
    images = as_images(image)
    masks = as_masks(mask, images.shape)
    snr = envelope_snr(images, dynamic_range_db=dynamic_range_db, mask=masks, local_sigma_px=sigma_px)
    width = np.full(len(images), np.inf)
    varied = np.array([not _is_flat(x, m) for x, m in zip(images, masks, strict=True)])
    snr[~varied] = np.inf  # divided by its local mean it keeps a spread of rounding errors
    if varied.any():
        grain = local_texture(images[varied], mask=masks[varied], sigma_mm=sigma_px)
        width[varied] = np.sqrt(autocorrelation_width(grain, spacing_mm=1.0, mask=masks[varied]).prod(axis=1))
    return {"envelope_snr": snr, "autocorrelation_px": width}


def absolute_log_ratio(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """|ln(first / second)| of positive statistics: 0 if equal, and as far for twice as much as for half.

    Two infinities are equal, one alone is infinitely far.

    Raises:
        InputError: Shapes that differ, or values that are NaN or not above 0.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != other.shape or not ((one > 0).all() and (other > 0).all()):
        raise InputError(
            explain(
                "a log ratio needs two arrays of positive numbers of one shape", got=f"{one.shape} and {other.shape}"
            )
        )
    with np.errstate(invalid="ignore"):  # infinity minus infinity is set to 0 on purpose
        return np.where(one == other, 0.0, np.abs(np.log(one) - np.log(other)))
