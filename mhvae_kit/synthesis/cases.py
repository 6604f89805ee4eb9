"""Many patients in one go: finding their files, and going on where an earlier run stopped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mhvae_kit.data import PhantomDataset
from mhvae_kit.errors import DataError, InputError, MissingError, RunError, explain
from mhvae_kit.launch import check_devices, threads_each
from mhvae_kit.progress import progress
from mhvae_kit.synthesis.parallel import shared_out
from mhvae_kit.synthesis.volume import SynthesizedVolume, synthesize_volume

_ENDING = re.compile(r"\.nii(\.gz)?$")


@dataclass(frozen=True)
class Case:
    """The files of one patient.

    Args:
        name: Of the patient; the folder of its results has it.
        inputs: By modality.
        fov: Mask of the field of view, if there is one.
        labels: By name.
    """

    name: str
    inputs: dict[str, Path]
    fov: Path | None = None
    labels: dict[str, Path] = field(default_factory=dict)


def find_cases(
    folder: str | Path, observed: Sequence[str], *, fov: str | None = None, labels: Iterable[str] = ()
) -> list[Case]:
    """Patients in a folder, as <case>/<kind>.nii.gz or <case>-<kind>.nii.gz; .nii and "_" serve as well.

    Args:
        folder: Where to look.
        observed: Modalities that may be given; a patient needs at least one of them.
        fov: Kind of the mask, "fov"; None for none. Every patient must have it then.
        labels: Kinds of the labels; a patient may lack them.
    Raises:
        MissingError: There is no such folder, or no patient in it, or a patient without its mask.
        DataError: A kind of a patient is there twice.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise MissingError(explain(f"{folder} is not there", expected="a folder of patients"))
    kinds = [*observed, *([fov] if fov else []), *labels]
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(p for p in [*folder.glob("*.nii*"), *folder.glob("*/*.nii*")] if not p.name.startswith(".")):
        case, kind = _split(path, folder, kinds)
        if kind is None:
            continue
        if kind in found.setdefault(case, {}):
            problem, mend = f"{kind} of {case} is there twice", "leave one of them"
            raise DataError(explain(problem, got=f"{found[case][kind]} and {path}", mend=mend))
        found[case][kind] = path
    cases = []
    for name, paths in found.items():
        inputs = {m: paths[m] for m in observed if m in paths}
        if not inputs:
            continue
        if fov and fov not in paths:
            problem = f"{name} has no mask of its field of view"
            raise MissingError(explain(problem, expected=f"{name}/{fov}.nii.gz", mend="add it, or leave out the mask"))
        given = {k: paths[k] for k in labels if k in paths}
        cases.append(Case(name, inputs, paths.get(fov) if fov else None, given))
    if not cases:
        expected = f"files like case/{observed[0]}.nii.gz or case-{observed[0]}.nii.gz of {', '.join(observed)}"
        raise MissingError(explain(f"no patient in {folder}", expected=expected))
    return cases


def _split(path: Path, folder: Path, kinds: Sequence[str]) -> tuple[str, str | None]:
    """Case and kind of a file; the kind is None where it is none of those asked for."""
    stem = _ENDING.sub("", path.name)
    if path.parent != folder and stem in kinds:
        return path.parent.name, stem
    for kind in kinds:
        if path.parent == folder and re.search(rf".[-_]{re.escape(kind)}$", stem):
            return stem[: -len(kind) - 1], kind
    return stem, None


def phantom_cases(
    dataset: PhantomDataset, split: str, observed: Sequence[str], *, labels: Iterable[str] = ("tumour",)
) -> list[Case]:
    """The phantom's patients of a split as if only these modalities had been acquired, with fan and labels.

    Raises:
        InputError: No such split or modality.
    """
    labels = tuple(labels)
    return [
        Case(
            case,
            {m: dataset.path(case, m) for m in observed},
            dataset.path(case, "fov"),
            {k: dataset.path(case, k) for k in labels},
        )
        for case in dataset.case_ids(split)
    ]


def synthesize_cases(
    model: Any,
    cases: Sequence[Case],
    targets: Iterable[str] | None = None,
    *,
    output: str | Path,
    devices: int = 1,
    **options: Any,
) -> list[SynthesizedVolume]:
    """`synthesize_volume` for each patient, into <output>/<case>. Patients that are done are left as they are.

    A patient whose files are wrong does not stop the others.

    Args:
        model: The model.
        cases: The patients.
        targets: Modalities to decode; None takes all that a patient lacks.
        output: Folder of the results.
        devices: Processes that the patients are shared out over, on a machine with GPUs one a GPU; results are the
            same. A script that asks for several needs `if __name__ == "__main__":` around its work.
        **options: Of `synthesize_volume`, but fov, labels and case.
    Returns:
        One a patient.
    Raises:
        InputError: A setting does not fit.
        RunError: The disk is full; or, when all others are done, names the patients that could not be.
    """
    if not cases:
        raise InputError(explain("there is no patient to synthesise", expected="at least one"))
    names = None if targets is None else list(targets)
    work = partial(_one, targets=names, output=Path(output).expanduser(), **options)
    results: dict[int, SynthesizedVolume | str] = {}
    if min(devices, len(cases)) == 1:
        results.update((i, work(model, case)) for i, case in enumerate(cases))
    else:
        quiet = partial(work, show_progress=False)
        shown = options.get("show_progress", True)
        processes = min(check_devices(devices, device=next(model.parameters()).device.type), len(cases))
        with progress(total=len(cases), desc="synthesis", unit="patient", disable=not shown) as bar:
            for i, result in shared_out(quiet, cases, model, processes, threads_each(processes)):
                results[i] = result
                bar.update(1)
    in_order = [results[i] for i in range(len(cases))]
    failed = [result for result in in_order if isinstance(result, str)]
    if failed:
        mend = "mend them and give the same command; those that are done are kept"
        problem = f"{len(failed)} of {len(cases)} patients could not be synthesised"
        raise RunError(explain(problem, got=" | ".join(failed[:5]), mend=mend))
    return [result for result in in_order if not isinstance(result, str)]


def _one(model: Any, case: Case, *, targets: list[str] | None, output: Path, **options: Any) -> SynthesizedVolume | str:
    """One patient's result, or what is wrong with its files."""
    given: dict[str, Any] = {"fov": case.fov, "labels": case.labels, "case": case.name}
    try:
        return synthesize_volume(model, case.inputs, targets, output=output / case.name, **given, **options)
    except (DataError, MissingError) as error:
        return f"{case.name}: {error}"
