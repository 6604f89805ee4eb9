"""`mhvae synthesize`, `mhvae import-authors` and `mhvae generalise`: patients' volumes and others' weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mhvae_kit.cli_errors import plain_errors
from mhvae_kit.errors import InputError, explain


@plain_errors
def synthesize(
    output: Annotated[Path, typer.Option(help="Folder of the results; of several patients, one folder each.")],
    model: Annotated[str, typer.Option(help="A model or run folder, or the name of a shipped model.")] = "demo",
    input: Annotated[list[str] | None, typer.Option(help="FILE:MODALITY of one patient; repeat for more.")] = None,
    cases: Annotated[Path | None, typer.Option(help="Or a folder of patients: CASE/t2.nii.gz, CASE-t2.nii.gz.")] = None,
    phantom: Annotated[str | None, typer.Option(help="Or the phantom of this preset, as if without target.")] = None,
    split: Annotated[str, typer.Option(help="Of the phantom.")] = "ood",
    observed: Annotated[list[str] | None, typer.Option(help="Modality to use of --cases or --phantom.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="Modality to make; without it those not given.")] = None,
    temperature: Annotated[float, typer.Option(help="Spread of the latents; 0 takes their mean.")] = 0.0,
    samples: Annotated[int, typer.Option(help="How many; several also give their mean and deviation.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    share: Annotated[list[str] | None, typer.Option(help="Levels all slices draw alike: z6, or coarse.")] = None,
    fov: Annotated[str | None, typer.Option(help="Mask file; with --cases its kind, for example fov.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="FILE:NAME to copy along; with --cases its kind.")] = None,
    protocol: Annotated[str | None, typer.Option(help="kit or authors; without it the model's.")] = None,
    spacing: Annotated[float | None, typer.Option(help="Pixel size in mm that the model was trained at.")] = None,
    axes: Annotated[str, typer.Option(help="Which array axes are rows, columns and slices.")] = "0,1,2",
    batch_size: Annotated[int, typer.Option(help="Slices at a time.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    devices: Annotated[int, typer.Option(help="Processes, or GPUs, that many patients are shared out over.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Replace results made with other settings.")] = False,
) -> None:
    """Make the volumes that were not acquired: NIfTI in, NIfTI out, on the same grid."""
    from mhvae_kit.commands_volumes import synthesize_files

    many = {"inputs": input or [], "observed": observed or [], "targets": target or [], "labels": label or []}
    draws = {"temperature": temperature, "samples": samples, "seed": seed, "share": _one_or_more(share)}
    grid = {"protocol": protocol, "spacing_mm": spacing, "axes": split_axes(axes), "batch_size": batch_size}
    given = {"output": output, "folder": cases, "phantom": phantom, "split": split, "fov": fov, "device": device}
    given["devices"] = devices
    print(synthesize_files(model, **given, **many, **draws, **grid, force=force))


@plain_errors
def import_authors(
    checkpoint: Annotated[Path, typer.Argument(help="A CP_main_<epoch>.pth of ReubenDo/MHVAE or ReubenDo/MMHVAE.")],
    output: Annotated[Path, typer.Option(help="Folder of the model; what --model takes from then on.")],
    modality: Annotated[
        list[str] | None, typer.Option(help="One a modality, in the training's order: us, or 0000=us to rename.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH, where the images were not square.")] = None,
    verify: Annotated[
        Path | None, typer.Option(help="A checkout of their repository: its code is run and compared with the kit's.")
    ] = None,
) -> None:
    """Read the authors' weights into a model of the kit; no code inside the file is run."""
    from mhvae_kit.commands_volumes import import_authors as imported

    print(imported(checkpoint, output, modalities=modality or [], image_size=split_size(size), verify=verify))
    print(f"done: {output}")


@plain_errors
def generalise(
    model: Annotated[str, typer.Option(help="A model or run folder, or the name of a shipped model.")] = "demo",
    preset: Annotated[str, typer.Option(help="smoke, demo or paper.")] = "demo",
    split: Annotated[str, typer.Option(help="Patients of another kind.")] = "ood",
    beside: Annotated[str, typer.Option(help="Patients to hold them beside.")] = "test",
    temperature: Annotated[float, typer.Option(help="Spread of the latents; 0 takes their mean.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    output: Annotated[Path, typer.Option(help="CSV a row a patient; the summary goes beside it.")] = Path(
        "generalisation.csv"
    ),
) -> None:
    """Score ultrasound made from MR on another kind of phantom patients, beside what is possible there."""
    from mhvae_kit.commands_volumes import compare_splits_to_csv

    options = {"splits": (beside, split), "temperature": temperature, "seed": seed, "output": output}
    table, paths = compare_splits_to_csv(model, preset, **options)
    print(table)
    print("written: " + ", ".join(map(str, paths)))


def split_size(text: str | None) -> tuple[int, int] | None:
    """Read HEIGHTxWIDTH.

    Raises:
        InputError: It is none.
    """
    parts = (text or "").lower().split("x")
    if text is not None and (len(parts) != 2 or not all(part.strip().isdigit() for part in parts)):
        raise InputError(explain("--size was not understood", got=repr(text), expected="e.g. 192x160"))
    return None if text is None else (int(parts[0]), int(parts[1]))


def split_axes(text: str) -> tuple[int, ...]:
    """Read axes such as 0,1,2; what they have to be is checked where they are used."""
    return tuple(int(part) if part.strip().isdigit() else -1 for part in text.split(","))


def _one_or_more(values: list[str] | None) -> str | list[str]:
    """One value alone, so that it may be the name of several."""
    return values[0] if values and len(values) == 1 else values or []
