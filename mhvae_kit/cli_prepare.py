"""`mhvae prepare`: patients' files into a dataset that training and evaluation read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mhvae_kit.cli_errors import plain_errors


@plain_errors
def prepare(
    route: Annotated[str, typer.Argument(help="remind, brats or folder.", metavar="ROUTE")],
    source: Annotated[
        Path | None, typer.Argument(help="Folder with the cases; with --download, where they go.", metavar="[FOLDER]")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the dataset; without it FOLDER-prepared.")] = None,
    case: Annotated[list[str] | None, typer.Option(help="Only this case; repeat for more.")] = None,
    transforms: Annotated[
        Path | None, typer.Option(help="Folder of .tfm files: MR points to ultrasound points, as released.")
    ] = None,
    register: Annotated[str, typer.Option(help="auto, reg_aladin, simpleitk or none.")] = "auto",
    size: Annotated[int, typer.Option(help="Height and width of a slice in pixels.")] = 192,
    spacing: Annotated[float, typer.Option(help="Size of a pixel in mm.")] = 0.5,
    rows: Annotated[str, typer.Option(help="Axis of the files that becomes rows: j (DICOM, dcm2niix) or i.")] = "j",
    labels: Annotated[str, typer.Option(help="argmax (each class linearly, the largest wins) or nearest.")] = "argmax",
    split: Annotated[Path | None, typer.Option(help="CSV with case and split; others are dealt out.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the dataset, shown in figures and tables.")] = None,
    download: Annotated[bool, typer.Option("--download", help="remind: get the cases first.")] = False,
    cases: Annotated[int, typer.Option(help="With --download: how many cases when none is named.")] = 2,
    yes: Annotated[bool, typer.Option("--yes", help="Agree to the download's size and licence beforehand.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the registration's samples.")] = 0,
) -> None:
    """Bring patients' MR and ultrasound onto one grid: 8-bit slices, fan mask, labels, and a record of every step.

    folder: one folder a case with us, t2, cet1, flair, tumour (NIfTI, NRRD, DICOM file or DICOM folder), or flat files
    named <case>-<modality>.nii.gz. brats: MR with the names of BraTS or UPenn-GBM. remind: DICOM in any folders, or the
    authors' NRRD names. Finished cases are skipped, and an interrupted run leaves no half case.
    """
    from mhvae_kit.data.grid import Recipe
    from mhvae_kit.data.prepared import read_split_table
    from mhvae_kit.preparation import find_cases
    from mhvae_kit.preparation import prepare as prepare_cases
    from mhvae_kit.preparation.prepare import named_cases, refuse_failed

    folder = source or Path(route)
    recipe = Recipe(size_px=size, spacing_mm=spacing, rows=rows, labels=labels)
    splits = read_split_table(split) if split else None
    if download:
        _download(route, case or cases, folder, yes)
    found = named_cases(find_cases(route, folder, transforms), case)
    target = output or folder.with_name(f"{folder.name}-prepared")
    options = {"recipe": recipe, "method": register, "seed": seed, "splits": splits}
    result = prepare_cases(found, target, name=name or route, **options)
    for where, remark in result.remarks.items():
        print(f"look at {where}: {remark}")
    print(f"{len(result.done)} cases in {result.folder}, {len(result.skipped)} of them from before")
    refuse_failed(result)


def _download(route: str, cases: list[str] | int, folder: Path, yes: bool) -> None:
    """Show size and licence, ask, and get the cases."""
    from mhvae_kit.errors import InputError, explain
    from mhvae_kit.preparation.download import describe, download, plan

    if route != "remind":
        mend = "get the files from the collection's own page and give their folder"
        raise InputError(explain(f"{route} cannot be downloaded", expected="remind", mend=mend))
    rows = plan(cases)
    print(describe(rows))
    download(rows, folder, consent=yes or _agrees())


def _agrees() -> bool:
    """Ask at a terminal; where nobody can answer, that is a no."""
    import sys

    return sys.stdin.isatty() and typer.confirm("Download?", default=False)
