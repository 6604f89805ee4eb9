"""Maps in bfloat16, stored channels-last."""

from __future__ import annotations

import torch
from torch import Tensor


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def half_map(*shape: int, seed: int = 1) -> Tensor:
    """Numbers whose channels do not have a mean of 0."""
    return (3 * noise(*shape, seed=seed) + 1).to(torch.bfloat16, memory_format=torch.channels_last)
