"""Cases into a prepared dataset: one folder a case that is there whole or not at all, and one record of the whole."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mhvae_kit.data import prepared, registration
from mhvae_kit.data.grid import Recipe
from mhvae_kit.data.phantom import store
from mhvae_kit.errors import DataError, InputError, KitError, RunError, explain
from mhvae_kit.figures.output import save
from mhvae_kit.figures.registration import registration_grid
from mhvae_kit.files import sha256, write_json
from mhvae_kit.preparation.case import PreparedCase, prepare_case
from mhvae_kit.preparation.sources import CaseFiles
from mhvae_kit.progress import progress

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
FIGURES = "figures"


@dataclass
class PreparationResult:
    """What a preparation did.

    Attributes:
        folder: The prepared dataset.
        done: Cases that are in it now, in order.
        skipped: Those of them that were there already.
        failed: By case, why it is not in it.
        remarks: By case and MR name, what the registration has to say.
    """

    folder: Path
    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)


def prepare(
    cases: Sequence[CaseFiles],
    output: str | Path,
    *,
    name: str,
    recipe: Recipe | None = None,
    method: str = "auto",
    seed: int = 0,
    splits: dict[str, str] | None = None,
    show_progress: bool = True,
) -> PreparationResult:
    """Prepare cases into a folder that `mhvae_kit.data.load_prepared` reads. Finished cases are left as they are.

    A case that fails does not stop the others; it leaves nothing behind but its reason in the result.

    Args:
        cases: From `find_cases`.
        output: Folder of the dataset; it may hold cases prepared before with the same recipe.
        name: Name of the dataset, which figures and tables will show.
        recipe: The common grid; None = 192 x 192 pixels of 0.5 mm.
        method: How MR without a transform is registered: "auto", "reg_aladin", "simpleitk" or "none".
        seed: Of the registration's samples.
        splits: Case -> "train", "validation", "test" or "ood"; others are dealt out.
        show_progress: Whether a line shows how far it is.
    Raises:
        InputError: No case, or the folder was prepared with another recipe or name.
        RunError: The disk is full or the folder cannot be written; finished cases stay.
    """
    if not cases:
        raise InputError(explain("there is no case to prepare", expected="at least one"))
    recipe, folder = recipe or Recipe(), Path(output).expanduser()
    method = registration.check_method(method)
    with store.writing(folder, "the dataset", "choose another --output"):
        folder.mkdir(parents=True, exist_ok=True)
        open_dataset(folder, name, recipe)
        store.clean_leftovers(folder)
    result = PreparationResult(folder)
    bar = progress(cases, desc=f"preparing {name}", unit="case", disable=not show_progress)
    for files in bar:
        if prepared.is_complete(folder / files.case):
            result.skipped.append(files.case)
            result.done.append(files.case)
            continue
        try:
            made = prepare_case(files, recipe, method, seed)
        except RunError:
            raise
        except KitError as error:
            result.failed[files.case] = str(error)
            continue
        except RuntimeError as error:  # SimpleITK's own words, where no check of ours came first
            result.failed[files.case] = explain(
                f"{files.case} could not be prepared ({' '.join(str(error).split())[-200:]})"
            )
            continue
        write_case(folder, made, name)
        result.done.append(files.case)
        result.remarks |= {
            f"{files.case} {m}": r["remark"] for m, r in made.record["registration"].items() if r["remark"]
        }
    with store.writing(folder, "the dataset", "choose another --output"):
        prepared.write_splits(folder, deal(result.done, prepared.read_splits(folder) | (splits or {})))
        _write_failed(folder, result.failed)
    return result


def open_dataset(folder: Path, name: str, recipe: Recipe) -> None:
    """Write the dataset's record, or check that it is the same."""
    path = folder / prepared.DATASET_FILE
    wanted = {"schema": prepared.SCHEMA, "name": name, "recipe": recipe.to_dict()}
    if not path.is_file():
        write_json(path, wanted)
        return
    known = prepared.read_dataset_record(folder)
    for key in ("name", "recipe"):
        if known[key] != wanted[key]:
            problem = f"{folder} was prepared with another {key}"
            mend = "choose a new --output, or the same settings"
            raise InputError(explain(problem, got=wanted[key], expected=known[key], mend=mend))


def write_case(folder: Path, made: PreparedCase, name: str) -> None:
    """Write one case: beside, then renamed; its figure goes first, so that a finished case always has one."""
    need = sum(a.size for a in made.images.values()) + store.HEADER_BYTES * len(made.images)
    free = shutil.disk_usage(folder).free
    if need > free:
        got, want = f"{free / 1e6:.0f} MB free", f"{need / 1e6:.0f} MB for {made.case}"
        mend = "free some space or choose another --output; finished cases are kept"
        raise RunError(explain(f"the disk is full: {folder}", got=got, expected=want, mend=mend))
    with store.writing(folder, "the dataset", "choose another --output"), store.temporary_folder(folder) as place:
        if made.check:
            figure = registration_grid(made.check, data=name, spacing_mm=made.spacing_mm[:2], title=made.case)
            save(figure, folder / FIGURES / f"{made.case}.png")
        files = {}
        for kind, array in made.images.items():
            path = place / f"{kind}.nii"
            store.write_nifti(path, array, made.affine)
            files[path.name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
        shape = list(np.shape(made.images["fov"]))
        record = {"case": made.case, "shape": shape, "spacing_mm": list(made.spacing_mm), "files": files, **made.record}
        write_json(place / store.CASE_FILE, record)
        place.chmod(0o755)
        if (folder / made.case).exists():
            store.discard(folder / made.case)
        place.rename(folder / made.case)


def deal(cases: Sequence[str], known: dict[str, str]) -> dict[str, str]:
    """A split for each case: the known one, else dealt out so that shares come near 70, 10 and 20 %.

    Cases that have a split never change it, whatever comes later; the order is that of a hash of the id, so neither
    the alphabet nor the order of preparation matters among cases that come together.
    """
    dealt = {case: known[case] for case in cases if case in known}
    new = sorted((c for c in cases if c not in known), key=lambda c: hashlib.sha256(c.encode()).hexdigest())
    for case in new:
        counts = {split: list(dealt.values()).count(split) for split in SHARES}
        empty = [split for split in SHARES if not counts[split]]
        total = sum(counts.values()) + 1
        dealt[case] = empty[0] if empty else max(SHARES, key=lambda s: SHARES[s] * total - counts[s])
    return {case: dealt[case] for case in cases}


def _write_failed(folder: Path, failed: dict[str, str]) -> None:
    """failed.json: why cases of the last call are missing; none when all went well."""
    path = folder / "failed.json"
    if failed:
        write_json(path, failed)
    else:
        path.unlink(missing_ok=True)


def refuse_failed(result: PreparationResult) -> None:
    """Raise when cases failed, naming each with its reason.

    Raises:
        DataError: At least one case failed.
    """
    if result.failed:
        n, total = len(result.failed), len(result.failed) + len(result.done)
        reasons = "\n  ".join(f"{case}: {reason}" for case, reason in result.failed.items())
        head = f"{n} of {total} cases could not be prepared, the others are in {result.folder}"
        raise DataError(f"{head}\n  {reasons}")


def named_cases(cases: Sequence[CaseFiles], names: Sequence[str] | None) -> list[CaseFiles]:
    """The cases of those names, or all.

    Raises:
        InputError: A name that no case has.
    """
    if not names:
        return list(cases)
    known = {case.case: case for case in cases}
    unknown = [name for name in names if name not in known]
    if unknown:
        expected = f"some of {', '.join(list(known)[:4])}{', …' if len(known) > 4 else ''}"
        raise InputError(explain("unknown cases", got=", ".join(unknown), expected=expected))
    return [known[name] for name in names]
