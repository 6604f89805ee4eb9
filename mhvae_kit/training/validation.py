"""Scores on validation patients while training runs."""

from __future__ import annotations

import itertools

import torch

from mhvae_kit.data import SliceDataset
from mhvae_kit.metrics import psnr
from mhvae_kit.training.state import TrainingState

VALIDATION_BATCH = 8


@torch.no_grad()
def validate(state: TrainingState, slices: SliceDataset, n_slices: int) -> dict[str, float]:
    """PSNR in dB inside the fan at temperature 0, with the averaged weights.

    Args:
        state: Its model's weights are swapped for the averaged ones meanwhile.
        slices: Validation patients.
        n_slices: How many slices, spread evenly over them.
    Returns:
        One mean per observed subset and target ("psnr_t2_to_us_db"), and "psnr_mean_db" over all of them.
    """
    model, names = state.model, state.config.model.modalities
    count = min(n_slices, len(slices))
    chosen = [i * len(slices) // count for i in range(count)]
    subsets = [s for size in range(1, len(names) + 1) for s in itertools.combinations(names, size)]
    device = next(model.parameters()).device
    current = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(state.average.weights)
    model.eval()
    sums: dict[str, float] = {}
    for start in range(0, count, VALIDATION_BATCH):
        items = slices.batch(chosen[start : start + VALIDATION_BATCH])
        encoding = model.encode({m: x.to(device) for m, x in items["images"].items()})
        for subset in subsets:
            images = model.decode(encoding, subset, temperature=0).images
            for target, image in images.items():
                name = f"psnr_{'+'.join(subset)}_to_{target}_db"
                scores = psnr(image.cpu().clamp(-1, 1), items["images"][target], data_range=2.0, mask=items["fov"])
                sums[name] = sums.get(name, 0.0) + float(scores.sum())
    model.load_state_dict(current)
    model.train()
    means = {name: value / count for name, value in sums.items()}
    return {**means, "psnr_mean_db": sum(means.values()) / len(means)}
