"""`mhvae`: each command is one call into the library. Imports stay inside the commands, so that --help is quick."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mhvae_kit.cli_degradation import degradation_cell, degradation_plan, degradation_training
from mhvae_kit.cli_errors import plain_errors
from mhvae_kit.cli_prepare import prepare
from mhvae_kit.cli_volumes import generalise, import_authors, synthesize
from mhvae_kit.errors import InputError, explain

app = typer.Typer(
    help="MR and intra-operative ultrasound synthesis with a multi-modal hierarchical VAE.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
phantom_app = typer.Typer(help="The embedded phantom dataset.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(phantom_app, name="phantom")
for command in (
    prepare,
    synthesize,
    import_authors,
    generalise,
    degradation_cell,
    degradation_plan,
    degradation_training,
):
    app.command()(command)

Root = Annotated[Path | None, typer.Option(help="Folder of all runs; without it MHVAE_RUNS or the project's runs/.")]
Preset = Annotated[str, typer.Option(help="smoke, demo or paper.")]


def split_settings(settings: list[str] | None, option: str) -> dict[str, str]:
    """Read repeated name=value options.

    Raises:
        InputError: One has no "=", no name, or a name comes twice.
    """
    values: dict[str, str] = {}
    for text in settings or []:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise InputError(explain(f"{option} was not understood", got=repr(text), expected=f"{option} name=value"))
        if name.strip() in values:
            raise InputError(explain(f"{option} {name.strip()} was given twice"))
        values[name.strip()] = value
    return values


def plain_value(text: str) -> Any:
    """A setting's text as the value it looks like: none, true, 3, 1e-4, [us, t2], otherwise text."""
    import yaml

    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    if text.strip().lower() == "none":
        return None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(
            explain("a value was not understood", got=repr(text), expected="e.g. 3, false, [us, t2]")
        ) from error
    return tuple(value) if isinstance(value, list) else value


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False) -> None:
    if version:
        from mhvae_kit import __version__

        print(__version__)
        raise typer.Exit


@app.command()
@plain_errors
def run(
    notebook: Annotated[str, typer.Argument(help="A name (02_staged_training), the start of one (02), or a path.")],
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="name=value; repeat for more.")
    ] = None,
    run_id: Annotated[
        str | None, typer.Option(help="Name of the run folder; a failed run of that name goes on.")
    ] = None,
    root: Root = None,
    timeout: Annotated[float | None, typer.Option(help="Limit in seconds; without it the notebook's own.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Throw away what a run of that name has written, and start over.")
    ] = False,
) -> None:
    """Run a notebook from top to bottom into a run folder."""
    from mhvae_kit.runner import run_notebook

    given = split_settings(parameter, "-p")
    folder = run_notebook(notebook, given, run_id=run_id, root=root, timeout_s=timeout, force=force)
    print(f"done: {folder}")


@app.command()
@plain_errors
def runs(
    root: Root = None,
    collect: Annotated[Path | None, typer.Option(help="Write one tidy table of all runs to this CSV file.")] = None,
    sweep: Annotated[Path | None, typer.Option(help="Only the runs of this sweep table.")] = None,
) -> None:
    """List what has run, or collect it into one table."""
    from mhvae_kit.run_tables import collect_to_csv, list_as_text

    ids = None
    if sweep is not None:
        from mhvae_kit.sweeps import read_sweep

        ids = [row.run_id for row in read_sweep(sweep)]
    print(list_as_text(root, ids) if collect is None else f"written: {collect_to_csv(collect, root, ids)}")


@app.command()
@plain_errors
def train(
    preset: Preset = "demo",
    seed: Annotated[int, typer.Option(help="Seed of weights, order and noise.")] = 0,
    run_id: Annotated[
        str | None, typer.Option(help="Name of the run folder; a stopped run of that name goes on.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="name=value of a setting; repeat for more.")
    ] = None,
    root: Root = None,
    data_dir: Annotated[Path | None, typer.Option(help="Cache folder of the phantom.")] = None,
    prepared: Annotated[
        Path | None, typer.Option(help="Folder that `mhvae prepare` wrote, instead of the phantom.")
    ] = None,
    devices: Annotated[int, typer.Option(help="Processes on this machine; with GPUs, one each.")] = 1,
) -> None:
    """Train a model, on one device or several; torchrun starts it on several machines."""
    from mhvae_kit.commands import train_in_run_folder, train_on_devices
    from mhvae_kit.training import TrainingConfig

    overrides = {name: plain_value(text) for name, text in split_settings(setting, "--set").items()}
    config = TrainingConfig.from_preset(preset, **{"seed": seed, **overrides})
    if devices != 1:
        given = {"--preset": preset, "--seed": seed, "--data-dir": data_dir, "--prepared": prepared}
        told = [text for name, value in given.items() if value is not None for text in (name, str(value))]
        told += [text for one in setting or [] for text in ("--set", one)]
        train_on_devices(config, told, devices, run_id=run_id, root=root)
        return
    folder = train_in_run_folder(config, run_id=run_id, root=root, data_dir=data_dir, prepared=prepared)
    if os.environ.get("RANK", "0") == "0":
        print(f"done: {folder}")


@app.command()
@plain_errors
def evaluate(
    model: Annotated[str, typer.Option(help="A model or run folder, or the name of a shipped model.")] = "demo",
    preset: Preset = "demo",
    split: Annotated[str, typer.Option(help="train, validation, test or ood.")] = "test",
    temperature: Annotated[float, typer.Option(help="Spread of the latents; 0 takes their mean.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the draws, for a temperature above 0.")] = 0,
    output: Annotated[Path, typer.Option(help="CSV of the scores per slice; the summary goes beside it.")] = Path(
        "scores.csv"
    ),
    prepared: Annotated[
        Path | None, typer.Option(help="Folder that `mhvae prepare` wrote, instead of the phantom.")
    ] = None,
) -> None:
    """Score a model on patients: every input subset, every target, mean and interval over patients."""
    from mhvae_kit.commands import evaluate_to_csv

    options = {"split": split, "temperature": temperature, "seed": seed, "output": output, "prepared": prepared}
    table, paths = evaluate_to_csv(model, preset, **options)
    print(table)
    print("written: " + ", ".join(map(str, paths)))


@app.command()
@plain_errors
def table1(
    row: Annotated[
        str, typer.Argument(help="pix2pix, spade, mvae, resvit, mhvae, mhvae-gan, flow or references.", metavar="ROW")
    ],
    preset: Preset = "demo",
    seed: Annotated[int, typer.Option(help="Seed of the training and of the samples.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Training steps; without it those of the preset.")] = None,
    run_id: Annotated[
        str | None, typer.Option(help="Name of the run folder; without it <preset>-table1-<row>.")
    ] = None,
    root: Root = None,
    source: Annotated[
        Path | None, typer.Option(help="For mhvae: the run folder of mhvae-gan, which it continues without GAN.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Cache folder of the phantom.")] = None,
) -> None:
    """Train and score one row of Table 1; a row that is done is left as it is."""
    from mhvae_kit.table1.run import one_line, run_row

    options = {"seed": seed, "steps": steps, "run_id": run_id, "root": root, "source": source, "data_dir": data_dir}
    folder = run_row(row, preset, **options)
    print(f"{one_line(folder)}\ndone: {folder}")


@app.command()
@plain_errors
def fetch(what: Annotated[str, typer.Argument(help="lpips: AlexNet's weights, 244 MB, which LPIPS needs.")]) -> None:
    """Fetch weights that a metric needs, once and where there is a network."""
    if what != "lpips":
        raise InputError(explain("there is nothing of that name to fetch", got=repr(what), expected="lpips"))
    from mhvae_kit.metrics.perceptual import fetch_lpips_weights

    print(f"fetched: {fetch_lpips_weights()}")


@app.command()
@plain_errors
def bench(
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="Checkout of ReubenDo/MHVAE, TrackerlessIUS or MultiVae to compare with."),
    ] = None,
    case: Annotated[list[str] | None, typer.Option(help="Only this case; repeat for more.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny cases that take seconds.")] = False,
    growth: Annotated[bool, typer.Option("--growth", help="The growth curves instead; a PNG goes beside it.")] = False,
    rounds: Annotated[int, typer.Option(help="Counted turns of each side, one second at least.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Threads of torch; without it torch's own choice.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda for the cases of a GPU.")] = "cpu",
    output: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("bench.json"),
    data_dir: Annotated[Path | None, typer.Option(help="Cache folder of the phantom.")] = None,
) -> None:
    """Measure time and memory, alone or side by side with other code for the same model."""
    from mhvae_kit.bench.report import bench_to_files

    chosen = {"quick": quick, "growth": growth, "names": case or [], "references": reference or []}
    chosen |= {"rounds": rounds, "threads": threads, "device": device}
    text, paths = bench_to_files(**chosen, output=output, data_dir=data_dir)
    print(text)
    print("written: " + ", ".join(map(str, paths)))


@phantom_app.command()
@plain_errors
def make(
    preset: Preset = "demo",
    split: Annotated[list[str] | None, typer.Option(help="Only this split; repeat for more.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Cache folder; without it MHVAE_CACHE or the user's.")] = None,
) -> None:
    """Make the phantom patients that are not in the cache yet."""
    from mhvae_kit.data import load_phantom

    dataset = load_phantom(preset, splits=split, cache_dir=data_dir)
    print(f"{dataset}\nin {dataset.root}")


@phantom_app.command()
@plain_errors
def check(
    preset: Preset = "demo",
    split: Annotated[list[str] | None, typer.Option(help="Only this split; repeat for more.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Cache folder; without it MHVAE_CACHE or the user's.")] = None,
) -> None:
    """Hash every file of the phantom again and compare it with its record; missing patients are made."""
    from mhvae_kit.data import load_phantom

    dataset = load_phantom(preset, splits=split, cache_dir=data_dir)
    dataset.verify()
    print(f"{dataset}: every file is as it was made")


@app.command()
@plain_errors
def report(
    run: Annotated[
        list[Path] | None, typer.Argument(help="Run folders; without them the newest of each notebook.")
    ] = None,
    preset: Preset = "demo",
    root: Root = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the report; without it <runs>/report-<preset>.")
    ] = None,
) -> None:
    """Write executed notebooks as HTML pages that open without a network."""
    from mhvae_kit.report import newest_runs, write_report
    from mhvae_kit.runs import default_root

    folders = run or newest_runs(root, preset)
    print(f"written: {write_report(folders, output or (root or default_root()) / f'report-{preset}')}")


@app.command()
@plain_errors
def gallery(
    run: Annotated[
        list[Path] | None, typer.Argument(help="Run folders; without them the newest finished one of each notebook.")
    ] = None,
    preset: Preset = "demo",
    root: Root = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the gallery; without it <runs>/gallery-<preset>.")
    ] = None,
) -> None:
    """Write finished notebooks as a static site with thumbnails that opens without a network."""
    from mhvae_kit.gallery import finished_runs, write_gallery
    from mhvae_kit.runs import default_root

    folders = run or finished_runs(root, preset)
    print(f"written: {write_gallery(folders, output or (root or default_root()) / f'gallery-{preset}')}")


def main() -> None:
    """Entry point of the `mhvae` command."""
    app(prog_name="mhvae")


if __name__ == "__main__":
    main()
