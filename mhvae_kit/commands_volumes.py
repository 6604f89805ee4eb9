"""What the commands on patients' volumes and others' weights do, callable without a command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mhvae_kit.data import load_phantom
from mhvae_kit.errors import InputError, explain
from mhvae_kit.evaluation import generalisation, generalisation_summary, generalisation_text
from mhvae_kit.files import write_text
from mhvae_kit.launch import check_devices
from mhvae_kit.networks.authors import load_authors_checkpoint
from mhvae_kit.networks.authors_verify import check_agreement, verify_against
from mhvae_kit.networks.storage import find_model, save_model
from mhvae_kit.synthesis import Case, SynthesizedVolume, find_cases, phantom_cases, synthesize_cases, synthesize_volume


def compare_splits_to_csv(
    model: str | Path,
    preset: str,
    *,
    splits: Sequence[str] = ("test", "ood"),
    temperature: float = 0.0,
    seed: int = 0,
    output: str | Path = "scores.csv",
) -> tuple[str, list[Path]]:
    """Ultrasound from each MR sequence of the model, on several splits of the phantom, beside constant and oracle.

    Args:
        model: What `find_model` understands.
        preset: Which phantom.
        splits: The first is what the others are compared with.
        temperature, seed: Of the samples and the bootstrap.
        output: CSV of the scores per patient; `<name>_summary.csv` goes beside it.
    Returns:
        The summary as text, and the files written.
    """
    output = Path(output)
    scored = find_model(model)
    inputs = [m for m in scored.config.modalities if m != "us"]
    dataset = load_phantom(preset, splits=sorted({"train", *splits}))
    subsets = [*inputs, "+".join(inputs)] if len(inputs) > 1 else inputs
    scores = generalisation(scored, dataset, splits=splits, observed=subsets, temperature=temperature, seed=seed)
    table = generalisation_summary(scores, seed=seed)
    beside = output.with_name(f"{output.stem}_summary.csv")
    write_text(output, scores.to_csv(index=False))
    write_text(beside, table.to_csv(index=False))
    return generalisation_text(table).to_string(index=False), [output, beside]


def parse_inputs(texts: Sequence[str]) -> dict[str, Path]:
    """Read inputs given as FILE:MODALITY.

    Raises:
        InputError: One names no modality, or a modality comes twice.
    """
    inputs: dict[str, Path] = {}
    for text in texts:
        file, sign, modality = text.rpartition(":")
        if not sign or not file or not modality.isidentifier():
            raise InputError(explain("--input was not understood", got=repr(text), expected="e.g. case.nii.gz:t2"))
        if modality in inputs:
            raise InputError(explain(f"{modality} was given twice", got=f"{inputs[modality]} and {file}"))
        inputs[modality] = Path(file)
    return inputs


def synthesize_files(
    model: str | Path,
    *,
    output: str | Path,
    inputs: Sequence[str] = (),
    folder: str | Path | None = None,
    phantom: str | None = None,
    split: str = "ood",
    observed: Sequence[str] = (),
    targets: Sequence[str] = (),
    fov: str | None = None,
    labels: Sequence[str] = (),
    device: str = "auto",
    devices: int = 1,
    **options: Any,
) -> str:
    """Synthesise one patient, a folder of them, or the phantom's as if they had no ultrasound.

    Args:
        model: What `find_model` understands.
        output: Folder of the results; of several patients, one folder each.
        inputs: FILE:MODALITY of one patient; or
        folder: of many, see `find_cases`; or
        phantom, split: preset and split of the phantom, with fan and tumour.
        observed: Modalities to use of many patients; () takes all but the targets.
        targets: Modalities to decode; () takes those that are not given.
        fov, labels: Files for one patient (labels as FILE:NAME), kinds for a folder of them.
        device: "cpu", "cuda" or "auto".
        devices: Processes that many patients are shared out over.
        **options: Of `synthesize_volume`.
    Returns:
        A line a patient.
    Raises:
        InputError: Not exactly one of inputs, folder and phantom is given; or see `synthesize_volume`.
    """
    if sum(map(bool, (inputs, folder, phantom))) != 1:
        raise InputError(explain("say what to synthesise from", expected="one of --input, --cases and --phantom"))
    if check_devices(devices, device=device) > 1 and inputs:
        mend = "leave --devices out, or give a folder of patients with --cases"
        raise InputError(explain("one patient is made by one process", got=f"--devices {devices}", mend=mend))
    network = find_model(model).to(_device(device))
    wanted = list(targets) or None
    names = list(observed) or [
        m for m in network.config.modalities if m not in (wanted or ["us"] if phantom else targets)
    ]
    if inputs:
        given = {"fov": fov, "labels": parse_inputs(labels)}
        return _told(synthesize_volume(network, parse_inputs(inputs), wanted, output=output, **given, **options))
    if phantom:
        cases = phantom_cases(load_phantom(phantom, splits=[split]), split, names, labels=labels or ("tumour",))
    else:
        cases = find_cases(str(folder), names, fov=fov, labels=labels)
    return _told_all(synthesize_cases(network, cases, wanted, output=output, devices=devices, **options), cases)


def _device(name: str) -> str:
    """The device by name; "auto" takes a GPU where there is one."""
    there = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not there):
        expected = "auto or cpu" if not there else "auto, cpu or cuda"
        raise InputError(explain("this device is not there", got=repr(name), expected=expected))
    return "cuda" if there and name != "cpu" else "cpu"


def _told(result: SynthesizedVolume) -> str:
    """What was made for one patient, and how its slices hang together."""
    values = [f"{name} {value:.1f}" for name, value in result.flicker.items() if value is not None]
    lines = [("written: " if result.made else "was there already: ") + str(result.folder)]
    lines += ["  neighbouring slices differ, in grey levels of 255: " + ", ".join(values)] if values else []
    if result.record["outside_frame"] > 0:
        share, grid = result.record["outside_frame"], result.record["grid"]
        lines += [f"  {share:.1%} of the foreground lies outside the model's frame and stays background ({grid})"]
    return "\n".join(lines)


def _told_all(results: Sequence[SynthesizedVolume], cases: Sequence[Case]) -> str:
    there = sum(not result.made for result in results)
    lines = [_told(result) for result in results]
    return "\n".join([*lines, f"{len(results)} of {len(cases)} patients, {there} of them were there already"])


def import_authors(
    checkpoint: str | Path,
    output: str | Path,
    *,
    modalities: Sequence[str] = (),
    image_size: tuple[int, int] | None = None,
    verify: str | Path | None = None,
) -> str:
    """Turn a checkpoint of the authors' code into a model folder of the kit; where it is verified, only if it agrees.

    Args:
        checkpoint: Their .pth file.
        output: Folder of the model.
        modalities: One a modality, "us", or "0000=us" to rename; () takes those of the file.
        image_size: As for `load_authors_checkpoint`.
        verify: A checkout of their repository to compare with; its code is run.
    Returns:
        What was read and how well it agrees, as text.
    """
    pairs = [(theirs, ours or theirs) for theirs, _, ours in (text.partition("=") for text in modalities)]
    names = dict(pairs) if any("=" in text for text in modalities) else list(modalities) or None
    model = load_authors_checkpoint(checkpoint, names, image_size=image_size)
    lines = [f"{sum(p.numel() for p in model.parameters()):,} parameters, {', '.join(model.config.modalities)}"]
    if verify is not None:
        agreement = verify_against(verify, checkpoint, model)
        lines += [str(line) for line in agreement]
        check_agreement(agreement, verify)
        model.card["verified"] = {"largest_difference": max(line.largest_difference for line in agreement)}
    save_model(model, output)
    return "\n".join(lines)
