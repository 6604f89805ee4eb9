"""The files of one synthesised modality, written while its slices are decoded."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from mhvae_kit.data.nifti import Axes
from mhvae_kit.data.nifti_out import SliceWriter
from mhvae_kit.synthesis.planes import Flicker, Protocol, to_file


class Results:
    """The files of one target: its samples, and their mean and standard deviation on the fly.

    Args:
        folder: Where to.
        target: Name of the modality.
        like: The volume whose grid they get.
        axes: Which of its array axes are rows, columns and slices.
        samples: How many samples come for each batch of slices.
        protocol: How images become 8-bit, see `to_file`.
    """

    def __init__(
        self, folder: Path, target: str, like: nib.Nifti1Image, *, axes: Axes, samples: int, protocol: Protocol
    ) -> None:
        def writer(name: str, dtype: type = np.uint8) -> SliceWriter:
            return SliceWriter(folder / f"{name}.nii.gz", like, axes, dtype)

        self._target, self._protocol, self._several = target, protocol, samples > 1
        self._main = writer(target)
        self._std = writer(f"{target}_std", np.float32) if self._several else None
        self._samples = [writer(f"{target}_sample-{n + 1}") for n in range(samples)] if self._several else []
        self._flicker = [Flicker() for _ in range(1 + len(self._samples))]
        self._kept: list[np.ndarray] = []
        self._n = 0
        self._mean = self._squares = torch.zeros(())

    def add(self, sample: int, image: Tensor, inside: Tensor | None) -> None:
        """One sample of the slices in work, (n, 1, H, W) in [-1, 1]."""
        self._n += 1
        change = image - self._mean
        self._mean = self._mean + change / self._n
        self._squares = self._squares + change * (image - self._mean)
        if self._several:
            self._kept.append(to_file(image, self._protocol, inside))

    def end_batch(self, inside: Tensor | None, drawn: np.ndarray, empty: Tensor) -> None:
        """All samples of these slices are in: write them and what they have in common."""
        inside = None if inside is None else inside & ~empty[:, None, None, None]
        counted = drawn if inside is None else inside[:, 0].numpy()
        main = to_file(self._mean, self._protocol, inside)
        self._main.write(main)
        self._flicker[0].add(main, counted)
        for writer, flicker, planes in zip(self._samples, self._flicker[1:], self._kept, strict=True):
            planes[empty.numpy()] = 0
            writer.write(planes)
            flicker.add(planes, counted)
        if self._std is not None:
            std = (self._squares / (self._n - 1)).clamp(min=0).sqrt() * 127.5
            self._std.write((std if inside is None else std * inside)[:, 0].numpy())
        self._kept, self._n = [], 0
        self._mean = self._squares = torch.zeros(())

    @cached_property
    def _writers(self) -> list[SliceWriter]:
        return [w for w in (self._main, self._std, *self._samples) if w is not None]

    def finish(self) -> list[Path]:
        """Write the files, packed."""
        return [writer.finish() for writer in self._writers]

    def close(self) -> None:
        """Let go of what is open."""
        for writer in self._writers:
            writer.close()

    def flicker(self) -> dict[str, float | None]:
        """Of the image or mean, and on average of the samples."""
        values = [f.value for f in self._flicker]
        if not self._several:
            return {self._target: values[0]}
        drawn = [v for v in values[1:] if v is not None]
        return {
            f"{self._target} (mean of samples)": values[0],
            f"{self._target} (one sample)": sum(drawn) / len(drawn) if drawn else None,
        }
