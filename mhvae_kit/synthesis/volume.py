"""One patient's volumes to synthetic ones on the same grid, a few slices at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mhvae_kit.data.nifti import Axes, LazyVolume, check_axes, check_grid, open_nifti
from mhvae_kit.data.nifti_out import SliceWriter
from mhvae_kit.data.phantom.presets import PRESETS
from mhvae_kit.errors import InputError, explain
from mhvae_kit.evaluation.predictions import Temperature, check_targets, draws_noise, inference, slice_noise
from mhvae_kit.files import sha256
from mhvae_kit.progress import progress
from mhvae_kit.synthesis.planes import Flicker, Intensities, PlaneFit, batches, check_protocol
from mhvae_kit.synthesis.record import finished, model_digest, new_folder, scratch_beside, write_record
from mhvae_kit.synthesis.results import Results

ALL_SLICES = 2**32 - 1  # stands for a slice's index where all slices share a draw
COARSE = "coarse"


@dataclass(frozen=True)
class SynthesizedVolume:
    """What was written.

    Args:
        folder: Holds <target>.nii.gz, with several samples also <target>_std.nii.gz and <target>_sample-<n>.nii.gz,
            labels under their own names, and synthesis.json.
        record: The content of synthesis.json.
        made: False when it was there already.
    """

    folder: Path
    record: dict[str, Any]
    made: bool

    def path(self, name: str) -> Path:
        """File of a target, its "us_std" or "us_sample-1", or a label."""
        return self.folder / f"{name}.nii.gz"

    @property
    def flicker(self) -> dict[str, float]:
        """Mean absolute difference of neighbouring slices in grey levels of 255, of inputs and results."""
        return self.record["flicker"]


def synthesize_volume(
    model: Any,
    inputs: Mapping[str, str | Path],
    targets: Iterable[str] | None = None,
    *,
    output: str | Path,
    temperature: Temperature = 0.0,
    samples: int = 1,
    seed: int = 0,
    fov: str | Path | None = None,
    labels: Mapping[str, str | Path] | None = None,
    protocol: str | None = None,
    spacing_mm: float | None = None,
    share: str | Iterable[str] = (),
    axes: Axes = (0, 1, 2),
    batch_size: int = 8,
    case: str | None = None,
    force: bool = False,
    show_progress: bool = True,
) -> SynthesizedVolume:
    """Decode volumes that were not acquired from those that were; results lie on the grid of the inputs.

    Slices without a voxel above 0 in any input stay background: there is nothing to decode them from. Memory does not
    grow with the number of slices.

    Args:
        model: An MHVAE or MVAE; runs on the device it is on.
        inputs: NIfTI file of each observed modality, on one grid, values from 0 up, background 0.
        targets: Modalities to decode; None takes all that were not given.
        output: Folder to write; it appears whole or not at all. The same synthesis there is left as it is.
        temperature: Spread of the latents, one number or one per level; 0 takes their mean.
        samples: How many to draw. With several, <target>.nii.gz is their mean, <target>_std.nii.gz their standard
            deviation (float32, in grey levels of 255), and each is written too.
        seed: A slice's noise depends on it, the case's name, the sample and the slice alone, not on the batch size.
        fov: NIfTI mask (above 0 = inside) on the same grid; outside it results are 0, inside at least 1. It is never
            taken from an image by itself.
        labels: Label volumes by name on the same grid, copied beside the results; set to 0 outside `fov`.
        protocol: "kit" or "authors": intensities as `Intensities`; "authors" also masks by the first observed
            modality, in the model's order, unless `fov` is given, and rounds down. None takes the model card's.
        spacing_mm: Pixel size the model was trained at; None takes the model card's. Slices of another pixel size are
            resampled to it and back. Without either nothing is resampled.
        share: Levels whose noise all slices of a sample have in common, so that neighbouring slices agree: names, or
            "coarse" for all but the two finest.
        axes: Which array axes are rows, columns and slices.
        batch_size: Slices at a time. Changes no result but rounding.
        case: Name of the patient, part of the seed; None takes that of the first input's file.
        force: Replace a synthesis with other settings.
        show_progress: Whether a bar shows.
    Raises:
        MissingError, DataError: An input is not there, unreadable, not one volume, empty, not finite, below 0, in a
            wrong unit, or on another grid than the first.
        InputError: A setting does not fit the model or the inputs, or the output folder holds something else.
        RunError: The disk is full.
    """
    folder = Path(output).expanduser().absolute()
    job = _Job(
        model=model,
        inputs={m: Path(p).expanduser() for m, p in _in_order(model, inputs).items()},
        targets=_targets(model, inputs, targets),
        temperature=_temperature(temperature, samples),
        samples=int(samples),
        seed=int(seed),
        masks={k: Path(p).expanduser() for k, p in {"fov": fov, **(labels or {})}.items() if p is not None},
        protocol=check_protocol(protocol or model.card.get("protocol", "kit")),
        spacing_mm=_spacing(model, spacing_mm),
        shared=_shared(model, share),
        axes=check_axes(tuple(axes)),
        batch_size=_at_least_one("batch_size", batch_size),
        case=case or _stem(next(iter(_in_order(model, inputs).values()))),
    )
    job.check_labels()
    settings = job.settings()
    record = finished(folder, settings, force)
    if record is not None:
        return SynthesizedVolume(folder, record, made=False)
    with scratch_beside(folder) as scratch:
        volumes = job.open(scratch)
        with new_folder(folder, job.bytes_needed(volumes)) as beside:
            found = job.run(volumes, beside, show_progress)
            record = write_record(beside, settings, **found)
    return SynthesizedVolume(folder, record, made=True)


def _in_order(model: Any, inputs: Mapping[str, str | Path]) -> dict[str, str | Path]:
    """The inputs in the model's order, in which "first observed" is meant."""
    known = model.config.modalities
    unknown = sorted(set(inputs) - set(known))
    if unknown or not inputs:
        got = ", ".join(unknown) or "no input"
        raise InputError(
            explain("the inputs are not the model's", got=got, expected="at least one of " + ", ".join(known))
        )
    return {m: inputs[m] for m in known if m in inputs}


def _stem(path: str | Path) -> str:
    return Path(path).name.removesuffix(".gz").removesuffix(".nii")


def _targets(model: Any, inputs: Mapping[str, Any], targets: Iterable[str] | None) -> list[str]:
    rest = [m for m in model.config.modalities if m not in inputs] or list(model.config.modalities)
    return check_targets(rest if targets is None else targets, list(model.config.modalities))


def _at_least_one(name: str, value: int) -> int:
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise InputError(explain(f"{name} must be a whole number of at least 1", got=value))
    return int(value)


def _temperature(temperature: Temperature, samples: int) -> Temperature:
    if _at_least_one("samples", samples) > 1 and not draws_noise(temperature):
        raise InputError(
            explain(
                "samples at temperature 0 are all the same",
                got=f"samples={samples}",
                expected="samples=1, or a temperature above 0",
            )
        )
    return dict(temperature) if isinstance(temperature, Mapping) else float(temperature)


def _spacing(model: Any, given: float | None) -> float | None:
    """The pixel size that was asked for, or that the model's card says, itself or by the name of a phantom."""
    value = given if given is not None else model.card.get("spacing_mm")
    phantom = str(model.card.get("data", "")).removeprefix("phantom-")
    if value is None and phantom in PRESETS:
        value = PRESETS[phantom].spacing_mm
    if value is not None and not float(value) > 0:
        raise InputError(explain("spacing_mm must be above 0", got=value))
    return None if value is None else float(value)


def _shared(model: Any, share: str | Iterable[str]) -> list[str]:
    levels = list(model.config.level_names)
    names = levels[:-2] if share == COARSE else [share] if isinstance(share, str) else list(share)
    unknown = [name for name in names if name not in levels]
    if unknown:
        raise InputError(explain("unknown levels to share", got=unknown, expected=f"{COARSE!r}, or some of {levels}"))
    return names


@dataclass(frozen=True)
class _Job:
    """One synthesis: everything that decides its result."""

    model: Any
    inputs: dict[str, Path]
    targets: list[str]
    temperature: Temperature
    samples: int
    seed: int
    masks: dict[str, Path]  # "fov" first if there is one, then labels
    protocol: Any
    spacing_mm: float | None
    shared: list[str]
    axes: Axes
    batch_size: int
    case: str

    def settings(self) -> dict[str, Any]:
        """What decides the result, as JSON types; files by name and content."""
        paths = {**self.inputs, **self.masks}
        for path in paths.values():
            open_nifti(path)  # one that is not there is told first
        files = {k: {"file": p.name, "sha256": sha256(p)} for k, p in paths.items()}
        names = ("targets", "temperature", "samples", "seed", "protocol", "spacing_mm", "shared", "axes", "case")
        return {"model": model_digest(self.model), **{n: getattr(self, n) for n in names}, "given": files}

    def check_labels(self) -> None:
        """Refuse a label that would be written over a result."""
        taken = {f"{t}{end}" for t in self.targets for end in ("", "_std")}
        odd = [k for k in self.masks if k in taken or not k.replace("-", "_").isidentifier()]
        if odd:
            raise InputError(explain("a label cannot have this name", got=odd[0], expected="for example tumour"))

    def open(self, scratch: Path) -> dict[str, LazyVolume]:
        """All volumes of the case, on one grid."""
        volumes: dict[str, LazyVolume] = {}
        for name, path in {**self.inputs, **self.masks}.items():
            volumes[name] = LazyVolume(path, self.axes, scratch)
            check_grid(path, volumes[name].image, next(iter(volumes.values())).image)
        return volumes

    def bytes_needed(self, volumes: Mapping[str, LazyVolume]) -> int:
        """Size of all results before compression, and of one of them once more while it is compressed."""
        voxels = int(np.prod(next(iter(volumes.values())).shape))
        each = 1 if self.samples == 1 else 1 + 4 + self.samples
        return voxels * (each * len(self.targets) + 4 * len(self.masks) + 4)

    def run(self, volumes: Mapping[str, LazyVolume], folder: Path, show_progress: bool) -> dict[str, Any]:
        """Write all files but the record; returns what was found out on the way."""
        first = volumes[next(iter(self.inputs))]
        fit = PlaneFit.between(first.shape[:2], first.spacing_mm[:2], self.model.config.image_size, self.spacing_mm)
        scales = {m: Intensities.of(volumes[m], self.protocol) for m in self.inputs}
        options = {"axes": self.axes, "samples": self.samples, "protocol": self.protocol}
        results = {t: Results(folder, t, first.image, **options) for t in self.targets}
        given = {m: Flicker() for m in self.inputs}
        reached, outside, filled = fit.reached()[0].numpy(), 0, 0
        bar = progress(total=first.shape[2], desc=self.case, unit="slice", disable=not show_progress)
        try:
            with bar, inference(self.model) as device:
                for start, stop in batches(first.shape[2], self.batch_size):
                    planes = {m: volumes[m].planes(start, stop) for m in self.inputs}
                    drawn = np.any([p > 0 for p in planes.values()], axis=0)
                    inside = self._inside(volumes, planes, start, stop)
                    filled, outside = filled + int(drawn.sum()), outside + int((drawn & ~reached).sum())
                    images = {m: fit.to_model(scales[m].apply(p)).to(device) for m, p in planes.items()}
                    for m, p in planes.items():
                        given[m].add((scales[m].apply(p)[:, 0].numpy() + 1) * 127.5, p > 0)
                    empty = torch.from_numpy(~drawn.any(axis=(1, 2)))
                    self._decode(images, range(start, stop), fit, results, (inside, drawn, empty))
                    bar.update(stop - start)
            files = [path.name for result in results.values() for path in result.finish()]
        finally:
            for result in results.values():
                result.close()
        files += [self._copy(name, volumes, folder) for name in self.masks if name != "fov"]
        flicker = {f"{m} (given)": given[m].value for m in given}
        flicker |= {k: v for r in results.values() for k, v in r.flicker().items()}
        return {
            "files": files,
            "shape": list(first.image.shape[:3]),
            "grid": fit.note or "as given",
            "outside_frame": round(outside / filled, 4),
            "flicker": {k: None if v is None else round(v, 3) for k, v in flicker.items()},
        }

    def _inside(
        self, volumes: Mapping[str, LazyVolume], planes: Mapping[str, np.ndarray], start: int, stop: int
    ) -> Tensor | None:
        """The mask of these slices, (n, 1, H, W): the given one, the authors' own, or none."""
        if "fov" in volumes:
            return torch.from_numpy(volumes["fov"].planes(start, stop) > 0)[:, None]
        if self.protocol == "authors":
            return torch.from_numpy(next(iter(planes.values())) > 0)[:, None]
        return None

    def _decode(
        self,
        images: Mapping[str, Tensor],
        slices: Sequence[int],
        fit: PlaneFit,
        results: Mapping[str, Results],
        masks: tuple[Tensor | None, np.ndarray, Tensor],
    ) -> None:
        """Encode these slices once, draw every sample, and hand them on at the reader's size."""
        inside, drawn, empty = masks
        encoding = None if empty.all() else self.model.encode(images)
        for sample in range(self.samples):
            noise = self._noise(sample, slices) if encoding is not None else None
            made = (
                {}
                if encoding is None
                else self.model.decode(encoding, temperature=self.temperature, targets=self.targets, noise=noise).images
            )
            for target, result in results.items():
                image = fit.back(made[target].float().cpu()) if made else torch.full((len(slices), 1, *fit.shape), -1.0)
                image[empty] = -1.0
                self._check_finite(image, target, slices)
                result.add(sample, image, inside)
        for result in results.values():
            result.end_batch(inside, drawn, empty)

    def _noise(self, sample: int, slices: Sequence[int]) -> dict[str, Tensor] | None:
        """Draws by level for one sample: those of each slice, but at shared levels one for all."""
        if not draws_noise(self.temperature):
            return None
        seed = self.seed
        if sample:
            seed = int(np.random.SeedSequence([self.seed, sample]).generate_state(1, np.uint64)[0])
        noise = slice_noise(self.model, seed, self.case, slices)
        if self.shared:
            common = slice_noise(self.model, seed, self.case, [ALL_SLICES])
            noise |= {level: common[level].expand_as(noise[level]) for level in self.shared}
        device = next(self.model.parameters()).device
        return {level: z.to(device) for level, z in noise.items()}

    def _check_finite(self, image: Tensor, target: str, slices: Sequence[int]) -> None:
        bad = ~torch.isfinite(image).flatten(1).all(1)
        if bad.any():
            where = f"in {self.case}, slice {slices[int(bad.nonzero()[0])]}"
            mend = "check the weights; a training that diverged leaves such a model"
            raise InputError(explain(f"the model's {target} holds NaN or infinity", got=where, mend=mend))

    def _copy(self, name: str, volumes: Mapping[str, LazyVolume], folder: Path) -> str:
        """A label volume on the grid of the results, which is its own, so that no voxel of it moves."""
        volume = volumes[name]
        kind = volume.image.get_data_dtype()
        writer = SliceWriter(folder / f"{name}.nii.gz", volume.image, self.axes, kind.newbyteorder("="))
        try:
            for start, stop in batches(volume.shape[2], self.batch_size):
                planes = volume.planes(start, stop)
                if "fov" in volumes:
                    planes = np.where(volumes["fov"].planes(start, stop) > 0, planes, 0)
                writer.write(planes)
            return writer.finish().name
        finally:
            writer.close()
