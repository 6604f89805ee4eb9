"""What bfloat16 changes of the shipped models' PSNR: T2 to ultrasound of the demo phantom's test patients, at τ = 0.

python benchmarks/bfloat16_psnr.py [--plain]: three slices of each patient; --plain by torch's operations alone.
"""

from __future__ import annotations

import argparse
import contextlib

import torch
from torch import Tensor

from mhvae_kit.data import SliceDataset, load_phantom
from mhvae_kit.kernels.team import without_kernels
from mhvae_kit.metrics import psnr
from mhvae_kit.networks import MHVAE
from mhvae_kit.networks.storage import load_shipped, shipped_models

PATIENT = 24  # slices of one
SLICES = (6, 12, 18)


def patients() -> list[dict]:
    """A batch of every test patient."""
    slices = SliceDataset(load_phantom("demo", splits=["test"]), "test")
    return [slices.batch([first + i for i in SLICES]) for first in range(0, len(slices), PATIENT)]


def scores(model: MHVAE, batches: list[dict]) -> Tensor:
    """PSNR inside the field of view by patient, in dB, mean of the slices."""
    found = []
    for batch in batches:
        made = model({"t2": batch["images"]["t2"]}, temperature=0.0, targets=["us"]).images["us"]
        found.append(psnr(made, batch["images"]["us"], data_range=2.0, mask=batch["fov"]).mean())
    return torch.tensor(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plain", action="store_true")
    way = without_kernels() if parser.parse_args().plain else contextlib.nullcontext()
    batches = patients()
    with torch.inference_mode(), way:
        for name in shipped_models():
            model = load_shipped(name)
            single = scores(model, batches)
            with torch.autocast("cpu", torch.bfloat16):
                change = scores(model, batches) - single
            print(
                f"{name}: {len(batches)} patients, {single.mean():.2f} dB in float32; in bfloat16 "
                f"{change.mean():+.4f} dB on average, {change.abs().max():.4f} dB at most in one"
            )


if __name__ == "__main__":
    main()
