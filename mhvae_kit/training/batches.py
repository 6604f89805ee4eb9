"""The slices of a step, mirrored as drawn: the same for every method that is trained with the same seed and batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mhvae_kit.data import SliceDataset
from mhvae_kit.training.schedule import Draws, flips_of_step, slices_of_step


def batch_of_step(
    slices: SliceDataset, config: Draws, step: int, positions: Sequence[int], device: torch.device
) -> dict[str, Any]:
    """Some positions of a step's batch.

    Args:
        slices: The training slices.
        config: Gives seed and batch size.
        step: Counted from 0.
        positions: Which of the batch_size slices, in [0, batch_size).
        device: Where the images are wanted.
    Returns:
        "images": by modality, (B, 1, H, W) in [-1, 1]; "fov": bool (B, 1, H, W), both mirrored left to right as drawn;
        "present": by modality, bool (B,), which slices have it; "sources": (case, slice) of each.
    """
    indices = slices_of_step(config, step, len(slices))
    flips = flips_of_step(config, step)
    items = slices.batch([indices[p] for p in positions])
    mirrored = torch.tensor([flips[p] for p in positions])[:, None, None, None]

    def placed(x: Tensor) -> Tensor:
        return torch.where(mirrored, x.flip(-1), x).to(device)

    return {
        "images": {m: placed(x) for m, x in items["images"].items()},
        "fov": placed(items["fov"]),
        "present": {m: has.to(device) for m, has in items["present"].items()},
        "sources": [(case, int(k)) for case, k in zip(items["case"], items["slice"], strict=True)],
    }
