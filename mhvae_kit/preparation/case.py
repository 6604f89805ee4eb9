"""One case from its files to arrays on the common grid, with every step on record."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from mhvae_kit.data import registration
from mhvae_kit.data.coordinates import affine_ras, corner_distance_mm, same_grid, transform_from_ras
from mhvae_kit.data.dicom import is_dicom, read_header
from mhvae_kit.data.grid import (
    Recipe,
    common_grid,
    field_of_view,
    foreground_box,
    oriented,
    resample,
    resample_label,
    to_bytes,
)
from mhvae_kit.data.volumes_in import SourceVolume, read_volume
from mhvae_kit.errors import DataError, MissingError, explain
from mhvae_kit.figures.registration import RegistrationRow
from mhvae_kit.files import sha256
from mhvae_kit.preparation.sources import MODALITIES, CaseFiles, ImageFile, claimed_modality

LEAST_BACKGROUND = 0.02
"""Share of exact zeros that an ultrasound volume has around its fan at least."""


@dataclass
class PreparedCase:
    """A case on its grid, not yet written.

    Attributes:
        case: Its id.
        images: uint8 (H, W, D) by kind: the modalities, "fov", and "tumour" when there is a label.
        affine: Index (row, column, slice) to RAS in mm.
        spacing_mm: Of the three axes.
        record: What was done, as plain values.
        check: By MR name, what `figures.registration_grid` shows.
    """

    case: str
    images: dict[str, np.ndarray]
    affine: np.ndarray
    spacing_mm: tuple[float, float, float]
    record: dict
    check: dict[str, RegistrationRow] = field(default_factory=dict)


def prepare_case(files: CaseFiles, recipe: Recipe, method: str = "auto", seed: int = 0) -> PreparedCase:
    """Read, check, register and resample one case.

    Args:
        files: Where its volumes are.
        recipe: The grid.
        method: How MR is registered when it has no transform: "auto", "reg_aladin", "simpleitk" or "none".
        seed: Of the registration's samples.
    Raises:
        MissingError: A file is not there.
        DataError: A file is wrong, a modality is swapped, a label does not lie on any image, a transform is unusable.
    """
    sources = _read_images(files)
    reference = next(m for m in MODALITIES if m in sources)
    fixed = oriented(sources[reference].image, recipe.rows)
    fan = _fan(fixed, reference)
    steps = [{"step": "read", "reference": reference, "rows": recipe.rows}]
    # MR without ultrasound is taken as it is: one head, one scanner space, nothing to register to.
    masked = sitk.Mask(fixed, fan)
    grid = common_grid(masked, recipe)
    small = resample(masked, grid), sitk.Cast(resample(fan, grid) >= 0.5, sitk.sitkUInt8)
    moves = _transforms(files, sources, reference, *small, method, seed)
    labels = _read_labels(files, sources)
    if reference != "us":
        grid = common_grid(masked, recipe, _tumour_centre(labels, moves))
    steps.append({"step": "crop", "start_size_ijk": [list(v) for v in foreground_box(masked)]})
    share = sitk.GetArrayFromImage(resample(fan, grid))
    inside = share >= 0.5
    if not inside.any():
        raise DataError(explain(f"the fan of {files.case} is smaller than a pixel", expected="a larger volume"))
    images, levels = _images(files.case, sources, moves, grid, inside, recipe)
    if reference == "us":
        # Interpolated with the black outside, the fan would get a dark rim: weighted by the fan it does not.
        whole = sitk.GetArrayFromImage(resample(masked, grid)) / np.maximum(share, 0.5)
        images["us"], levels["us"] = to_bytes(whole, inside, recipe.percentile, f"us of {files.case}")
    steps += [{"step": "resample", "interpolation": "linear"}, {"step": "eight bits", "range": levels}]
    segments = _labels(labels, moves, grid, inside, recipe)
    images |= {name: array for name, (array, _) in segments.items()}
    images["fov"] = inside.astype(np.uint8)
    steps.append({"step": "labels", "rule": recipe.labels, "names": {n: what for n, (_, what) in segments.items()}})
    steps.append({"step": "field of view", "voxels": int(inside.sum()), "applied_to": sorted(images)})
    record = {
        "sources": {role: _source(files, role, found) for role, found in sources.items()},
        "labels": {name: {"file": _relative(files, f.path)} for name, f in files.labels.items()},
        "registration": {m: r.describe() for m, r in moves.items() if m != reference},
        "steps": steps,
    }
    affine = affine_ras(grid)[:, [1, 0, 2, 3]]
    spacing = tuple(float(v) for v in np.array(grid.GetSpacing())[[1, 0, 2]])
    volumes = {kind: np.ascontiguousarray(array.transpose(1, 2, 0)) for kind, array in images.items()}
    check = _check(sources, moves, reference, grid, inside)
    return PreparedCase(files.case, volumes, affine, spacing, record, check)


def registration_rows(files: CaseFiles, recipe: Recipe, record: dict) -> dict[str, RegistrationRow]:
    """The check of a finished case again, from its files and its record: nothing is registered anew.

    Args:
        files: The files that it was prepared from.
        recipe: The grid it was prepared on.
        record: From `PreparedDataset.describe`.
    Returns:
        By MR name, what `figures.registration_grid` shows.
    """
    sources, reference = _read_images(files), record["steps"][0]["reference"]
    fixed = oriented(sources[reference].image, recipe.rows)
    fan = _fan(fixed, reference)
    grid = common_grid(sitk.Mask(fixed, fan), recipe)
    moves = {
        role: registration.Registration(
            transform_from_ras(np.array(known["matrix_ras_fixed_to_moving"])),
            known["method"],
            known["mutual_information_before"],
            known["mutual_information_after"],
        )
        for role, known in record["registration"].items()
    }
    return _check(sources, moves, reference, grid, sitk.GetArrayFromImage(resample(fan, grid)) >= 0.5)


def _read_images(files: CaseFiles) -> dict[str, SourceVolume]:
    """The case's images, each checked against what it claims to be and against the others."""
    if not files.images:
        raise MissingError(explain(f"case {files.case} has no image", expected=" or ".join(MODALITIES)))
    sources = {role: read_volume(f.path, files=f.files) for role, f in files.images.items()}
    for role, found in sources.items():
        _check_role(role, files.images[role], found)
    _check_different(sources)
    return sources


def _check_role(role: str, file: ImageFile, found: SourceVolume) -> None:
    """Refuse an image that says it is another modality, or an ultrasound without background around a fan."""
    wrong = found.modality in ("US", "MR", "CT", "PT") and found.modality != ("US" if role == "us" else "MR")
    claim = claimed_modality(file.says or (found.description if found.uid else ""))
    if wrong or (claim is not None and claim != role):
        got = f"{found.modality or 'a file'} {found.description!r}"
        mend = "swap the two files, or rename it if its name is wrong"
        raise DataError(explain(f"{found.path} is given as {role} but is another modality", got=got, mend=mend))
    if role == "us":
        background = float((sitk.GetArrayViewFromImage(found.image) == 0).mean())
        if background < LEAST_BACKGROUND:
            got, want = f"{background:.1%} zeros", f"at least {LEAST_BACKGROUND:.0%} around the fan"
            mend = "check that ultrasound and MR are not swapped, and that the outside is 0"
            raise DataError(explain(f"{found.path} is no ultrasound with a fan", got=got, expected=want, mend=mend))


def _check_different(sources: dict[str, SourceVolume]) -> None:
    seen: dict[str, str] = {}
    for role, found in sources.items():
        digest = hashlib.sha256(np.ascontiguousarray(sitk.GetArrayViewFromImage(found.image)).tobytes()).hexdigest()
        if digest in seen:
            got = f"{sources[seen[digest]].path} and {found.path}"
            raise DataError(explain(f"{seen[digest]} and {role} hold the same image", got=got, mend="replace one"))
        seen[digest] = role


def _fan(fixed: sitk.Image, reference: str) -> sitk.Image:
    """Mask of what is imaged: the fan of ultrasound, or the head of an MR reference."""
    values = sitk.GetArrayFromImage(fixed)
    # MR has noise outside the head, ultrasound is exactly 0 outside the fan.
    threshold = 0.0 if reference == "us" or (values == 0).mean() > 0.2 else float(values.mean()) * 0.5
    mask = sitk.GetImageFromArray(field_of_view(values - threshold).astype(np.uint8))
    mask.CopyInformation(fixed)
    return mask


def _transforms(
    files: CaseFiles,
    sources: dict[str, SourceVolume],
    reference: str,
    fixed: sitk.Image,
    fan: sitk.Image,
    method: str,
    seed: int,
) -> dict[str, registration.Registration]:
    """By modality, what maps points of the reference to points of the image."""
    identity = sitk.AffineTransform(3)
    found = {reference: registration.Registration(identity, "none", 0.0, 0.0)}
    for role, source in sources.items():
        if role == reference:
            continue
        read = [registration.read_transform(path) for path in files.images[role].transform]
        if read:
            move = registration.fixed_to_moving(*read)
            found[role] = registration.from_file(fixed, source.image, fan, move)
        else:
            chosen = method if reference == "us" else "none"
            found[role] = registration.register(fixed, source.image, fan, chosen, seed)
    return found


def _read_labels(files: CaseFiles, sources: dict[str, SourceVolume]) -> dict[str, tuple[sitk.Image, str, str]]:
    """Label images by name, each with the modality it was drawn on and what it is."""
    found: dict[str, tuple[sitk.Image, str, str]] = {}
    for name, file in files.labels.items():
        if is_dicom(file.path) and str(read_header(file.path).get("Modality", "")) == "SEG":
            found |= _segments(name, file.path, sources)
            continue
        label = read_volume(file.path, label=True)
        role = next((m for m, s in sources.items() if same_grid(label.image, s.image)), None)
        if role is None:
            raise DataError(_not_aligned(label, sources))
        values = sitk.GetArrayFromImage(label.image)
        if np.abs(values - np.rint(values)).max() > 1e-6 or values.min() < 0 or values.max() > 255:
            got = f"values from {values.min():g} to {values.max():g}"
            raise DataError(explain(f"{file.path} is no label", got=got, expected="whole numbers from 0 to 255"))
        whole = sitk.GetImageFromArray(np.rint(values).astype(np.uint8))
        whole.CopyInformation(label.image)
        found[name] = (whole, role, f"classes of {file.path.name}")
    return found


def _segments(name: str, path: Path, sources: dict[str, SourceVolume]) -> dict[str, tuple[sitk.Image, str, str]]:
    """A DICOM SEG: its segments together as `name`, and one by one when they are several, as they may overlap."""
    from mhvae_kit.data.dicom_seg import read_segments, referenced_series

    uid = referenced_series(path)
    role = next((m for m, s in sources.items() if s.uid and s.uid == uid), None)
    if role is None:
        mend = "add the series it was drawn on, or leave the segmentation out"
        problem = f"{path} was drawn on an image that the case does not have"
        raise DataError(explain(problem, got=f"series {uid or 'unknown'}", mend=mend))
    masks = read_segments(path, sources[role].image)
    together = np.max([sitk.GetArrayViewFromImage(mask) for mask in masks.values()], axis=0)
    union = sitk.GetImageFromArray(together.astype(np.uint8))
    union.CopyInformation(sources[role].image)
    found = {name: (union, role, " or ".join(masks))}
    if len(masks) > 1:
        found |= {f"segment-{n:02d}": (mask, role, label) for n, (label, mask) in enumerate(masks.items(), 1)}
    return found


def _not_aligned(label: SourceVolume, sources: dict[str, SourceVolume]) -> str:
    """Error text: how far the label is from each image."""
    near = []
    for role, source in sources.items():
        if label.image.GetSize() != source.image.GetSize():
            near.append(f"{role} has {source.image.GetSize()} voxels, the label {label.image.GetSize()}")
        else:
            affines = affine_ras(label.image), affine_ras(source.image)
            near.append(f"{corner_distance_mm(*affines, label.image.GetSize()):.2f} mm off {role}")
    mend = "resample the label onto the image it was drawn on"
    expected = "the grid of one of the case's images, corners within 0.01 mm"
    return explain(f"the label {label.path} is not aligned", got="; ".join(near), expected=expected, mend=mend)


def _tumour_centre(
    labels: dict[str, tuple[sitk.Image, str, str]], moves: dict[str, registration.Registration]
) -> np.ndarray | None:
    """Centre of the tumour in the reference's space (LPS), for slices without a fan; None without label."""
    if "tumour" not in labels:
        return None
    image, role, _ = labels["tumour"]
    index = np.argwhere(sitk.GetArrayViewFromImage(image) > 0).mean(axis=0)[::-1]
    there = image.TransformContinuousIndexToPhysicalPoint(index.tolist())
    return np.array(registration.inverse(moves[role].transform).TransformPoint(there))


def _images(
    case: str,
    sources: dict[str, SourceVolume],
    moves: dict[str, registration.Registration],
    grid: sitk.Image,
    inside: np.ndarray,
    recipe: Recipe,
) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """Every modality on the grid as bytes (D, H, W), and the values that became 1 and 255."""
    images, levels = {}, {}
    for role, source in sources.items():
        # Released rule: the volume's own minimum becomes 0, so that negative values are no background by accident.
        shift = min(float(sitk.GetArrayViewFromImage(source.image).min()), 0.0)
        values = sitk.GetArrayFromImage(resample(source.image - shift, grid, moves[role].transform))
        images[role], levels[role] = to_bytes(values, inside, recipe.percentile, f"{role} of {case}")
    return images, levels


def _labels(
    labels: dict[str, tuple[sitk.Image, str, str]],
    moves: dict[str, registration.Registration],
    grid: sitk.Image,
    inside: np.ndarray,
    recipe: Recipe,
) -> dict[str, tuple[np.ndarray, str]]:
    """Labels on the grid (D, H, W), only inside the fan; the set of values can shrink, never grow."""
    made = {}
    for name, (image, role, what) in labels.items():
        moved = sitk.GetArrayFromImage(resample_label(image, grid, moves[role].transform, recipe.labels))
        made[name] = ((moved * inside).astype(np.uint8), what)
    return made


def _relative(files: CaseFiles, path: Path) -> str:
    """A path as it may stand in a record: below the case's place, never of the whole machine."""
    return path.relative_to(files.place).as_posix() if path.is_relative_to(files.place) else path.name


def _source(files: CaseFiles, role: str, found: SourceVolume) -> dict:
    file = files.images[role]
    parts = sorted(file.files or ([found.path] if found.path.is_file() else found.path.rglob("*")))
    digest = hashlib.sha256("".join(sha256(p) for p in parts if p.is_file()).encode()).hexdigest()
    return {
        "file": _relative(files, found.path),
        "sha256": digest,
        "series_uid": found.uid,
        "description": found.description,
        "size_ijk": list(found.image.GetSize()),
        "spacing_mm": [round(v, 6) for v in found.image.GetSpacing()],
        "transforms": [path.name for path in file.transform],
    }


def _check(
    sources: dict[str, SourceVolume],
    moves: dict[str, registration.Registration],
    reference: str,
    grid: sitk.Image,
    inside: np.ndarray,
) -> dict[str, RegistrationRow]:
    """The slice in the middle of the fan, of each registered image without and with its transform."""
    area = inside.sum(axis=(1, 2))
    k = round(float(area @ np.arange(len(area)) / area.sum()))
    fixed = sitk.GetArrayFromImage(resample(sources[reference].image, grid))[k]
    return {
        role: RegistrationRow(
            reference=fixed,
            before=sitk.GetArrayFromImage(resample(sources[role].image, grid))[k],
            after=sitk.GetArrayFromImage(resample(sources[role].image, grid, move.transform))[k],
            fov=inside[k],
            similarity=(move.before, move.after),
            method=move.method,
        )
        for role, move in moves.items()
        if role != reference
    }
