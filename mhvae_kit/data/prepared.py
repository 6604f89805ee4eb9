"""`load_prepared`: a folder of patients' cases as `mhvae prepare` left it, read slice by slice.

It stands wherever the phantom stands. Volumes are uncompressed 8-bit NIfTI in which a slice is one block of bytes, so
`read_slice` opens the file, reads that block and closes it: nothing of a case stays in memory, and no file stays open,
however many cases there are.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from mhvae_kit.data.corners import CORNER_TOLERANCE_MM, corner_distance_mm
from mhvae_kit.data.manifests import COLUMNS
from mhvae_kit.data.phantom import store
from mhvae_kit.data.phantom.presets import SPLITS
from mhvae_kit.errors import DataError, InputError, MissingError, explain
from mhvae_kit.files import sha256, write_text

DATASET_FILE = "dataset.json"
SPLIT_FILE = "split.csv"
SCHEMA = 1
LABEL, FOV = "tumour", "fov"


class PreparedDataset:
    """Cases of a prepared folder; the interface of `PhantomDataset`.

    Attributes:
        name: Name of the dataset.
        root: Folder of the cases.
        modalities: Images that every loaded case has, but for those in `absent`.
        absent: By case, images it lacks; only with `partial` is there any.
        spacing_mm: Size of a pixel.
        shape: (H, W, D) of a volume; D is that of the deepest case, as depths may differ.
        recipe: How the cases were brought onto their grid.
        manifest: One row a file: case, split, file, sha256, shape, spacing, seed (always 0).
        digest: sha256 over the sorted file hashes: two datasets with one digest hold the same images.
    """

    def __init__(self, root: Path, about: dict, records: list[dict], modalities: tuple[str, ...]) -> None:
        self._records = {record["case"]: record for record in records}
        self._volumes: weakref.WeakValueDictionary[tuple[str, str], np.ndarray] = weakref.WeakValueDictionary()
        self.root, self.name, self.recipe = root, about["name"], about["recipe"]
        self.modalities = modalities
        lacking = {r["case"]: tuple(m for m in modalities if f"{m}.nii" not in r["files"]) for r in records}
        self.absent = {case: names for case, names in lacking.items() if names}
        self.spacing_mm = float(records[0]["spacing_mm"][0])
        shapes = np.array([record["shape"] for record in records])
        self.shape = (int(shapes[0, 0]), int(shapes[0, 1]), int(shapes[:, 2].max()))
        self.manifest = _rows(records)
        self.digest = hashlib.sha256("\n".join(sorted(self.manifest["sha256"])).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"PreparedDataset({self.name}, {len(self._records)} cases, {self.digest[:12]})"

    def case_ids(self, split: str | None = None) -> list[str]:
        """Ids of the loaded cases, of one split or of all.

        Raises:
            InputError: If there is no such split.
        """
        if split is not None and split not in SPLITS:
            raise InputError(explain("unknown split", got=repr(split), expected=" or ".join(map(repr, SPLITS))))
        return [case for case, record in self._records.items() if split in (None, record["split"])]

    def _record(self, case: str) -> dict:
        if case not in self._records:
            some = ", ".join(list(self._records)[:3]) + ", …"
            raise InputError(explain("the case is not loaded", got=repr(case), expected=f"one of {some}"))
        return self._records[case]

    def split_of(self, case: str) -> str:
        """Split of a case."""
        return self._record(case)["split"]

    def describe(self, case: str) -> dict:
        """What is on record of a case: sources, registration, steps, split."""
        return dict(self._record(case))

    def has(self, case: str, kind: str) -> bool:
        """Whether a case has an image or label of its own."""
        return f"{kind}.nii" in self._record(case)["files"]

    def shape_of(self, case: str) -> tuple[int, int, int]:
        """(H, W, D) of a case."""
        return tuple(self._record(case)["shape"])

    def path(self, case: str, kind: str) -> Path:
        """NIfTI file of a case; `kind` is a modality, "tumour", "fov" or the name of a further segment.

        Raises:
            InputError: The case has no such file.
        """
        if not self.has(case, kind):
            names = [name.removesuffix(".nii") for name in self._record(case)["files"]]
            raise InputError(explain(f"{case} has no such file", got=repr(kind), expected=" or ".join(names)))
        return self.root / case / f"{kind}.nii"

    def volume(self, case: str, kind: str) -> np.ndarray:
        """A case's image or label, uint8 (H, W, D), read-only; zeros for "tumour" when the case has no label.

        Raises:
            InputError: The case has no such file.
            DataError: The file is unreadable, truncated, or lies elsewhere than the case's fan.
        """
        if kind == LABEL and not self.has(case, LABEL):
            return np.zeros(self.shape_of(case), dtype=np.uint8)
        path = self.path(case, kind)
        volume = self._volumes.get((case, kind))
        if volume is None:
            volume, affine = store.open_volume(path, self.shape_of(case), hint=mend_hint(path))
            if kind != FOV and corner_distance_mm(affine, self.affine(case), self.shape_of(case)) > CORNER_TOLERANCE_MM:
                raise DataError(explain(f"{path} does not lie on the grid of the case's fan", mend=mend_hint(path)))
            self._volumes[case, kind] = volume
        return volume

    def affine(self, case: str) -> np.ndarray:
        """Voxel index (row, column, slice) to world coordinates in mm (RAS), (4, 4); oblique as the ultrasound was."""
        path = self.path(case, FOV)
        return store.open_volume(path, self.shape_of(case), hint=mend_hint(path))[1].copy()

    def n_slices(self, case: str) -> int:
        """Number of slices of a case."""
        return int(self._record(case)["shape"][2])

    def read_slice(self, case: str, kind: str, index: int) -> np.ndarray:
        """One slice from the disk, uint8 (H, W); nothing else is read and nothing is kept.

        Raises:
            InputError: The case has no such file.
            DataError: The file is shorter than it was.
        """
        height, width, depth = self.shape_of(case)
        if kind == LABEL and not self.has(case, LABEL):
            return np.zeros((height, width), dtype=np.uint8)
        if not 0 <= index < depth:
            raise IndexError(f"slice index {index} out of range for {depth} slices of {case}")
        path, count = self.path(case, kind), height * width
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(store.HEADER_BYTES + index * count)
                block = file.read(count)
        except OSError as error:
            raise DataError(explain(f"{path} cannot be read ({error.strerror})", mend=mend_hint(path))) from error
        if len(block) != count:
            raise DataError(explain(f"{path} is truncated", got=len(block), expected=count, mend=mend_hint(path)))
        return np.frombuffer(block, dtype=np.uint8).reshape(width, height).T

    def verify(self) -> None:
        """Hash every file again and compare with its record.

        Raises:
            DataError: Names the first file that is missing, truncated or changed.
        """
        for case, record in self._records.items():
            _verify(self.root / case, record, hashes=True)


def load_prepared(
    folder: str | Path,
    *,
    modalities: Iterable[str] | None = None,
    splits: Iterable[str] | None = None,
    cases: Iterable[str] | None = None,
    partial: bool = False,
) -> PreparedDataset:
    """Open a folder that `mhvae prepare` wrote. Sizes are checked now, hashes by `verify`.

    Args:
        folder: The folder.
        modalities: Images wanted: cases that lack one are left out. None = those that all cases have.
        splits: Only these of "train", "validation", "test", "ood"; None for all.
        cases: Only these case ids; None for all.
        partial: Keep cases that have some of the images, for training with missing ones; `absent` then names the rest.
    Raises:
        MissingError: There is no prepared dataset.
        InputError: Unknown split or case, no case is left, or the cases share no image.
        DataError: A file is missing or truncated, or cases were prepared to different sizes.
    """
    root = Path(folder).expanduser()
    about, dealt = read_dataset_record(root), read_splits(root)
    records = [
        read_case_record(place) | {"split": dealt.get(place.name, "train")}
        for place in sorted(root.iterdir())
        if is_complete(place)
    ]
    records = _chosen(records, modalities, splits, cases, any if partial else all)
    for record in records:
        _verify(root / record["case"], record, hashes=False)
    flat = {tuple(record["shape"][:2]) for record in records}
    if len(flat) > 1:
        raise DataError(explain(f"cases of {root} differ in size", got=sorted(flat), expected="one size"))
    return PreparedDataset(root, about, records, _shared(records, modalities, any if partial else all))


def _chosen(
    records: list[dict],
    modalities: Iterable[str] | None,
    splits: Iterable[str] | None,
    cases: Iterable[str] | None,
    enough: Callable[[Iterable[bool]], bool],
) -> list[dict]:
    """Records that were asked for; `enough` is `all` or `any` of the modalities."""
    asked = {"splits": _listed(splits), "cases": _listed(cases), "modalities": _listed(modalities)}
    unknown = [s for s in asked["splits"] or [] if s not in SPLITS]
    unknown += [c for c in asked["cases"] or [] if c not in {r["case"] for r in records}]
    if unknown:
        raise InputError(explain("unknown split or case", got=unknown, expected="ones of the prepared dataset"))
    kept = [
        record
        for record in records
        if (asked["splits"] is None or record["split"] in asked["splits"])
        and (asked["cases"] is None or record["case"] in asked["cases"])
        and (not asked["modalities"] or enough(f"{m}.nii" in record["files"] for m in asked["modalities"]))
    ]
    if not kept:
        got = ", ".join(f"{k} {v}" for k, v in asked.items() if v is not None) or f"{len(records)} prepared cases"
        raise InputError(explain("no case is left", got=got, expected="at least one"))
    return kept


def _listed(values: Iterable[str] | None) -> list[str] | None:
    return None if values is None else [values] if isinstance(values, str) else list(values)


def _shared(
    records: list[dict], modalities: Iterable[str] | None, enough: Callable[[Iterable[bool]], bool]
) -> tuple[str, ...]:
    """Images that every case has (or any, as `enough` says), in the usual order."""
    if modalities is not None:
        return tuple(_listed(modalities))
    usual = ("t2", "cet1", "flair", "us")
    shared = [m for m in usual if enough(f"{m}.nii" in record["files"] for record in records)]
    if not shared:
        mend = "name the modalities you want, cases that lack one are then left out"
        raise InputError(explain("the cases share no image", got=f"{len(records)} cases", mend=mend))
    return tuple(shared)


def read_dataset_record(root: Path) -> dict:
    """The dataset.json of a prepared folder.

    Raises:
        MissingError: There is none.
        DataError: It is not what `mhvae prepare` wrote.
    """
    path = root / DATASET_FILE
    if not path.is_file():
        mend = "make one with `mhvae prepare`"
        raise MissingError(explain(f"there is no prepared dataset in {root}", mend=mend))
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        good = record["schema"] == SCHEMA and isinstance(record["name"], str) and isinstance(record["recipe"], dict)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(explain(f"{path} cannot be read ({error})", mend="prepare into a new folder")) from error
    if not good:
        raise DataError(explain(f"{path} is of another version of the kit", expected=f"schema {SCHEMA}"))
    return record


def is_complete(folder: Path) -> bool:
    """Whether a case's folder holds its record and all files that it names."""
    if folder.name.startswith(".") or not (folder / store.CASE_FILE).is_file():
        return False
    return all((folder / name).is_file() for name in read_case_record(folder)["files"])


def read_case_record(folder: Path) -> dict:
    """The case.json of a prepared case.

    Raises:
        DataError: It is not what `mhvae prepare` wrote.
    """
    path = folder / store.CASE_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        good = record["case"] == folder.name and f"{FOV}.nii" in record["files"] and len(record["shape"]) == 3
        good = good and all(Path(name).name == name for name in record["files"]) and len(record["spacing_mm"]) == 3
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(explain(f"{path} cannot be read ({error})", mend=mend_hint(path))) from error
    if not good:
        raise DataError(explain(f"{path} is no record of a prepared case", mend=mend_hint(path)))
    return record


def _verify(folder: Path, record: dict, hashes: bool) -> None:
    """Size and, with `hashes`, sha256 of every file of a case."""
    for name, expected in record["files"].items():
        path = folder / name
        if not path.is_file():
            raise DataError(explain(f"{path} is missing", mend=mend_hint(path)))
        size = path.stat().st_size
        if size != expected["bytes"]:
            got, want = f"{size} bytes", f"{expected['bytes']} bytes"
            raise DataError(explain(f"{path} is truncated or has grown", got=got, expected=want, mend=mend_hint(path)))
        if hashes and sha256(path) != expected["sha256"]:
            raise DataError(explain(f"{path} has changed since it was made: its sha256 differs", mend=mend_hint(path)))


def mend_hint(path: Path) -> str:
    """How to mend a damaged file of a prepared dataset."""
    return f"delete the folder {path.parent} and run `mhvae prepare` again, the other cases are kept"


def read_splits(root: Path) -> dict[str, str]:
    """Case -> split of a prepared folder; empty when there is no split.csv.

    Raises:
        DataError: The file is no table of case and split, or names an unknown split.
    """
    path = root / SPLIT_FILE
    return read_split_table(path) if path.is_file() else {}


def read_split_table(path: Path) -> dict[str, str]:
    """Case -> split of a CSV with the columns case and split.

    Raises:
        MissingError: There is no such file.
        DataError: Columns are missing, a split is unknown, or a case has two.
    """
    if not path.is_file():
        raise MissingError(explain(f"the table of splits {path} is not there", expected="a CSV with case and split"))
    try:
        frame = pd.read_csv(path, dtype=str)
        pairs = list(zip(frame["case"], frame["split"], strict=True))
    except (ValueError, KeyError, pd.errors.ParserError) as error:
        raise DataError(
            explain(f"{path} is no table of splits ({error})", expected="columns case and split")
        ) from error
    unknown = sorted({str(split) for _, split in pairs} - set(SPLITS))
    if unknown:
        raise DataError(explain(f"{path} has unknown splits", got=", ".join(unknown), expected=", ".join(SPLITS)))
    found: dict[str, str] = {}
    for case, split in pairs:
        if found.setdefault(case, split) != split:
            raise DataError(explain(f"{path} puts case {case} into two splits", expected="one split a case"))
    return found


def write_splits(root: Path, splits: dict[str, str]) -> None:
    """Write split.csv; splits of cases that are not in it now are kept, in case they come again."""
    table = read_splits(root) | splits
    write_text(root / SPLIT_FILE, "case,split\n" + "".join(f"{c},{s}\n" for c, s in sorted(table.items())))


def _rows(records: list[dict]) -> pd.DataFrame:
    """Manifest of case records, one row a file."""
    rows = [
        {
            "case": record["case"],
            "split": record["split"],
            "file": f"{record['case']}/{name}",
            "sha256": entry["sha256"],
            "shape": "x".join(str(n) for n in record["shape"]),
            "spacing": record["spacing_mm"][0],
            "seed": 0,
        }
        for record in records
        for name, entry in record["files"].items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))
