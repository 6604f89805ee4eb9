"""ReMIND: which series of a patient plays which role, in DICOM or in the authors' NRRD names, and their transforms."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mhvae_kit.data.dicom import Series, find_series
from mhvae_kit.errors import DataError, explain
from mhvae_kit.preparation.sources import REMIND, CaseFiles, ImageFile

# CaseNNN-intraop-US-pre_dura, CaseNNN-preop-MR-3D_AX_T2_SPACE, CaseNNN-preop-SEG-tumor-MR-3D_AX_T2_SPACE
NRRD_NAME = re.compile(
    r"Case(?P<number>\d{3})-(?P<when>intraop|preop)-(?P<kind>US|MR|SEG)-(?P<what>.+)\.(nrrd|nii|nii\.gz)"
)


def remind_cases(folder: Path, transforms: Path | None = None) -> list[CaseFiles]:
    """Cases of a folder that holds DICOM series in any order of folders, or the authors' NRRD files.

    Raises:
        DataError: A patient has two series for one role and no rule to choose.
    """
    named = sorted(p for p in folder.rglob("*") if NRRD_NAME.fullmatch(p.name))
    if named:
        return _nrrd_cases(folder, named, transforms)
    patients: dict[str, list[Series]] = {}
    for series in find_series(folder):
        patients.setdefault(series.patient, []).append(series)
    return [_dicom_case(folder, patient, found, transforms) for patient, found in patients.items()]


def choose(series: Iterable[Series]) -> dict[str, Series]:
    """Role -> series of one patient by the rules of `REMIND`; a role that no series fits is absent.

    The segmentation is the one drawn on T2 when there is one, else on contrast-enhanced T1, else on FLAIR; one that was
    drawn on another image is left out, as its place on these is not known.

    Raises:
        DataError: Two series fit a role.
    """
    known = list(series)
    during = {s.study for s in known if s.modality == "US"}
    chosen: dict[str, Series] = {}
    for role, (modality, pattern) in REMIND.items():
        fit = [s for s in known if s.modality == modality and re.fullmatch(pattern, s.description)]
        if modality != "US":
            fit = [s for s in fit if s.study not in during]
        if role == "tumour":
            fit = _best_label(fit, chosen)
        if len(fit) > 1:
            got = ", ".join(f"{s.description!r} (series {s.number})" for s in fit)
            mend = "move all but one out of the patient's folder"
            raise DataError(explain(f"{fit[0].patient} has {len(fit)} series for {role}", got=got, mend=mend))
        if fit:
            chosen[role] = fit[0]
    return chosen


def _best_label(fit: list[Series], chosen: dict[str, Series]) -> list[Series]:
    """Segmentations drawn on the first image in that order which has one."""
    for role in ("t2", "cet1", "flair"):
        drawn = [s for s in fit if role in chosen and s.description.endswith(f"MR ref: {chosen[role].description}")]
        if drawn:
            return drawn
    return []


def _dicom_case(folder: Path, patient: str, series: list[Series], transforms: Path | None) -> CaseFiles:
    chosen = choose(series)
    reference = _released_reference(patient, transforms)
    images = {
        role: ImageFile(
            s.files[0].parent if len(s.files) > 1 else s.files[0],
            s.files if len(s.files) > 1 else (),
            s.description,
            () if role == "us" else _released(patient, s.description, reference, transforms),
        )
        for role, s in chosen.items()
        if role != "tumour"
    }
    label = chosen.get("tumour")
    labels = {"tumour": ImageFile(label.files[0], says=label.description)} if label else {}
    return CaseFiles(patient, folder, images, labels)


def _nrrd_cases(folder: Path, paths: list[Path], transforms: Path | None) -> list[CaseFiles]:
    """The authors' names; roles by the same rules as the series descriptions."""
    parts: dict[str, dict[str, ImageFile]] = {}
    for path in paths:
        match = NRRD_NAME.fullmatch(path.name)
        case, what = f"ReMIND-{match['number']}", match["what"]
        described = {"US": f"US_{what}", "MR": what, "SEG": what.replace("-MR-", " seg - MR ref: ", 1)}[match["kind"]]
        for role, (modality, pattern) in REMIND.items():
            if modality != match["kind"] or not re.fullmatch(pattern, described):
                continue
            if role in parts.setdefault(case, {}) and role != "tumour":
                got = f"{parts[case][role].path.name} and {path.name}"
                raise DataError(explain(f"{case} has two files for {role}", got=got, mend="leave one of them out"))
            moves = () if modality != "MR" else _released(case, what, _released_reference(case, transforms), transforms)
            parts[case].setdefault(role, ImageFile(path, (), described, moves))
    return [
        CaseFiles(
            case,
            folder,
            {role: f for role, f in found.items() if role != "tumour"},
            {"tumour": found["tumour"]} if "tumour" in found else {},
        )
        for case, found in parts.items()
    ]


def _released_case(patient: str) -> str:
    """The authors' name of a patient: Case001 for ReMIND-001."""
    return f"Case{patient[-3:]}"


def _released_reference(patient: str, transforms: Path | None) -> tuple[Path, str] | None:
    """The authors' affine file of a patient and the description of the MR it belongs to."""
    if transforms is None:
        return None
    place = transforms / "affine" / _released_case(patient)
    for path in sorted(place.glob("*US-pre_dura-to-*.tfm")):
        return path, _bare(path.stem.rpartition("-MR-")[2])
    return None


def _bare(description: str) -> str:
    """A description without the "-r" that some of the authors' names end in."""
    return description.removesuffix("-r")


def _released(
    patient: str, description: str, reference: tuple[Path, str] | None, transforms: Path | None
) -> tuple[Path, ...]:
    """The files that bring an MR to the ultrasound: the affine alone for the reference MR, else affine and rigid."""
    if reference is None or transforms is None:
        return ()
    affine, name = reference
    if _bare(description) == name:
        return (affine,)
    for path in sorted((transforms / "rigid" / _released_case(patient)).glob("*.tfm")):
        if _bare(path.stem.rpartition("-MR-")[2]) == _bare(description):
            return (affine, path)
    return ()
