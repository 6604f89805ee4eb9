"""Several observed subsets in one top-down pass: their maps lie behind each other along the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mhvae_kit.config import Modality
from mhvae_kit.gaussian import Gaussian

Subset = tuple[Modality, ...]
ObservedRows = Mapping[Modality, Tensor]  # by modality, bool (B,): which rows observe it


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Maps as one batch; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def silenced(
    experts: list[dict[Modality, Gaussian]], subsets: Sequence[Subset | ObservedRows]
) -> list[dict[Modality, Gaussian]]:
    """The experts with those of rows that do not observe their modality made infinitely wide."""
    return [
        {m: expert.where(subset[m]) for m, expert in by_modality.items()} if isinstance(subset, dict) else by_modality
        for by_modality, subset in zip(experts, subsets, strict=True)
    ]
