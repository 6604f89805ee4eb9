"""Running a model over the slices of held-out patients, every observed subset from one encoding."""

from __future__ import annotations

import contextlib
import itertools
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mhvae_kit.data.slices import to_network
from mhvae_kit.errors import InputError, explain
from mhvae_kit.metrics import ssim_inner
from mhvae_kit.networks.checks import Temperature
from mhvae_kit.networks.stacks import Subset

BACKGROUND = -1.0


class Dataset(Protocol):
    """What is asked of a data set: a name, its modalities, its cases, and volumes as uint8 (H, W, D)."""

    name: str
    modalities: Sequence[str]

    def case_ids(self, split: str | None = None) -> list[str]:
        """Cases of a split, or all of them."""

    def volume(self, case: str, kind: str) -> np.ndarray:
        """A modality, "fov" or "tumour" of a case."""


@dataclass(frozen=True)
class Prediction:
    """What a model made of one batch of slices of one case from one observed subset.

    Args:
        case: The patient.
        slices: Index of each of the n slices in the volume.
        observed: The modalities that were given, sorted.
        images: By target, (n, H, W) float32 in [-1, 1], as the model gave them: outside the fan too.
        targets: By target, the truth, same shape.
        fov: (n, H, W) bool, the fan.
    """

    case: str
    slices: tuple[int, ...]
    observed: Subset
    images: dict[str, np.ndarray]
    targets: dict[str, np.ndarray]
    fov: np.ndarray


def subset_name(modalities: Iterable[str]) -> str:
    """Name of an observed subset, the same whatever the order: ("us", "t2") gives "t2+us"."""
    return "+".join(sorted(modalities))


def all_subsets(modalities: Iterable[str]) -> list[Subset]:
    """Every non-empty subset, single modalities first, each in alphabetical order."""
    names = sorted(modalities)
    return [s for size in range(1, len(names) + 1) for s in itertools.combinations(names, size)]


def check_subsets(observed: Iterable[str | Iterable[str]] | None, known: Sequence[str]) -> list[Subset]:
    """Read observed subsets given as "t2+us" or ("t2", "us"); None means every non-empty one.

    Raises:
        InputError: No subset, an empty one, a modality the model does not know, or the same subset twice.
    """
    if observed is None:
        return all_subsets(known)
    given = [observed] if isinstance(observed, str) else list(observed)
    subsets = [tuple(sorted(s.split("+") if isinstance(s, str) else s)) for s in given]
    unknown = sorted({m for s in subsets for m in s} - set(known))
    if unknown or not subsets or not all(subsets) or len(set(subsets)) < len(subsets):
        raise InputError(
            explain(
                "observed is not a list of different, non-empty subsets of the model's modalities",
                got=repr(observed),
                expected=f'for example ["{known[0]}", "{subset_name(known)}"] of ' + ", ".join(known),
            )
        )
    if any(len(set(s)) < len(s) for s in subsets):
        raise InputError(explain("an observed subset names a modality twice", got=repr(observed)))
    return subsets


def check_targets(targets: Iterable[str] | None, known: Sequence[str]) -> list[str]:
    """Targets to decode, None meaning all; unknown and missing ones are refused."""
    names = list(known) if targets is None else [targets] if isinstance(targets, str) else list(dict.fromkeys(targets))
    unknown = sorted(set(names) - set(known))
    if unknown or not names:
        raise InputError(explain("unknown targets", got=repr(targets), expected="some of " + ", ".join(known)))
    return names


def check_cases(dataset: Dataset, split: str | None, cases: Iterable[str] | None) -> list[str]:
    """Cases of a split, or those of them that were asked for.

    Raises:
        InputError: The split has no case, or a case is not in it.
    """
    known = list(dataset.case_ids(split))
    wanted = known if cases is None else [cases] if isinstance(cases, str) else list(dict.fromkeys(cases))
    strangers = [c for c in wanted if c not in known]
    if strangers or not wanted:
        place = f"the {split} split of {dataset.name}" if split else dataset.name
        problem = f"{', '.join(strangers)} not in {place}" if strangers else f"no case to evaluate in {place}"
        shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
        raise InputError(explain(problem, got=f"{len(known)} cases there: {shown or 'none'}"))
    return wanted


def check_unseen(model: Any, cases: Sequence[str]) -> None:
    """Refuse cases that the model's card lists as training cases: their scores would not be held-out scores."""
    card = getattr(model, "card", None) or {}
    seen = sorted(set(card.get("training_cases") or ()) & set(cases))
    if seen:
        raise InputError(
            explain(
                "the model was trained on cases it is to be scored on",
                got=f"{len(seen)} of {len(cases)}: {', '.join(seen[:5])}{', ...' if len(seen) > 5 else ''}",
                expected="cases that its card does not list under training_cases",
                mend="Choose a held-out split, or pass allow_training_cases=True to look at the training fit",
            )
        )


def check_modalities(model: Any, dataset: Dataset) -> list[str]:
    """The model's modalities, all of which the data set must have."""
    names = list(model.config.modalities)
    missing = [m for m in names if m not in dataset.modalities]
    if missing:
        raise InputError(
            explain(
                f"{dataset.name} lacks modalities of the model",
                got=", ".join(dataset.modalities),
                expected=", ".join(names),
                mend="Take a data set that has " + ", ".join(missing),
            )
        )
    return names


def slices_first(volume: np.ndarray, *, name: str = "a volume") -> np.ndarray:
    """(H, W, D) as (D, H, W)."""
    if volume.ndim != 3:
        raise InputError(explain(f"{name} is not a volume", got=f"shape {volume.shape}", expected="(H, W, D)"))
    return np.ascontiguousarray(np.moveaxis(np.asarray(volume), 2, 0))


def read_case(dataset: Dataset, case: str, modalities: Iterable[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Images of a case by modality, (D, H, W) float32 in [-1, 1], and its fan (D, H, W) bool.

    Raises:
        InputError: Volumes that are not 8-bit or differ in shape.
    """
    fov = slices_first(dataset.volume(case, "fov"), name=f"the fov of {case}") > 0
    images = {}
    for m in modalities:
        images[m] = to_network(slices_first(dataset.volume(case, m), name=f"{m} of {case}")).numpy()
        if images[m].shape != fov.shape:
            raise InputError(
                explain(
                    f"{m} and fov of {case} differ in shape",
                    got=f"{images[m].shape} and {fov.shape} as (D, H, W)",
                    expected="the same shape",
                )
            )
    return images, fov


def scored_slices(fov: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """Indices of the slices of a fan (D, H, W) that can be scored, and how many cannot: empty, or too thin for SSIM."""
    filled = fov.any(axis=(1, 2))
    fit = ssim_inner(fov).any(axis=(1, 2))
    return np.flatnonzero(fit), {"empty": int((~filled).sum()), "thin": int((filled & ~fit).sum())}


def draws_noise(temperature: Temperature) -> bool:
    """Whether decoding at this temperature is random: levels that a dict does not name keep 1."""
    return isinstance(temperature, Mapping) or temperature != 0


def slice_noise(model: Any, seed: int, case: str, slices: Iterable[int]) -> dict[str, Tensor]:
    """Standard-normal draws by level for the given slices of a case, each from its own generator.

    A slice's noise depends on the seed, the case and the slice alone: not on the batch size, on which other slices are
    scored, or on the observed subset, so that subsets and temperatures are compared under the same draws.
    """
    draws = []
    for index in slices:
        entropy = np.random.SeedSequence([int(seed), zlib.crc32(case.encode()), int(index)])
        generator = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
        draws.append(model.draw_noise(1, generator))
    return {level: torch.cat([d[level] for d in draws]) for level in draws[0]}


@contextlib.contextmanager
def inference(model: Any) -> Iterator[torch.device]:
    """Evaluation mode without gradients; yields the model's device and gives its mode back afterwards."""
    was_training = model.training
    first = next(iter(model.parameters()), None)
    model.eval()
    try:
        with torch.inference_mode():
            yield first.device if first is not None else torch.device("cpu")
    finally:
        model.train(was_training)


def predictions(
    model: Any,
    dataset: Dataset,
    *,
    split: str | None = "test",
    observed: Iterable[str | Iterable[str]] | None = None,
    targets: Iterable[str] | None = None,
    temperature: Temperature = 0.0,
    cases: Iterable[str] | None = None,
    slices: Iterable[int] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    allow_training_cases: bool = False,
) -> Iterator[Prediction]:
    """Decode every observed subset of every slice, batch by batch; each batch is encoded once.

    Args:
        model: An MHVAE (config.modalities, encode, decode, draw_noise); left in the mode it was in.
        dataset: Any object with name, modalities, case_ids(split) and volume(case, kind).
        split: Whose cases to take; None takes all.
        observed: Subsets as "t2+us" or ("t2", "us"); None takes every non-empty one.
        targets: Modalities to decode; None takes all of the model's.
        temperature: One number or one per level; 0 is the mean, without noise.
        cases: Only these cases of the split.
        slices: Only these slices of each case; None takes all.
        batch_size: Slices per batch. Changes no result but rounding.
        seed: Of the noise at temperatures above 0, see `slice_noise`.
        allow_training_cases: Do not refuse cases that the model's card lists as training cases.
    Yields:
        A `Prediction` for each case, batch and observed subset. Slices in which the fan is empty, or holds no 11 x 11
        window, are left out.
    Raises:
        InputError: See `check_subsets`, `check_cases`, `check_unseen`; predictions that hold NaN or infinity.
    """
    known = check_modalities(model, dataset)
    subsets, wanted = check_subsets(observed, known), check_targets(targets, known)
    chosen = check_cases(dataset, split, cases)
    if not allow_training_cases:
        check_unseen(model, chosen)
    if isinstance(batch_size, bool) or int(batch_size) < 1:
        raise InputError(explain("batch_size must be at least 1", got=batch_size))
    only = None if slices is None else [int(k) for k in slices]
    inputs = sorted({m for s in subsets for m in s})
    for case in chosen:
        images, fov = read_case(dataset, case, sorted({*inputs, *wanted}))
        usable, _ = scored_slices(fov)
        usable = usable if only is None else usable[np.isin(usable, only)]
        for start in range(0, len(usable), int(batch_size)):
            part = usable[start : start + int(batch_size)]
            noise = slice_noise(model, seed, case, part) if draws_noise(temperature) else None
            stack = {m: images[m][part] for m in inputs}
            made = _decode(model, stack, subsets, wanted, temperature, noise)
            truth = {m: images[m][part] for m in wanted}
            for subset, synthetic in zip(subsets, made, strict=True):
                _check_finite(synthetic, case, part, subset)
                yield Prediction(case, tuple(int(k) for k in part), subset, synthetic, truth, fov[part])


def _decode(
    model: Any,
    stack: dict[str, np.ndarray],
    subsets: Sequence[Subset],
    targets: Sequence[str],
    temperature: Temperature,
    noise: dict[str, Tensor] | None,
) -> list[dict[str, np.ndarray]]:
    """Encode a batch once and decode each subset: by subset and target, (n, H, W) float32."""
    with inference(model) as device:
        encoding = model.encode({m: torch.from_numpy(x)[:, None].to(device) for m, x in stack.items()})
        draws = None if noise is None else {level: z.to(device) for level, z in noise.items()}
        made = []
        for subset in subsets:
            result = model.decode(encoding, observed=subset, temperature=temperature, targets=targets, noise=draws)
            made.append({m: result.images[m][:, 0].float().cpu().numpy() for m in targets})
    return made


def _check_finite(images: dict[str, np.ndarray], case: str, slices: np.ndarray, subset: Subset) -> None:
    """Refuse predictions with NaN or infinity, saying where."""
    for target, stack in images.items():
        bad = ~np.isfinite(stack).all(axis=(1, 2))
        if bad.any():
            raise InputError(
                explain(
                    f"the model's prediction of {target} from {subset_name(subset)} holds NaN or infinity",
                    got=f"in {case}, slice {int(slices[bad.argmax()])}",
                    expected="finite images in [-1, 1]",
                    mend="Check the weights; a training that diverged leaves such a model",
                )
            )
