"""ReMIND from the Imaging Data Commons: size and licence first, then only with consent, series by series.

`idc-index` does the work; it is an extra, as it brings a database engine: pip install "mhvae_kit[data]". The series are
those of `data_manifests/remind_cases.csv`, checked against the index that is installed.
"""

from __future__ import annotations

import importlib
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mhvae_kit.data.dicom import dicom_files, read_header
from mhvae_kit.data.patient_manifests import SeriesRow, megabytes, read_rows
from mhvae_kit.environment import project_folder
from mhvae_kit.errors import DataError, InputError, MissingError, RunError, explain
from mhvae_kit.progress import progress

COLLECTION = "remind"
MANIFEST = "remind_cases.csv"
DEFAULT_CASES = 2
STORE = "https://s3.amazonaws.com"  # the collection lies in the public bucket idc-open-data
PATIENCE_S = 10.0
INSTALL = 'pip install "mhvae_kit[data]"'
CITATION = (
    "ReMIND, CC BY 4.0, doi 10.7937/3RAG-D070; cite Juvekar et al., Scientific Data 11:494 (2024), "
    "10.1038/s41597-024-03295-z"
)


def plan(cases: Sequence[str] | int = DEFAULT_CASES, manifest: str | Path | None = None) -> list[SeriesRow]:
    """The series to get for some cases.

    Args:
        cases: Ids such as "ReMIND-001", or how many: the first ones that have ultrasound and T2.
        manifest: `remind_cases.csv`; None = the project's.
    Raises:
        MissingError: There is no manifest.
        InputError: Unknown case, or less than one.
    """
    rows = read_rows(_manifest(manifest), SeriesRow)
    known = sorted({row.case for row in rows})
    if isinstance(cases, int):
        paired = [c for c in known if {"us", "t2"} <= {row.role for row in rows if row.case == c}]
        if not 1 <= cases <= len(paired):
            expected = f"1 to {len(paired)}, the cases with ultrasound and T2"
            raise InputError(explain("the number of cases cannot be used", got=cases, expected=expected))
        chosen = paired[:cases]
    else:
        chosen = list(cases)
        unknown = [c for c in chosen if c not in known]
        if unknown or not chosen:
            raise InputError(explain("unknown cases", got=unknown, expected=f"some of {known[0]} to {known[-1]}"))
    return [row for row in rows if row.case in chosen]


def _manifest(manifest: str | Path | None) -> Path:
    if manifest is not None:
        return Path(manifest)
    project = project_folder()
    if project is None:
        mend = "run it inside a clone of the project, or name the table"
        raise MissingError(explain(f"data_manifests/{MANIFEST} is not there", mend=mend))
    return project / "data_manifests" / MANIFEST


def describe(rows: Sequence[SeriesRow]) -> str:
    """What would be downloaded: cases, series, size, licence. To be shown before anybody consents."""
    cases = sorted({row.case for row in rows})
    licences = ", ".join(sorted({row.licence for row in rows}))
    return (
        f"{len(cases)} cases ({', '.join(cases[:3])}{', …' if len(cases) > 3 else ''}), {len(rows)} series, "
        f"{megabytes(list(rows)):.0f} MB; licence {licences}\n{CITATION}"
    )


def download(
    rows: Sequence[SeriesRow], folder: str | Path, *, consent: bool, client: Callable[[], Any] | None = None
) -> Path:
    """Get series into `<folder>/<case>/<role>/`. A series that is there whole is not fetched again.

    Args:
        rows: From `plan`.
        folder: Where they go.
        consent: Whether the user has agreed to size and licence.
        client: What makes an idc-index client; None = the real one.
    Returns:
        The folder.
    Raises:
        InputError: No consent.
        MissingError: idc-index is not installed, or there is no network.
        DataError: The index does not know a series any more, or what came is not whole.
        RunError: The disk has no room.
    """
    if not consent:
        mend = "say yes when asked, or add --yes"
        raise InputError(explain(f"nothing is downloaded without consent: {describe(rows)}", mend=mend))
    folder = Path(folder)
    missing = [row for row in rows if not _whole(_place(folder, row), row)]
    if not missing:
        return folder
    _room(folder, megabytes(missing))
    idc = (client or (lambda: _client(missing[0])))()
    for row in progress(missing, desc="downloading ReMIND", unit="series"):
        _fetch(idc, row, folder)
    return folder


def _client(first: SeriesRow) -> Any:
    """The real client; the store is asked first, as client and downloading program wait long for a silent network."""
    try:
        library = importlib.import_module("idc_index")
    except ImportError as error:
        raise MissingError(explain("idc-index is not installed", mend=f"{INSTALL}, or give files on disk")) from error
    if not _reachable():
        raise MissingError(_no_network(first, f"{STORE} does not answer within {PATIENCE_S:g} s"))
    return library.IDCClient()


def _reachable() -> bool:
    """Whether the store answers at all."""
    try:
        with urllib.request.urlopen(urllib.request.Request(STORE, method="HEAD"), timeout=PATIENCE_S):
            return True
    except urllib.error.HTTPError:
        return True  # it answers
    except OSError:
        return False


def _place(folder: Path, row: SeriesRow) -> Path:
    return folder / row.case / row.role


def _whole(place: Path, row: SeriesRow) -> bool:
    """Whether all files of a series are there, and nothing but it."""
    if not place.is_dir():
        return False
    files = dicom_files(place)
    return len(files) == row.files and all(str(read_header(f).SeriesInstanceUID) == row.series_uid for f in files)


def _room(folder: Path, need_mb: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / 1e6
    if free < 1.1 * need_mb:
        got, want = f"{free:.0f} MB free", f"{1.1 * need_mb:.0f} MB"
        mend = "free some space, choose another folder or fewer cases"
        raise RunError(explain(f"there is no room for the download in {folder}", got=got, expected=want, mend=mend))


def _fetch(idc: Any, row: SeriesRow, folder: Path) -> None:
    """One series: into a folder beside, checked, then renamed, so that half a series is never taken for one."""
    place = _place(folder, row)
    beside = place.with_name(f".tmp-{row.role}")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        options = {"downloadDir": str(beside), "dirTemplate": None, "show_progress_bar": False, "quiet": True}
        idc.download_dicom_series(row.series_uid, **options)
    except Exception as error:  # whatever the library or its helper program raises, there is one thing to tell
        shutil.rmtree(beside, ignore_errors=True)
        raise MissingError(_no_network(row, " ".join(str(error).split())[:160])) from error
    if not _whole(beside, row):
        n = len(dicom_files(beside))
        shutil.rmtree(beside, ignore_errors=True)
        if n == 0:
            raise MissingError(_no_network(row, "no file came"))
        got, want = f"{n} files", f"{row.files} of series {row.series_uid}"
        mend = "try again; if it stays so, the index has a newer version of the series"
        raise DataError(explain(f"{row.case} {row.role} did not come whole", got=got, expected=want, mend=mend))
    beside.rename(place)


def _no_network(row: SeriesRow, reason: str) -> str:
    mend = (
        "connect to a network and run the same command again, what is there is kept; or get the collection elsewhere "
        "(`idc download remind`) and give its folder instead of --download"
    )
    return explain(f"{row.case} {row.role} cannot be downloaded ({reason})", mend=mend)
