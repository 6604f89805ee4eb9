"""2-D slices for the networks: [-1, 1] images by modality name, with the fan always as its own mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from mhvae_kit.errors import InputError, explain


class CaseVolumes(Protocol):
    """What `SliceDataset` needs of a dataset; `PhantomDataset` is one.

    A dataset that also has `n_slices(case)` and `read_slice(case, kind, index)` -> uint8 (H, W), as `PreparedDataset`
    has, is read slice by slice instead, so that memory does not grow with the number of cases.
    One whose patients lack images has an attribute `absent` besides: by case, the names of those it lacks.
    """

    modalities: tuple[str, ...]

    def case_ids(self, split: str | None = None) -> list[str]: ...

    def volume(self, case: str, kind: str) -> np.ndarray: ...


def to_network(image: np.ndarray) -> torch.Tensor:
    """8-bit image to the networks' range: v / 255 * 2 - 1, so that background 0 becomes exactly -1.

    Args:
        image: uint8, any shape.
    Returns:
        float32 tensor of the same shape in [-1, 1].
    Raises:
        InputError: If it is not 8-bit.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8:
        raise InputError(explain("the image is not 8-bit", got=image.dtype, expected="uint8, background 0"))
    return torch.from_numpy(np.ascontiguousarray(image).astype(np.float32)).div_(127.5).sub_(1)


class SliceDataset(Dataset):
    """Every slice of the chosen cases, map-style.

    Item: {"images": {m: float32 (1, H, W) in [-1, 1]}, "present": {m: bool}, "fov": bool (1, H, W), "tumour": bool
    (1, H, W), "case": str, "slice": int}. Volumes stay 8-bit, and nothing but the asked slices is converted.

    Args:
        dataset: Where the volumes come from.
        split: "train", "validation", "test" or "ood"; None for all loaded cases.
        modalities: Images wanted; None for all.
        cases: Only these cases of the split.
        absent: By case, images it is to do without: their volumes are not read, their slices are background (-1)
            everywhere, and "present" says so. Cases that are not named lack nothing.
    Raises:
        InputError: Unknown modality or case, no case left, or a case that has none of the images.
    """

    def __init__(
        self,
        dataset: CaseVolumes,
        split: str | None,
        modalities: Iterable[str] | None = None,
        cases: Iterable[str] | None = None,
        absent: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        self.modalities = _modalities(dataset, modalities)
        self.cases = _cases(dataset, split, cases)
        self._absent = _absent(self.modalities, self.cases, absent or {})
        self._read = getattr(dataset, "read_slice", None)
        if self._read is None:
            # (D, H, W) views of the files: a slice is one block of the file. An absent image is one zero, seen
            # everywhere.
            self._volumes = {
                kind: [self._volume(dataset, case, kind).transpose(2, 0, 1) for case in self.cases]
                for kind in (*self.modalities, "fov", "tumour")
            }
            counts = [len(volume) for volume in self._volumes["fov"]]
        else:
            counts = [dataset.n_slices(case) for case in self.cases]
        self._case_of = np.repeat(np.arange(len(counts)), counts)
        self._slice_of = np.concatenate([np.arange(n) for n in counts])

    def _volume(self, dataset: CaseVolumes, case: str, kind: str) -> np.ndarray:
        if kind not in self._absent[case]:
            return dataset.volume(case, kind)
        return np.broadcast_to(np.uint8(0), dataset.volume(case, "fov").shape)

    def __len__(self) -> int:
        return len(self._case_of)

    def has(self, case: str, modality: str) -> bool:
        """Whether a case has an image."""
        return modality not in self._absent[case]

    def _indices(self, indices: Sequence[int]) -> np.ndarray:
        array = np.asarray(indices)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or len(array) == 0:
            raise InputError(explain("indices are not a list of integers", got=indices, expected="for example [0, 5]"))
        if array.min() < -len(self) or array.max() >= len(self):
            raise IndexError(f"slice index out of range for {len(self)} slices: {array.min()} .. {array.max()}")
        return array % len(self)

    def _gather(self, kind: str, indices: np.ndarray) -> np.ndarray:
        pairs = zip(self._case_of[indices].tolist(), self._slice_of[indices].tolist(), strict=True)
        if self._read is not None:
            return np.stack([self._read_slice(self.cases[case], kind, k) for case, k in pairs])[:, None]
        volumes = self._volumes[kind]
        return np.stack([volumes[case][k] for case, k in pairs])[:, None]

    def _read_slice(self, case: str, kind: str, index: int) -> np.ndarray:
        if kind not in self._absent[case]:
            return self._read(case, kind, index)
        return np.zeros_like(self._read(case, "fov", index))

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """The slices at `indices`, collated: as `collate([self[i] for i in indices])`, but faster.

        Returns:
            "images": {m: (B, 1, H, W)}, "present": {m: bool (B,)}, "fov" and "tumour": bool (B, 1, H, W), "case": list
            of str, "slice": int64 (B,).
        """
        rows = self._indices(indices)
        cases = [self.cases[i] for i in self._case_of[rows].tolist()]
        return {
            "images": {m: to_network(self._gather(m, rows)) for m in self.modalities},
            "present": {m: torch.tensor([self.has(case, m) for case in cases]) for m in self.modalities},
            "fov": torch.from_numpy(self._gather("fov", rows) > 0),
            "tumour": torch.from_numpy(self._gather("tumour", rows) > 0),
            "case": cases,
            "slice": torch.from_numpy(self._slice_of[rows].astype(np.int64)),
        }

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = self._indices([int(index)])
        case = self.cases[int(self._case_of[rows[0]])]
        return {
            "images": {m: to_network(self._gather(m, rows)[0]) for m in self.modalities},
            "present": {m: self.has(case, m) for m in self.modalities},
            "fov": torch.from_numpy(self._gather("fov", rows)[0] > 0),
            "tumour": torch.from_numpy(self._gather("tumour", rows)[0] > 0),
            "case": case,
            "slice": int(self._slice_of[rows[0]]),
        }


def _modalities(dataset: CaseVolumes, modalities: Iterable[str] | None) -> tuple[str, ...]:
    names = dataset.modalities if modalities is None else modalities
    names = (names,) if isinstance(names, str) else tuple(names)
    unknown = [m for m in names if m not in dataset.modalities]
    if unknown or not names or len(set(names)) != len(names):
        raise InputError(
            explain("modalities cannot be used", got=list(names), expected=f"different ones of {dataset.modalities}")
        )
    return names


def _cases(dataset: CaseVolumes, split: str | None, cases: Iterable[str] | None) -> list[str]:
    available = dataset.case_ids(split)
    if cases is None:
        chosen = available
    else:
        chosen = [cases] if isinstance(cases, str) else list(cases)
        unknown = [case for case in chosen if case not in available]
        if unknown:
            raise InputError(
                explain(f"cases are not in split {split!r}", got=unknown, expected=f"some of {available[:3]} …")
            )
    if not chosen:
        raise InputError(explain(f"no case of split {split!r} is loaded", mend="load that split of the dataset first"))
    return chosen


def _absent(
    modalities: tuple[str, ...], cases: Sequence[str], absent: Mapping[str, Iterable[str]]
) -> dict[str, frozenset[str]]:
    """By case, the images it lacks; those of a case that is not used do not matter."""
    lacking = {case: frozenset(absent.get(case, ())) for case in cases}
    for case, names in lacking.items():
        unknown = sorted(names - set(modalities))
        if unknown:
            raise InputError(
                explain(f"absent images of {case} are unknown", got=unknown, expected=f"some of {modalities}")
            )
        if len(names) == len(modalities):
            raise InputError(
                explain(f"{case} has no image at all", got=f"all of {modalities} absent", mend="leave the case out")
            )
    return lacking


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Batch items of a `SliceDataset`: images and masks (B, 1, H, W), "present" and "slice" (B,), "case" a list.

    Raises:
        InputError: If there is no item, or the items have different modalities.
    """
    if not items:
        raise InputError(explain("there is nothing to collate", got="0 items", expected="at least one"))
    names = list(items[0]["images"])
    if any(list(item["images"]) != names for item in items):
        raise InputError(explain("items have different modalities", expected=f"{names} in each"))
    return {
        "images": {m: torch.stack([item["images"][m] for item in items]) for m in names},
        "present": {m: torch.tensor([item["present"][m] for item in items]) for m in names},
        "fov": torch.stack([item["fov"] for item in items]),
        "tumour": torch.stack([item["tumour"] for item in items]),
        "case": [item["case"] for item in items],
        "slice": torch.tensor([item["slice"] for item in items], dtype=torch.int64),
    }
