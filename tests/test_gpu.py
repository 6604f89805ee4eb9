"""What a GPU computes: as a processor does, resumed as in one go, with less memory where it is asked for.

Skipped as a whole, in one line, where torch sees no GPU.
"""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from mhvae_kit import MHVAE, MHVAEConfig
from mhvae_kit.bench import worker
from mhvae_kit.bench.cases import quick_cases
from mhvae_kit.config import TrainingConfig
from mhvae_kit.data import load_phantom
from mhvae_kit.networks.blocks import checkpoint_gradients
from mhvae_kit.networks.normalisation import instance_norm, norm_silu
from mhvae_kit.synthesis import synthesize_volume
from mhvae_kit.training import train

if not torch.cuda.is_available():
    pytest.skip("no GPU here", allow_module_level=True)

CONFIG = MHVAEConfig(image_size=(64, 64), levels=5, base_channels=8, max_channels=32, decoder_blocks=2)
TINY = {"levels": 3, "base_channels": 4, "max_channels": 8, "steps": 6, "batch_size": 4, "checkpoint_every": 3}
TINY |= {"validate_every": 6, "log_every": 1, "validation_slices": 2, "discriminator_channels": 2}


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch):
    """Without TF32, so that what differs is the order of sums alone."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def model() -> MHVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MHVAE(CONFIG)


def images(n: int = 2, device: str = "cpu") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {m: (torch.rand(n, 1, 64, 64, generator=generator) * 1.8 - 0.9).to(device) for m in ("t2", "us")}


@pytest.mark.parametrize("observed", [("t2",), ("us",), ("t2", "us"), ()])
def test_images_are_those_of_a_processor(model, observed):
    on_gpu = copy.deepcopy(model).cuda()
    noise = model.draw_noise(2, torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = model.decode(model.encode(images()), observed, noise=noise)
        moved = {level: draw.cuda() for level, draw in noise.items()}
        theirs = on_gpu.decode(on_gpu.encode(images(device="cuda")), observed, noise=moved)
    for name in ours.images:
        torch.testing.assert_close(theirs.images[name].cpu(), ours.images[name], atol=1e-4, rtol=0)
    for level in ours.kl:
        torch.testing.assert_close(theirs.kl[level].cpu(), ours.kl[level], atol=1e-2, rtol=1e-4)


def gradients(model: MHVAE, device: str) -> dict[str, torch.Tensor]:
    given = images(device=device)
    noise = {k: v.to(device) for k, v in model.draw_noise(2, torch.Generator().manual_seed(2)).items()}
    made = model.decode(model.encode(given), noise=noise)
    loss = sum((made.images[m] - x).abs().mean() for m, x in given.items()) + 1e-4 * sum(
        kl.mean() for kl in made.kl.values()
    )
    model.zero_grad()
    loss.backward()
    return {k: p.grad.cpu().clone() for k, p in model.named_parameters() if p.grad is not None}


def largest_relative_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Of any parameter's gradient as a vector; those of biases that a norm takes away are rounding alone, left out."""
    assert one.keys() == other.keys()
    largest = max(float(g.norm()) for g in other.values())
    real = [name for name, g in other.items() if float(g.norm()) > 1e-6 * largest]
    assert len(real) > 0.7 * len(other)
    return max(float((one[name] - other[name]).norm() / other[name].norm()) for name in real)


def test_gradients_are_those_of_a_processor(model):
    ours, theirs = gradients(model, "cpu"), gradients(copy.deepcopy(model).cuda(), "cuda")
    assert largest_relative_difference(theirs, ours) < 5e-3


def test_checkpointed_gradients_are_the_same_for_less_memory(model):
    model.cuda()
    found, peaks = [], []
    for on in (False, True):
        checkpoint_gradients(model, on)
        torch.cuda.reset_peak_memory_stats()
        found.append(gradients(model, "cuda"))
        peaks.append(torch.cuda.max_memory_allocated())
    assert largest_relative_difference(found[1], found[0]) < 1e-4
    assert peaks[1] < 0.8 * peaks[0]


def config(**changes) -> TrainingConfig:
    return TrainingConfig.from_preset("smoke", **{**TINY, **changes})


@pytest.fixture(scope="module")
def phantom():
    return load_phantom("smoke", splits=("train", "validation"), show_progress=False)


def losses(folder: Path) -> pd.DataFrame:
    table = pd.read_csv(folder / "metrics.csv")
    return table[[c for c in table.columns if c.startswith(("loss", "l1", "kl_nats", "adversarial", "discriminator"))]]


def test_a_training_that_was_stopped_goes_on_as_in_one_go(tmp_path, phantom):
    whole = train(config(), tmp_path / "whole", dataset=phantom)
    resumed = train(config(), tmp_path / "resumed", dataset=phantom)
    for path in (resumed / "results.json", resumed / "checkpoints" / "step_000006.pt"):
        path.unlink()
    train(config(), resumed, dataset=phantom)
    pd.testing.assert_frame_equal(losses(resumed), losses(whole), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {"checkpoint_gradients": True}, {"accumulate": 2}])
def test_ways_to_save_memory_train_to_nearly_the_same_losses(tmp_path, phantom, changes):
    plain = losses(train(config(steps=2, gan=False), tmp_path / "plain", dataset=phantom))
    other = losses(train(config(steps=2, gan=False, **changes), tmp_path / "other", dataset=phantom))
    tolerance = 3e-2 if "precision" in changes else 2e-3
    pd.testing.assert_frame_equal(other, plain, rtol=tolerance, atol=tolerance)


def test_a_volume_is_that_of_a_processor(tmp_path, model):
    array = np.zeros((40, 44, 5), np.int16)
    array[4:36, 3:40, 1:] = np.random.default_rng(0).integers(50, 900, (32, 37, 4))
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "case.nii.gz")
    made = {}
    for device in ("cpu", "cuda"):
        options = {"output": tmp_path / device, "show_progress": False}
        result = synthesize_volume(model.to(device).eval(), {"t2": tmp_path / "case.nii.gz"}, **options)
        made[device] = np.asarray(nib.load(result.path("us")).dataobj).astype(int)
    assert made["cpu"].std() > 5, "a flat image would prove nothing"
    assert abs(made["cuda"] - made["cpu"]).max() <= 1, "grey levels of 255"


def test_norms_keep_bfloat16_under_autocast(model):
    model.cuda()
    with torch.autocast("cuda", torch.bfloat16):
        y = model.encoder["t2"].first(images(device="cuda")["t2"])
        assert y.dtype == instance_norm(y).dtype == norm_silu(y).dtype == torch.bfloat16
    made = F.instance_norm(y.float())
    torch.testing.assert_close(instance_norm(y).float(), made, atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("kind", ["arithmetic", "inference", "temperatures", "volume", "training"])
def test_the_bench_runs_each_kind_of_work_and_counts_memory_of_the_card(kind, tmp_path):
    case = next(case for case in quick_cases() if case.kind == kind)
    given = {"case": vars(case), "side": "kit", "weights": None, "device": "cuda", "output": str(tmp_path / "out.npy")}
    answers = list(worker._serve(io.StringIO("\n".join([json.dumps(given), "run", "run", "output", "end"]))))
    assert answers[-1]["baseline_mb"] == 0 and answers[-1]["peak_mb"] > 0
