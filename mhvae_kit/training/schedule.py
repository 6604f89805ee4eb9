"""What depends on the step alone: stage, weights, learning rate, order of the slices, flips, noise, subsets.

And what depends on the patient alone: which images are missing.

Nothing here keeps a state: everything random is a pure function of (seed, step, position). That is what makes
resuming exact, and one process equal to many.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from mhvae_kit.config import Level, Modality, TrainingConfig
from mhvae_kit.networks.mhvae import MHVAE, ObservedRows, Subset

Stage = Literal["reconstruction", "kl_ramp", "adversarial"]


class Draws(Protocol):
    """What the order and the flips of the slices depend on: equal values give equal batches, whatever is trained."""

    @property
    def seed(self) -> int: ...

    @property
    def batch_size(self) -> int: ...


def local_generator(*key: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream depends on the key alone, the same on every machine."""
    value = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
    return torch.Generator(device).manual_seed(value & (2**63 - 1))


def first_step(config: TrainingConfig, fraction: float) -> int:
    """The first step (counted from 0) of a stage that begins at a fraction of the budget."""
    return round(fraction * config.steps)


def stage_at(config: TrainingConfig, step: int) -> Stage:
    """Name of the stage that a step belongs to; without GAN the second stage lasts to the end."""
    if step < first_step(config, config.reconstruction_until):
        return "reconstruction"
    if config.gan and step >= first_step(config, config.adversarial_from):
        return "adversarial"
    return "kl_ramp"


def kl_weight_at(config: TrainingConfig, step: int) -> float:
    """The KL's weight: the floor, then a linear ramp, then full weight."""
    begin = first_step(config, config.reconstruction_until)
    end = first_step(config, config.kl_ramp_until)
    share = min(max((step - begin) / max(end - begin, 1), 0.0), 1.0)
    return config.kl_floor + share * (config.kl_weight - config.kl_floor)


def learning_rate_at(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then cosine from learning_rate to final_learning_rate over the whole budget."""
    return warm_cosine(config.learning_rate, config.final_learning_rate, config.warmup_steps, config.steps, step)


def warm_cosine(initial: float, final: float, warmup_steps: int, steps: int, step: int) -> float:
    """A learning rate at a step (counted from 0): linear warm-up, then cosine from `initial` to `final` at `steps`."""
    if step < warmup_steps:
        return initial * (step + 1) / warmup_steps
    return final + (initial - final) * 0.5 * (1 + math.cos(math.pi * step / steps))


def slices_of_step(config: Draws, step: int, n_slices: int) -> list[int]:
    """Indices of the slices of a step over all processes: epoch after epoch, each in an order of its own."""
    positions = range(step * config.batch_size, (step + 1) * config.batch_size)
    orders = {
        epoch: torch.randperm(n_slices, generator=local_generator(config.seed, "order", epoch)).tolist()
        for epoch in {p // n_slices for p in positions}
    }
    return [orders[p // n_slices][p % n_slices] for p in positions]


def flips_of_step(config: Draws, step: int) -> list[bool]:
    """Which slices of a step are mirrored left to right (probability one half)."""
    return (torch.rand(config.batch_size, generator=local_generator(config.seed, "flip", step)) < 0.5).tolist()


def subsets_of_step(config: TrainingConfig, step: int) -> list[Subset]:
    """Observed subsets of a step: all three for two modalities, otherwise a uniform draw of non-empty ones."""
    names = config.model.modalities
    every = [s for size in range(len(names), 0, -1) for s in itertools.combinations(names, size)]
    if len(names) <= 2:
        return every
    drawn = torch.randint(
        len(every), (config.subsets_per_step,), generator=local_generator(config.seed, "subsets", step)
    )
    return [every[i] for i in drawn.tolist()]


def mixture_of_step(
    config: TrainingConfig, step: int, positions: Sequence[int], present: Mapping[Modality, Tensor]
) -> list[ObservedRows]:
    """The three passes of "mmhvae" for some positions of a step's batch, slice by slice as far as it has the images.

    All that the slice's patient has; `config.alone` by itself; and a non-empty subset of the others, each of those that
    the patient has drawn alike. A slice that lacks what a pass is about observes nothing in it.

    Args:
        config: Names the image that is observed alone, and the seed.
        step: Counted from 0.
        positions: Where each slice stands in the step's global batch.
        present: By modality, bool (B,): which of these slices have it.
    Returns:
        By pass and modality, bool (B,), on the device of `present`.
    Source:
        Dorent et al., MMHVAE; ReubenDo/MMHVAE:train.py visits every subset of the others, with a step for each.
    """
    others = [m for m in config.model.modalities if m != config.alone]
    known = {m: present[m].tolist() for m in others}
    having = [[m for m in others if known[m][row]] for row in range(len(positions))]
    drawn = [_drawn_subset(config, step, p, names) for p, names in zip(positions, having, strict=True)]
    device = present[config.alone].device
    return [
        dict(present),
        {config.alone: present[config.alone]},
        {m: torch.tensor([m in subset for subset in drawn], device=device) for m in others},
    ]


def _drawn_subset(config: TrainingConfig, step: int, position: int, names: Sequence[Modality]) -> Subset:
    """A non-empty subset of `names`, each with the same probability; the empty one if there are no names."""
    if not names:
        return ()
    generator = local_generator(config.seed, "mixture", step, position)
    number = int(torch.randint(1, 2 ** len(names), (), generator=generator))
    return tuple(m for bit, m in enumerate(names) if number >> bit & 1)


def missing_images(
    config: TrainingConfig, cases: Iterable[str], absent: Mapping[str, Iterable[Modality]] | None = None
) -> dict[str, tuple[Modality, ...]]:
    """Which images each case lacks in training: each it has is left out with probability `config.missing`, never all.

    A draw depends on the seed, the case and the modality alone. Where it would take every image, one of them, each
    with the same probability, stays.

    Args:
        config: Names seed, probability and modalities.
        cases: Training cases.
        absent: By case, images that were never taken.
    Returns:
        By case, the images it lacks, in the order of the config; cases that lack none are left out.
    """
    lacking = {}
    for case in cases:
        never = set((absent or {}).get(case, ()))
        draws = {
            m: float(torch.rand((), generator=local_generator(config.seed, "missing", case, m), dtype=torch.float64))
            for m in config.model.modalities
            if m not in never
        }
        kept = max(draws, key=draws.__getitem__, default=None)
        left_out = never | {m for m, draw in draws.items() if draw < config.missing and m != kept}
        lacking[case] = tuple(m for m in config.model.modalities if m in left_out)
    return {case: names for case, names in lacking.items() if names}


def noise_of_step(
    config: TrainingConfig, model: MHVAE, step: int, positions: list[int], n_subsets: int, device: torch.device
) -> dict[Level, Tensor]:
    """The noise of some positions of a step's batch, stacked subset by subset as `decode_subsets` wants it."""
    draws = [
        model.draw_noise(n_subsets, local_generator(config.seed, "noise", step, position, device=device))
        for position in positions
    ]
    return {level: torch.stack([d[level] for d in draws], 1).flatten(0, 1) for level in config.model.level_names}
