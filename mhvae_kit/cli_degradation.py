"""`mhvae degradation-cell`, `degradation-plan` and `degradation-training`: the study of what hurts segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mhvae_kit.cli_errors import plain_errors

Preset = Annotated[str, typer.Option(help="smoke, demo or paper.")]
Root = Annotated[Path | None, typer.Option(help="Folder of all runs.")]
DataDir = Annotated[Path | None, typer.Option(help="Cache folder of the phantom.")]


@plain_errors
def degradation_cell(
    name: Annotated[str, typer.Argument(help="A condition of the plan, such as blur or real.", metavar="NAME")],
    dose: Annotated[float | None, typer.Option(help="Of a defect, from 0 to 1; none for a route.")] = None,
    preset: Preset = "demo",
    root: Root = None,
    data_dir: DataDir = None,
) -> None:
    """Train on one set of images and score on real ultrasound; a cell that is done is left as it is."""
    from mhvae_kit.degradation.cell import one_line, run_cell

    print(one_line(run_cell(name, dose, preset=preset, root=root, data_dir=data_dir)))


@plain_errors
def degradation_plan(
    preset: Preset = "demo",
    only: Annotated[str | None, typer.Option(help="Names of conditions with commas between; all without it.")] = None,
    cores: Annotated[int, typer.Option(help="For the estimate of the time.", min=1)] = 2,
) -> None:
    """Print the plan of the degradation study: hypotheses, conditions, tests, and how long it takes."""
    from mhvae_kit.degradation import plan_text

    print(plan_text(preset, only, cores))


@plain_errors
def degradation_training(preset: Preset = "demo", root: Root = None, data_dir: DataDir = None) -> None:
    """Train the model whose checkpoints are the ages of the study, and keep all of them."""
    from mhvae_kit.degradation.cell import train_for_ages

    print(f"done: {train_for_ages(preset, root, data_dir)}")
