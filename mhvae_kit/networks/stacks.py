"""Several observed subsets in one top-down pass: their maps lie behind each other along the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mhvae_kit.config import Modality
from mhvae_kit.gaussian import Gaussian

Subset = tuple[Modality, ...]
ObservedRows = Mapping[Modality, Tensor]  # by modality, bool (B,): which rows observe it
Subsets = Sequence[Subset | ObservedRows]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Maps as one batch; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def stacked(subsets: Subsets) -> list[Subset | ObservedRows]:
    """The subsets; or the one that all of them are, whose rows then go through the model as those of one batch."""
    same = len(subsets) > 1 and isinstance(subsets[0], tuple) and all(subset == subsets[0] for subset in subsets)
    return [subsets[0]] if same else list(subsets)


def silenced(experts: list[dict[Modality, Gaussian]], subsets: Subsets) -> list[dict[Modality, Gaussian]]:
    """The experts with those of rows that do not observe their modality made infinitely wide."""
    return [
        {m: expert.where(subset[m]) for m, expert in by_modality.items()} if isinstance(subset, dict) else by_modality
        for by_modality, subset in zip(experts, subsets, strict=True)
    ]


def apart(stacks: list[Gaussian], n: int) -> list[Gaussian]:
    """Gaussians of stacks as n, one a subset."""
    return stacks if len(stacks) == n else stacks[0].chunk(n)


def experts_apart(stacks: list[dict[Modality, Gaussian]], n: int) -> list[dict[Modality, Gaussian]]:
    """The experts of stacks as n dicts, one a subset."""
    if len(stacks) == n:
        return stacks
    parts = {m: expert.chunk(n) for m, expert in stacks[0].items()}
    return [{m: experts[i] for m, experts in parts.items()} for i in range(n)]
