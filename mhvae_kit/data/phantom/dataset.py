"""`load_phantom`: the embedded dataset, made on first use into a cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from mhvae_kit.data.manifests import COLUMNS, write_manifest
from mhvae_kit.errors import DataError, InputError, explain
from mhvae_kit.files import atomic_path, default_cache_dir, sha256, write_json

from . import store
from .atlas import Atlas, load_atlas
from .generate import N_ORACLE_DRAWS, make_images, make_oracle, make_patient
from .presets import KINDS, MODALITIES, SPLITS, PhantomPreset, case_table, get_preset

CACHE_MANIFEST = "manifest.csv"
ORACLE_FILE = "oracle_us.nii"
ORACLE_RECORD = "oracle_us.json"
AFFINE_TOLERANCE_MM = 0.01

_making = threading.Lock()
"""Held while cases are made or leftovers removed, so that threads of one process do not see each other as leftovers."""

_verified: set[tuple[str, int]] = set()
"""Case records whose files were hashed in this process, by path and time of writing."""


class PhantomDataset:
    """Patients of one preset, read from the cache.

    Attributes:
        preset: "smoke", "demo" or "paper".
        name: "phantom-" and the preset.
        root: Folder of the cases.
        spacing_mm: Size of the cubic voxels.
        shape: (H, W, D) of every volume: depth along the beam, lateral, slice.
        modalities: Names of the images.
        manifest: One row a file: case, split, file, sha256, shape, spacing, seed.
        digest: sha256 over the sorted file hashes: two datasets with one digest hold the same images.
    """

    def __init__(self, preset: PhantomPreset, root: Path, records: list[dict]) -> None:
        self._preset = preset
        self._records = {record["case"]: record for record in records}
        # Kept only as long as somebody uses them, and then shared by all who do.
        self._volumes: weakref.WeakValueDictionary[tuple[str, str], np.ndarray] = weakref.WeakValueDictionary()
        self._affines: dict[str, np.ndarray] = {}
        self.root = root
        self.preset = preset.name
        self.name = f"phantom-{preset.name}"
        self.spacing_mm = preset.spacing_mm
        self.shape = preset.shape
        self.modalities = MODALITIES
        self.manifest = manifest_rows(records)
        self.digest = hashlib.sha256("\n".join(sorted(self.manifest["sha256"])).encode()).hexdigest()

    def __repr__(self) -> str:
        return f"PhantomDataset({self.name}, {len(self._records)} patients, {self.digest[:12]})"

    def case_ids(self, split: str | None = None) -> list[str]:
        """Ids of the loaded cases, of one split or of all.

        Raises:
            InputError: If there is no such split.
        """
        if split is not None:
            _known("split", split, SPLITS)
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
        """Drawn parameters of a case (tumour, probe, fan, head), its seed and split."""
        record = self._record(case)
        return {"case": case, "split": record["split"], "seed": record["seed"], **record["parameters"]}

    def path(self, case: str, kind: str) -> Path:
        """NIfTI file of a case; `kind` is a modality, "tumour" or "fov"."""
        self._record(case)
        return self.root / case / f"{_known('kind', kind, KINDS)}.nii"

    def volume(self, case: str, kind: str) -> np.ndarray:
        """A case's image or label, uint8 (H, W, D), read-only.

        Args:
            case: Case id.
            kind: A modality (background 0, foreground 1..255), "tumour" or "fov" (0 or 1).
        Raises:
            DataError: If the file is unreadable, or its affine differs from the case's other files.
        """
        path = self.path(case, kind)
        volume = self._volumes.get((case, kind))
        if volume is None:
            volume, affine = store.open_volume(path, self.shape)
            self._check_affine(case, path, affine)
            self._volumes[case, kind] = volume
        return volume

    def affine(self, case: str) -> np.ndarray:
        """Voxel index (row, column, slice) to world coordinates in mm (RAS), (4, 4); oblique."""
        if case not in self._affines:
            self.volume(case, "fov")
        return self._affines[case].copy()

    def _check_affine(self, case: str, path: Path, affine: np.ndarray) -> None:
        known = self._affines.setdefault(case, affine)
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], [1], indexing="ij")).reshape(4, -1)
        apart_mm = float(np.abs((affine - known) @ corners).max())
        if not apart_mm <= AFFINE_TOLERANCE_MM:
            mend = store.mend_hint(path)
            got, want = f"corners {apart_mm:.2f} mm apart", f"at most {AFFINE_TOLERANCE_MM} mm"
            problem = f"{path} does not lie on the grid of the case's other files"
            raise DataError(explain(problem, got=got, expected=want, mend=mend))

    def oracle(self, case: str) -> np.ndarray:
        """The best prediction of a phantom ultrasound that knows everything but the speckle.

        It is the mean over 64 speckle draws of the same patient, none of them the stored image; made on demand (about
        4 s a patient at "demo" size) and kept beside the images.

        Returns:
            float32 (H, W, D) in [-1, 1], background exactly -1.
        """
        kept = self._kept_oracle(case)
        if kept is not None:
            return kept
        patient = make_patient(case, self._preset, _atlas(self.root))
        mean = make_oracle(patient)
        folder = self.root / case
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the result
            with atomic_path(folder / ORACLE_FILE) as temporary:
                store.write_nifti(temporary, mean, patient.affine)
            record = {"sha256": sha256(folder / ORACLE_FILE), "draws": N_ORACLE_DRAWS}
            write_json(folder / ORACLE_RECORD, record)
        return mean

    def _kept_oracle(self, case: str) -> np.ndarray | None:
        """The oracle made earlier; None if there is none or it is damaged, as it can be made again from the seed."""
        self._record(case)
        path = self.root / case / ORACLE_FILE
        try:
            record = json.loads((path.parent / ORACLE_RECORD).read_text(encoding="utf-8"))
            if record != {"sha256": sha256(path), "draws": N_ORACLE_DRAWS}:
                return None
            return store.open_volume(path, self.shape, np.float32)[0]
        except (OSError, ValueError):  # DataError is a ValueError
            return None

    def verify(self) -> None:
        """Hash every file again and compare with the manifest.

        Raises:
            DataError: Names the first file that is missing, truncated or changed.
        """
        for case, record in self._records.items():
            store.verify_case(self.root / case, record)


def load_phantom(
    preset: str,
    *,
    splits: Iterable[str] | None = None,
    cases: Iterable[str] | None = None,
    cache_dir: str | Path | None = None,
    show_progress: bool = True,
) -> PhantomDataset:
    """The embedded phantom dataset. Missing patients are made (offline, well under 1 s each at "demo"), others read.

    Args:
        preset: "smoke" (64 px at 1.5 mm), "demo" (96 px at 1 mm) or "paper" (192 px at 0.5 mm).
        splits: Only these of "train", "validation", "test", "ood"; None for all.
        cases: Only these case ids; None for all.
        cache_dir: Where cases are kept; default the MHVAE_CACHE variable, else the user's cache folder.
        show_progress: Whether a progress bar shows while patients are made.
    Raises:
        InputError: Unknown preset, split or case.
        DataError: A cached file was changed or truncated; the message names the file and the mend.
        RunError: The cache cannot be written, for example because the disk is full.
    """
    chosen = get_preset(preset)
    wanted = _select(chosen, splits, cases)
    cache = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
    root = store.preset_dir(cache.absolute(), chosen)
    with _making:
        store.clean_leftovers(root)
        missing = [case for case in wanted if not store.is_complete(root / case)]
        if missing:
            _generate(chosen, root, missing, show_progress)
        records = [_load_case(root / case) for case in wanted]
        if missing or not (root / CACHE_MANIFEST).is_file():
            _write_cache_manifest(chosen, root)
    return PhantomDataset(chosen, root, records)


def _atlas(root: Path) -> Atlas:
    with store.writing(root.parent):
        return load_atlas(root.parent)


def _known(what: str, value: object, names: Iterable[str]) -> str:
    if value not in tuple(names):
        raise InputError(explain(f"unknown {what}", got=repr(value), expected=" or ".join(map(repr, names))))
    return str(value)


def _select(preset: PhantomPreset, splits: Iterable[str] | None, cases: Iterable[str] | None) -> list[str]:
    """Case ids asked for, in the preset's order."""
    table = case_table(preset)
    kept = set(table)
    if splits is not None:
        splits = [splits] if isinstance(splits, str) else list(splits)
        kept &= {case for case, split in table.items() if split in [_known("split", s, SPLITS) for s in splits]}
    if cases is not None:
        cases = [cases] if isinstance(cases, str) else list(cases)
        for case in cases:
            if case not in table:
                expected = "ids like 'phantom-train-000' within " + ", ".join(
                    f"{n} {split}" for split, n in preset.n_cases.items()
                )
                raise InputError(explain(f"unknown case of preset {preset.name!r}", got=repr(case), expected=expected))
        kept &= set(cases)
    if not kept:
        raise InputError(
            explain("no case is left", got=f"splits {splits}, cases {cases}", expected="at least one case")
        )
    return [case for case in table if case in kept]


def _generate(preset: PhantomPreset, root: Path, missing: list[str], show_progress: bool) -> None:
    """Make the missing cases, one after the other; each is there whole or not at all."""
    atlas = _atlas(root)
    table = case_table(preset)
    bar = None
    if show_progress:
        from mhvae_kit.progress import progress

        bar = progress(total=len(missing), desc=f"making phantom-{preset.name}", unit="patient")
    try:
        for case in missing:
            folder = root / case
            if folder.exists() and not store.is_complete(folder):
                store.discard(folder)
            patient = make_patient(case, preset, atlas)
            store.write_case(root, patient, table[case], make_images(patient))
            if bar is not None:
                bar.update(1)
    finally:
        if bar is not None:
            bar.close()


def _load_case(folder: Path) -> dict:
    """Read a case's record and check its files: sizes always, hashes once a process (under a millisecond each)."""
    record = store.read_record(folder)
    key = (str(folder), (folder / store.CASE_FILE).stat().st_mtime_ns)
    store.verify_case(folder, record, hashes=key not in _verified)
    _verified.add(key)
    return record


def manifest_rows(records: list[dict]) -> pd.DataFrame:
    """Manifest of the given case records, one row a file."""
    rows = [
        {
            "case": record["case"],
            "split": record["split"],
            "file": f"{record['case']}/{name}",
            "sha256": entry["sha256"],
            "shape": "x".join(str(n) for n in record["shape"]),
            "spacing": record["spacing_mm"],
            "seed": record["seed"],
        }
        for record in records
        for name, entry in record["files"].items()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _write_cache_manifest(preset: PhantomPreset, root: Path) -> None:
    """The cache's own manifest of every finished case, rebuilt from their records so that processes cannot clash."""
    done = [store.read_record(root / case) for case in case_table(preset) if store.is_complete(root / case)]
    with store.writing(root):
        write_manifest(manifest_rows(done), root / CACHE_MANIFEST)


def compare_with_reference(dataset: PhantomDataset, reference: pd.DataFrame) -> dict[str, int]:
    """How many files have the bytes of a reference manifest.

    The reference hashes identify the bytes made on the machine that wrote them. Another processor or another version of
    numpy or scipy may round a few voxels by one grey level, so a difference here is a fact to report, not an error; on
    one machine the same seed always gives the same bytes.

    Args:
        dataset: The loaded phantom.
        reference: Manifest read by `mhvae_kit.data.manifests.read_manifest`, for example
            data_manifests/phantom_demo.csv.
    Returns:
        {"identical": files with the same hash, "different": files with another, "unknown": files without a reference}.
    """
    known = dict(zip(reference["file"], reference["sha256"], strict=True))
    mine = dict(zip(dataset.manifest["file"], dataset.manifest["sha256"], strict=True))
    identical = sum(known.get(name) == value for name, value in mine.items())
    unknown = sum(name not in known for name in mine)
    return {"identical": identical, "different": len(mine) - identical - unknown, "unknown": unknown}
