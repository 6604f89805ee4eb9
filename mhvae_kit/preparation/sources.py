"""Which files belong to which case and modality, for the three kinds of folders that are read.

* `folder`: one folder a case with files or DICOM folders named by modality (`P01/us.nrrd`, `P01/t2/*.dcm`), or flat
  files `<case>-<modality>.nii.gz`. A label is called `tumour`, a transform `<modality>.tfm` or `transform.tfm`.
* `brats`: MR only, with the names of BraTS (since 2018) or of UPenn-GBM's NIfTI release.
* `remind`: DICOM as the Imaging Data Commons delivers it, or the NRRD names of the collection's authors; the rules in
  `REMIND` say which series plays which role.

Two cases that would get one id are refused, and so is a file whose name says another modality than its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mhvae_kit.data.volumes_in import ITK, NIFTI
from mhvae_kit.errors import DataError, InputError, MissingError, explain

ROUTES = ("remind", "brats", "folder")
MODALITIES = ("us", "t2", "cet1", "flair")
LABEL_NAMES = ("tumour", "tumor", "seg", "label")
FORMATS = (*NIFTI, *ITK, ".dcm")

# What a name says about its modality; the first that fits counts, so "t2_flair" is FLAIR and "t1ce" is not T1.
SAYS = (
    ("flair", re.compile(r"(?<![a-z])(flair|t2f)(?![a-z])")),
    ("cet1", re.compile(r"(?<![a-z])(cet1|t1ce|t1c|t1gd|t1[ _-]*post\w*|post[ _-]*contrast|postcontrast)(?![a-z0-9])")),
    ("us", re.compile(r"(?<![a-z])(us|ius|ultrasound)(?![a-z])")),
    ("t2", re.compile(r"(?<![a-z])(t2|t2w)(?![a-z0-9])")),
)

REMIND: dict[str, tuple[str, str]] = {
    "us": ("US", r"US_pre_dura"),
    "t2": ("MR", r"3D_.*T2_SPACE(-r)?"),
    "cet1": ("MR", r"3D_.*T1_postcontrast(-r)?"),
    "flair": ("MR", r"3D_.*FLAIR(-r)?"),
    "tumour": ("SEG", r"tumor(_target)? seg - MR ref: .*"),
}
"""Role -> modality and full pattern of the series description. MR comes from the study without ultrasound, which is the
one before surgery: every study carries the same date. Source: the released preparation of the four-modality model."""

BRATS: tuple[tuple[str, dict[str, str]], ...] = (
    (r"(?P<case>BraTS-[\w-]+?)-{}\.nii(\.gz)?", {"t2": "t2w", "cet1": "t1c", "flair": "t2f", "tumour": "seg"}),
    (r"(?P<case>BraTS\w+?)_{}\.nii(\.gz)?", {"t2": "t2", "cet1": "t1ce", "flair": "flair", "tumour": "seg"}),
    (
        r"(?P<case>UPENN-GBM-\d{{5}}_11)_{}\.nii(\.gz)?",
        {"t2": "T2", "cet1": "T1GD", "flair": "FLAIR", "tumour": "segm"},
    ),
)
"""Name pattern ({} is the modality's own name) and the names. UPenn-GBM's "_11" is the scan before surgery."""


@dataclass(frozen=True)
class ImageFile:
    """One volume of a case that has not been read yet.

    Attributes:
        path: A file, or a folder of one DICOM series.
        files: The files of a DICOM series when the folder holds several; empty otherwise.
        says: What its name or description claims it to be.
        transform: ".tfm" files that bring it to the reference, in the order of `registration.fixed_to_moving`.
    """

    path: Path
    files: tuple[Path, ...] = ()
    says: str = ""
    transform: tuple[Path, ...] = ()


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case: images by modality, label by name ("tumour"), and where it was found."""

    case: str
    place: Path
    images: dict[str, ImageFile] = field(default_factory=dict)
    labels: dict[str, ImageFile] = field(default_factory=dict)


def find_cases(route: str, folder: str | Path, transforms: str | Path | None = None) -> list[CaseFiles]:
    """Cases of a folder, sorted by id.

    Args:
        route: "remind", "brats" or "folder".
        folder: Where to look.
        transforms: Folder of .tfm files: the released `registration` folder for "remind"; `<case>.tfm` or
            `<case>-<modality>.tfm` for "folder". None takes only those beside the images.
    Raises:
        InputError: There is no such route.
        MissingError: There is no such folder, or nothing in it that this route knows.
        DataError: Two cases with one id, or a modality twice.
    """
    if route not in ROUTES:
        raise InputError(explain("unknown route", got=repr(route), expected=" or ".join(ROUTES)))
    folder, moves = Path(folder), None if transforms is None else Path(transforms)
    for place in (folder, moves):
        if place is not None and not place.is_dir():
            raise MissingError(explain(f"the folder {place} is not there", expected="a folder"))
    from mhvae_kit.preparation.remind import remind_cases

    routes: dict[str, Callable[[], list[CaseFiles]]] = {
        "folder": lambda: _folder_cases(folder, moves),
        "brats": lambda: _brats_cases(folder),
        "remind": lambda: remind_cases(folder, moves),
    }
    cases = routes[route]()
    if not cases:
        mend = "see `mhvae prepare --help` for the names that are understood"
        raise MissingError(explain(f"there is no case of the {route} route in {folder}", mend=mend))
    _distinct(cases)
    return sorted(cases, key=lambda c: c.case)


def _distinct(cases: list[CaseFiles]) -> None:
    """Refuse ids that two cases share; letters' case does not count, as it does not in every file system."""
    seen: dict[str, CaseFiles] = {}
    for case in cases:
        other = seen.setdefault(case.case.lower(), case)
        if other is not case:
            got = f"{other.place} and {case.place}"
            raise DataError(explain(f"two cases have the id {case.case}", got=got, mend="rename one of them"))
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", case.case):
            expected = "letters, figures, dash, dot and underscore"
            raise DataError(explain("a case id cannot be used as a folder", got=repr(case.case), expected=expected))


def claimed_modality(text: str) -> str | None:
    """The modality that a name or series description claims; None when it claims none."""
    for modality, pattern in SAYS:
        if pattern.search(text.lower().replace("_", " ").replace("-", " ")):
            return modality
    return None


def stem(path: Path) -> str:
    """A file's name without the ending of its format."""
    for suffix in FORMATS:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def _folder_cases(folder: Path, transforms: Path | None) -> list[CaseFiles]:
    """One folder a case, and flat files `<case>-<modality>.<ending>` beside them."""
    found = []
    for place in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        parts = {_role(stem(p)): p for p in _entries(place) if _role(stem(p))}
        twice = [p.name for p in _entries(place) if _role(stem(p)) and parts[_role(stem(p))] != p]
        if twice:
            got = f"{twice[0]} and {parts[_role(stem(place / twice[0]))].name}"
            raise DataError(explain(f"{place} has one modality twice", got=got, mend="leave one of them out"))
        if any(role in MODALITIES for role in parts):
            found.append(_case(place.name, place, parts, transforms))
    flat: dict[str, dict[str, Path]] = {}
    for path in (p for p in sorted(folder.iterdir()) if p.is_file() and stem(p) != p.name):
        case, _, name = stem(path).rpartition("-")
        role = _role(name)
        if case and role:
            if role in flat.setdefault(case, {}):
                raise DataError(explain(f"case {case} has {role} twice", got=path, mend="leave one of them out"))
            flat[case][role] = path
    return found + [_case(case, folder, parts, transforms) for case, parts in flat.items()]


def _entries(place: Path) -> list[Path]:
    """Volumes in a case's folder: files of a known format, and folders."""
    return sorted(p for p in place.iterdir() if p.is_dir() or (stem(p) != p.name and not p.name.startswith(".")))


def _role(name: str) -> str | None:
    """Modality or "tumour" that a bare name stands for."""
    low = name.lower()
    return low if low in MODALITIES else "tumour" if low in LABEL_NAMES else None


def _case(case: str, place: Path, parts: dict[str, Path], transforms: Path | None) -> CaseFiles:
    images = {
        role: ImageFile(parts[role], transform=_beside(case, place, role, transforms))
        for role in MODALITIES
        if role in parts
    }
    labels = {"tumour": ImageFile(parts["tumour"])} if "tumour" in parts else {}
    return CaseFiles(case, place, images, labels)


def _beside(case: str, place: Path, role: str, transforms: Path | None) -> tuple[Path, ...]:
    """The transform file of an MR image: named by modality first, then the case's own; none for ultrasound."""
    if role == "us":
        return ()
    names = [] if transforms is None else [transforms / f"{case}-{role}.tfm", transforms / f"{case}.tfm"]
    if place.name == case:
        names += [place / f"{role}.tfm", place / "transform.tfm"]
    else:
        names += [place / f"{case}-{role}.tfm", place / f"{case}.tfm"]
    return next(((path,) for path in names if path.is_file()), ())


def _brats_cases(folder: Path) -> list[CaseFiles]:
    """MR of BraTS or UPenn-GBM by their file names, in any depth of folders."""
    images: dict[str, dict[str, ImageFile]] = {}
    places: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.nii*")):
        for pattern, names in BRATS:
            roles = {n: role for role, n in names.items()}
            match = re.fullmatch(pattern.format(f"(?P<name>{'|'.join(roles)})"), path.name)
            if match is None:
                continue
            case, role = match["case"], roles[match["name"]]
            known = images.setdefault(case, {})
            places.setdefault(case, path.parent)
            if role in known:
                got = f"{known[role].path} and {path}"
                raise DataError(explain(f"two cases have the id {case}", got=got, mend="leave one copy out"))
            known[role] = ImageFile(path, says=path.name)
            break
    return [
        CaseFiles(
            case,
            places[case],
            {m: parts[m] for m in MODALITIES if m in parts},
            {"tumour": parts["tumour"]} if "tumour" in parts else {},
        )
        for case, parts in images.items()
        if any(m in parts for m in MODALITIES)
    ]
