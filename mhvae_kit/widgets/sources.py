"""Where an explorer's slices come from: a dataset of the kit, or a reader's own NIfTI volumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from mhvae_kit.config import MHVAEConfig, Modality
from mhvae_kit.data.nifti import check_axes, check_grid, eight_bit, fitted, open_nifti
from mhvae_kit.data.slices import CaseVolumes, to_network
from mhvae_kit.errors import InputError, explain
from mhvae_kit.widgets.latest import RecentlyUsed

KEPT_VOLUMES = 24
Paths = Mapping[Modality, "str | Path"]


class Slices:
    """Slices of a dataset that fit a model.

    Args:
        dataset: A dataset of the kit, or `NiftiVolumes`.
        config: The model's, which says what sizes and modalities are of use.
    Attributes:
        name: Name of the data; it stands under every picture.
        modalities: Those that both have, in the model's order.
        cases: Ids of all loaded cases.
        spacing_mm: Pixel size (rows, columns).
    Raises:
        InputError: The two share no modality, no case is loaded, or the sizes differ.
    """

    def __init__(self, dataset: CaseVolumes, config: MHVAEConfig) -> None:
        self._dataset = dataset
        self._volumes = RecentlyUsed(KEPT_VOLUMES)  # a dataset may read its file each time it is asked
        self.name = str(getattr(dataset, "name", "own data"))
        self.modalities = tuple(m for m in config.modalities if m in dataset.modalities)
        self.cases = list(dataset.case_ids(None))
        self.shape = config.image_size
        rows, columns = np.broadcast_to(np.asarray(getattr(dataset, "spacing_mm", 1.0), dtype=float), (2,))
        self.spacing_mm = (float(rows), float(columns))
        if not self.modalities or not self.cases:
            raise InputError(
                explain(
                    "the data give the model nothing to work on",
                    got=f"{', '.join(dataset.modalities)} in {len(self.cases)} cases",
                    expected=f"at least one case with one of {', '.join(config.modalities)}",
                )
            )
        size = self._volume(self.cases[0], self.modalities[0]).shape[:2]
        if tuple(size) != tuple(config.image_size):
            raise InputError(
                explain(
                    "the slices do not have the model's size",
                    got=f"{size[0]} × {size[1]}",
                    expected=f"{config.image_size[0]} × {config.image_size[1]}",
                    mend="load the data at the model's preset, or use from_nifti, which crops and pads",
                )
            )

    def count(self, case: str) -> int:
        """Slices of a case."""
        return int(self._volume(case, self.modalities[0]).shape[2])

    def image(self, case: str, index: int, modality: Modality) -> torch.Tensor:
        """One slice for the model, (1, 1, H, W) in [-1, 1]."""
        return to_network(self._volume(case, modality)[:, :, index])[None, None]

    def plane(self, case: str, index: int, modality: Modality) -> np.ndarray:
        """One slice to look at, (H, W) in [-1, 1]."""
        return self.image(case, index, modality)[0, 0].numpy()

    def fov(self, case: str, index: int) -> np.ndarray | None:
        """The field of view of a slice, bool (H, W); None when the data do not say it (it is never guessed)."""
        if not getattr(self._dataset, "fov_known", True):
            return None
        return self._volume(case, "fov")[:, :, index] > 0

    def _volume(self, case: str, kind: str) -> np.ndarray:
        return self._volumes.get((case, kind), lambda: self._dataset.volume(case, kind))

    def first_case(self) -> str:
        """A test patient if there is one, so that what is seen first is nothing the model was trained on."""
        split_of = getattr(self._dataset, "split_of", lambda case: "")
        return next((case for case in self.cases if split_of(case) == "test"), self.cases[0])

    def note(self, case: str) -> str:
        """What was done to a reader's own volumes to fit the model; "" for a dataset of the kit."""
        return str(getattr(self._dataset, "notes", {}).get(case, ""))


class NiftiVolumes:
    """A reader's own volumes, fitted to a model in two stated steps; never resampled.

    Size: each slice is cut or filled with background round its centre to the model's size, so the pixel size stays
    what it is; it should be the one that the model was trained at. Intensities: 8-bit volumes are taken as they are;
    others by the rule of the kit's data, smallest to 99.95th percentile of the voxels above 0 onto 1..255, background
    0. `notes` says for each case what was done, and stands under the picture.

    Args:
        cases: By case name, the NIfTI file of each modality.
        image_size: Height and width of the model.
        axes: Which array axes are rows, columns and slices.
        fov: By case name, a NIfTI mask of the field of view (above 0 = inside); without it scores are of the full
            frame.
    Raises:
        MissingError: A file is not there.
        DataError: A file is unreadable, not 3-D, holds NaN or values below 0, or lies on another grid than the rest.
        InputError: No file is given, or `axes` is no permutation of 0, 1 and 2.
    """

    def __init__(
        self,
        cases: Mapping[str, Paths],
        image_size: tuple[int, int],
        *,
        axes: tuple[int, int, int] = (0, 1, 2),
        fov: Mapping[str, str | Path] | None = None,
    ) -> None:
        if not cases or not all(cases.values()):
            raise InputError(explain("no volume was given", expected='for example {"t2": "t2.nii.gz"}'))
        check_axes(axes)
        names = [set(paths) for paths in cases.values()]
        if any(other != names[0] for other in names):
            raise InputError(explain("the cases have different modalities", got=[sorted(n) for n in names]))
        self.name = "own volumes"
        self.modalities = tuple(next(iter(cases.values())))
        self.fov_known = fov is not None and set(fov) == set(cases)
        self.notes: dict[str, str] = {}
        self._volumes: dict[tuple[str, str], np.ndarray] = {}
        for case, paths in cases.items():
            extra = {"fov": fov[case]} if self.fov_known else {}
            self._read_case(case, {**paths, **extra}, tuple(image_size), axes)

    def case_ids(self, split: str | None = None) -> list[str]:
        """Names of the cases; there are no splits here."""
        return list(self.notes)

    def volume(self, case: str, kind: str) -> np.ndarray:
        """uint8 (H, W, D) of a modality or of "fov"."""
        return self._volumes[case, kind]

    def _read_case(self, case: str, paths: Mapping[str, str | Path], size: tuple[int, ...], axes: Any) -> None:
        """Read the volumes of one case, check that they lie on one grid, and fit them."""
        first: nib.Nifti1Image | None = None
        done = []
        for kind, given in paths.items():
            path = Path(given).expanduser()
            image = open_nifti(path, whole=True)
            first = first if first is not None else image
            check_grid(path, image, first)
            array = np.asarray(image.dataobj).reshape(image.shape[:3]).transpose(axes)
            plain = array.dtype == np.uint8
            if kind == "fov":
                array = (array > 0).astype(np.uint8)
            elif not plain:
                array = eight_bit(array, str(path))
                done.append(f"{kind} to 8 bit")
            self._volumes[case, kind] = fitted(array, size)
        pixel = nib.affines.voxel_sizes(first.affine)[list(axes[:2])]
        self.spacing_mm = tuple(float(mm) for mm in pixel)
        shape = [first.shape[axis] for axis in axes[:2]]
        if tuple(shape) != size:
            done.append(f"{size[0]} × {size[1]} about the centre of {shape[0]} × {shape[1]}")
        self.notes[case] = "; ".join([f"pixels {pixel[0]:.3g} × {pixel[1]:.3g} mm", *done])
