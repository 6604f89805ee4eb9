"""From the slices of a reader's volumes to what a network takes, and back: intensities and the grid in plane."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mhvae_kit.data.nifti import UPPER_QUANTILE, LazyVolume, all_background, check_values, to_eight_bit
from mhvae_kit.data.slices import to_network
from mhvae_kit.errors import InputError, explain

Protocol = Literal["kit", "authors"]
SAME_SPACING = 0.002
"""Pixel sizes that differ by less than this share are taken for equal."""
_AUTHORS_LOW = 255.0 / 256.0
READ_AT_ONCE = 16


def check_protocol(name: str) -> Protocol:
    """Return `name` when it is a protocol, otherwise say which ones there are."""
    if name not in get_args(Protocol):
        raise InputError(explain("unknown protocol", got=repr(name), expected=" or ".join(get_args(Protocol))))
    return name  # type: ignore[return-value]


class UpperTail:
    """The largest values of a stream: enough of them for an upper quantile of all, exactly.

    Args:
        expected: An upper bound on how many values will come.
        quantile: The quantile that will be asked for.
    """

    def __init__(self, expected: int, quantile: float = UPPER_QUANTILE) -> None:
        self._keep = int(np.ceil(expected * (1 - quantile))) + 3
        self._quantile = quantile
        self._tail = np.empty(0, np.float32)
        self.n = 0
        self.low = float("inf")

    def add(self, values: np.ndarray) -> None:
        """Count more values, any shape."""
        values = np.asarray(values, np.float32).ravel()
        if not values.size:
            return
        self.n += values.size
        self.low = min(self.low, float(values.min()))
        if len(self._tail) == self._keep:
            values = values[values > self._tail[0]]
        both = np.concatenate([self._tail, values])
        if len(both) > self._keep:
            both = np.partition(both, len(both) - self._keep)[-self._keep :]
        self._tail = np.sort(both)

    def value(self, linear: bool) -> float:
        """The quantile by numpy's rule "linear" or "lower"."""
        place = self._quantile * (self.n - 1)
        index = int(np.floor(place)) - (self.n - len(self._tail))
        low = float(self._tail[index])
        return low + (place % 1) * (float(self._tail[min(index + 1, len(self._tail) - 1)]) - low) if linear else low


@dataclass(frozen=True)
class Intensities:
    """How a volume's values become the network's [-1, 1]; background, 0, becomes exactly -1.

    Args:
        protocol: "kit": 8-bit values as they are, others from smallest to 99.95th percentile of the voxels above 0 onto
            1..255. "authors": the same two values onto -0.996..1, without rounding, also for 8-bit files.
        low, high: Those two values.
        plain: Whether the values are 8-bit ones that stay as they are.
    Source:
        ReubenDo/MMHVAE:utilities/dataset.py, type_normalization "min-max".
    """

    protocol: Protocol
    low: float
    high: float
    plain: bool

    @classmethod
    def of(cls, volume: LazyVolume, protocol: Protocol) -> Intensities:
        """Read a volume once, slice by slice, checking its values.

        Raises:
            DataError: Values that are not finite or below 0, or 0 in every voxel.
        """
        name = str(volume.path)
        tail = UpperTail(int(np.prod(volume.shape)))
        for start in range(0, volume.shape[2], READ_AT_ONCE):
            values = volume.planes(start, start + READ_AT_ONCE)
            check_values(values, name)
            tail.add(values[values > 0])
        if not tail.n:
            raise all_background(name)
        return cls(protocol, tail.low, tail.value(linear=protocol == "authors"), volume.plain and protocol == "kit")

    def apply(self, planes: np.ndarray) -> Tensor:
        """(n, H, W) as (n, 1, H, W) float32 in [-1, 1]."""
        if self.protocol == "kit":
            return to_network(planes if self.plain else to_eight_bit(planes, self.low, self.high))[:, None]
        values = planes.astype(np.float32)
        scaled = (np.minimum(values, self.high) - self.low) / max(self.high - self.low, 1e-6)
        scaled = scaled * (1 + _AUTHORS_LOW) - _AUTHORS_LOW
        return torch.from_numpy(np.where(values > 0, scaled, -1.0).astype(np.float32))[:, None]


def to_file(images: Tensor, protocol: Protocol, inside: Tensor | None) -> np.ndarray:
    """Images (n, 1, H, W) in [-1, 1] as 8-bit (n, H, W): rounded, or rounded down as the authors write them.

    Outside the mask 0; inside it at least 1 ("kit"), so that the mask can be read off the image.
    """
    values = (images[:, 0].float() + 1) * 127.5
    values = (values + 1e-3).floor() if protocol == "authors" else values.round()
    values = values.clamp(0, 255)
    if inside is not None:
        lowest = 0 if protocol == "authors" else 1
        values = torch.where(inside[:, 0], values.clamp(min=lowest), 0.0)
    return values.to(torch.uint8).cpu().numpy()


@dataclass(frozen=True)
class PlaneFit:
    """A slice on the model's grid and back: resampled to its pixel size, then cut or filled round the centre.

    Nothing is resampled where the pixel sizes agree, and nothing is touched where the sizes do too.

    Args:
        shape: Height and width of the reader's slices.
        scaled: The same field at the model's pixel size; equal to `shape` when they agree.
        size: Height and width of the model's images.
    """

    shape: tuple[int, int]
    scaled: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def between(
        cls, shape: tuple[int, int], pixel_mm: tuple[float, float], size: tuple[int, int], model_mm: float | None
    ) -> PlaneFit:
        """Plan it; without a pixel size of the model nothing is resampled.

        Raises:
            InputError: The reader's slices are smaller than a pixel of the model, or absurdly large on its grid.
        """
        factors = [1.0 if model_mm is None else mm / model_mm for mm in pixel_mm]
        factors = [1.0 if abs(f - 1) <= SAME_SPACING else f for f in factors]
        rows, columns = (round(n * f) for n, f in zip(shape, factors, strict=True))
        if model_mm is not None and (min(rows, columns) < 1 or max(rows, columns) > 32 * max(size)):
            raise InputError(
                explain(
                    "the slices cannot be brought to the model's pixel size",
                    got=f"{shape[0]} x {shape[1]} pixels of {pixel_mm[0]:.3g} x {pixel_mm[1]:.3g} mm",
                    expected=f"about {size[0]} x {size[1]} pixels of {model_mm:g} mm",
                    mend="check the units of the affine, or give spacing_mm",
                )
            )
        return cls(shape, (rows, columns), size)

    @property
    def note(self) -> str:
        """What is done, in words; "" when nothing is."""
        done = []
        if self.scaled != self.shape:
            done.append(f"resampled {self.shape[0]} x {self.shape[1]} to {self.scaled[0]} x {self.scaled[1]} and back")
        if self.scaled != self.size:
            done.append(f"{self.size[0]} x {self.size[1]} about the centre")
        return "; ".join(done)

    def to_model(self, images: Tensor) -> Tensor:
        """(n, 1, H, W) to the model's size. Background stays exactly -1 and does not bleed into what it borders."""
        if self.scaled != self.shape:
            inside = (images > -1).float()
            share = _resize(inside, self.scaled)
            mean = _resize((images + 1) * inside, self.scaled) / share.clamp(min=1e-6) - 1
            images = torch.where(share >= 0.5, mean.clamp(-1, 1), -1.0)
        return _about_centre(images, self.size)

    def back(self, images: Tensor) -> Tensor:
        """(n, 1, h, w) of the model to the reader's size; -1 where the model's frame did not reach."""
        images = _about_centre(images, self.scaled)
        return images if self.scaled == self.shape else _resize(images, self.shape).clamp(-1, 1)

    def reached(self) -> Tensor:
        """Bool (1, 1, H, W): which pixels of the reader's slices lie in the model's frame."""
        return self.back(torch.ones(1, 1, *self.size)) > 0


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear over the same field, averaging where pixels become larger."""
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def _about_centre(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut or fill (with -1) the last two axes round the centre; the way back undoes the way there, pixel by pixel."""
    room = []
    for n, wanted in zip(images.shape[:1:-1], size[::-1], strict=True):
        before = (wanted - n) // 2 if wanted >= n else -((n - wanted) // 2)
        room += [before, wanted - n - before]
    return F.pad(images, room, value=-1.0) if any(room) else images


class Flicker:
    """How much neighbouring slices of a volume differ: the mean absolute difference, in grey levels of 255."""

    def __init__(self) -> None:
        self._last: tuple[np.ndarray, np.ndarray] | None = None
        self._sum, self._count = 0.0, 0

    def add(self, planes: np.ndarray, inside: np.ndarray) -> None:
        """Go on with (n, H, W) slices, of which pixels inside the mask in both neighbours count."""
        for plane, mask in zip(np.asarray(planes, np.float32), inside, strict=True):
            if self._last is not None:
                both = mask & self._last[1]
                self._sum += float(np.abs(plane - self._last[0])[both].sum())
                self._count += int(both.sum())
            self._last = (plane, mask)

    @property
    def value(self) -> float | None:
        """None when no pixel was inside in two neighbours."""
        return self._sum / self._count if self._count else None


def batches(slices: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """Start and end of each batch of slices."""
    for start in range(0, slices, batch_size):
        yield start, min(start + batch_size, slices)
