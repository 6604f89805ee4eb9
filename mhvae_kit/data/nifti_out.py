"""Writing a NIfTI volume slice by slice, on the grid of another one, without holding it in memory."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np

from mhvae_kit.data.nifti import Axes

_GZIP_LEVEL = 3  # of texture, higher levels gain a few per cent and cost several times the time


class SliceWriter:
    """Takes the slices of one volume in order and then writes them as a .nii.gz file.

    The slices go through a plain file beside the result: a full disk is then an error to be told, not a crash, and the
    order of the file's axes does not matter.

    Args:
        path: The .nii.gz file to write.
        like: The volume whose grid it is to have.
        axes: Which of its array axes are rows, columns and slices.
        dtype: uint8 or float32.
    """

    def __init__(self, path: str | Path, like: nib.Nifti1Image, axes: Axes, dtype: type = np.uint8) -> None:
        self.path = Path(path)
        self._like, self._axes, self._dtype = like, axes, np.dtype(dtype)
        self._raw = self.path.with_name(f"{self.path.name}.raw")
        self._file = open(self._raw, "wb")  # noqa: SIM115 - closed by finish or close
        self.slices = 0

    def write(self, planes: np.ndarray) -> None:
        """Append (n, H, W) slices."""
        self._file.write(np.ascontiguousarray(planes, dtype=self._dtype).tobytes())
        self.slices += len(planes)

    def close(self) -> None:
        """Give up: nothing is left but what is in the folder, which the caller removes."""
        self._file.close()

    def finish(self) -> Path:
        """Write the file and remove the plain one."""
        self._file.close()
        shape = self._like.shape[:3]
        rows, columns, slices = (shape[a] for a in self._axes)
        raw = np.memmap(self._raw, self._dtype, "r", shape=(slices, rows, columns))
        volume = raw.transpose(1, 2, 0).transpose(np.argsort(self._axes))
        with open(self.path, "wb") as file:
            # No name and no time inside, so that equal images are equal files.
            with gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed:
                header_like(self._like, self._dtype).write_to(packed)
                for k in range(shape[2]):
                    packed.write(np.ascontiguousarray(volume[:, :, k].T).tobytes())
            file.flush()
            os.fsync(file.fileno())
        del raw, volume
        self._raw.unlink()
        return self.path


def header_like(image: nib.Nifti1Image, dtype: np.dtype) -> nib.Nifti1Header:
    """A fresh header with the shape, qform, sform and unit of an image, for values of `dtype` without scaling."""
    header = nib.Nifti1Header()
    header.set_data_shape(image.shape[:3])
    header.set_data_dtype(dtype)
    header.set_zooms(image.header.get_zooms()[:3])
    for get, put in ((image.get_qform, header.set_qform), (image.get_sform, header.set_sform)):
        affine, code = get(coded=True)
        if affine is not None:
            put(affine, code)
    header.set_xyzt_units("mm")
    header["descrip"] = b"synthesised by mhvae_kit"
    return header
