"""Training of the segmentation network: the same seed the same network, labels stay under their images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mhvae_kit.errors import InputError, RunError
from mhvae_kit.segmentation import SegmentationConfig, SegmentationSlices, build_network, train_segmenter
from mhvae_kit.segmentation import train as module
from mhvae_kit.segmentation.train import augmented

SIDE = 32
TINY = SegmentationConfig(channels=(4, 8, 8), steps=3, batch_size=4)


def discs(n: int = 12, seed: int = 0) -> SegmentationSlices:
    """Bright discs on noise, in a fan that is a larger disc."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    fov = np.repeat((np.hypot(rows - 15.5, columns - 15.5) < 15)[None], n, axis=0)
    centres = rng.uniform(12, 20, (n, 2))
    labels = np.stack([np.hypot(rows - r, columns - c) < 5 for r, c in centres]) & fov
    images = np.clip(np.where(labels, 0.5, -0.3) + 0.1 * rng.standard_normal(labels.shape), -0.99, 1)
    return SegmentationSlices(np.where(fov, images, -1).astype(np.float32), labels, fov, ("a",) * n)


def states(*networks: torch.nn.Module) -> list[dict[str, torch.Tensor]]:
    return [n.state_dict() for n in networks]


def equal(first: dict, second: dict) -> bool:
    return all(torch.equal(first[k], second[k]) for k in first)


def test_the_same_seed_gives_the_same_network_and_another_seed_another():
    first, again, other = states(*(train_segmenter(discs(), TINY, seed) for seed in (0, 0, 1)))
    assert equal(first, again) and not equal(first, other)


def test_the_global_generators_neither_matter_nor_are_touched():
    torch.manual_seed(5)
    first = train_segmenter(discs(), TINY, 0)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert equal(*states(first, train_segmenter(discs(), TINY, 0)))


def test_a_bright_disc_is_learnt_in_a_few_steps():
    config = SegmentationConfig(channels=(8, 16, 32), steps=60, batch_size=8, learning_rate=2e-2)
    network = train_segmenter(discs(24), config, 0)
    assert not network.training
    held_out = discs(8, seed=1)
    with torch.inference_mode():
        found = network(torch.from_numpy(held_out.images)[:, None])[:, 0].numpy() > 0
    assert 2 * (found & held_out.labels).sum() / (found.sum() + held_out.labels.sum()) > 0.8


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_trainings_work(steps):
    network = train_segmenter(discs(2), dataclasses.replace(TINY, steps=steps), 0)
    assert all(p.isfinite().all() for p in network.parameters())


def test_training_does_not_modify_the_slices():
    slices = discs()
    before = slices.images.copy(), slices.labels.copy()
    train_segmenter(slices, TINY, 0)
    assert np.array_equal(slices.images, before[0]) and np.array_equal(slices.labels, before[1])


def test_float32_is_an_option():
    network = train_segmenter(discs(2), dataclasses.replace(TINY, bfloat16=False), 0)
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_a_loss_that_is_not_finite_is_said(monkeypatch):
    monkeypatch.setattr(module, "DiceCELoss", lambda **_: lambda logits, labels: logits.sum() * float("nan"))
    with pytest.raises(RunError, match="the segmentation loss is not finite at step 0; got nan"):
        train_segmenter(discs(), TINY, 0)


def batch(slices: SegmentationSlices) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(slices.images)[:, None], torch.from_numpy(slices.labels[:, None].astype(np.float32))


def test_augmentation_stays_in_range_and_keeps_labels_binary():
    images, labels = batch(discs())
    moved, where = augmented(images, labels, SegmentationConfig(), np.random.default_rng(0))
    assert moved.min() >= -1 and moved.max() <= 1 + 1e-5
    assert set(where.unique().tolist()) <= {0.0, 1.0}
    assert moved.shape == images.shape and where.shape == labels.shape


def test_background_stays_background():
    images, labels = batch(discs())
    config = SegmentationConfig(shift_px=0.0, scale=0.0, gain=0.5)
    moved, _ = augmented(images, labels, config, np.random.default_rng(0))
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    outside = torch.from_numpy(np.hypot(rows - 15.5, columns - 15.5) > 17)  # turned about its centre, the fan is itself
    inside = torch.from_numpy(np.hypot(rows - 15.5, columns - 15.5) < 13)
    assert (moved[:, 0, outside] == -1).all() and (moved[:, 0, inside] > -1).all()


def test_labels_follow_their_images():
    image = torch.full((8, 1, SIDE, SIDE), -0.5)
    image[:, :, 8:14, 16:24] = 0.8
    moved, where = augmented(image, (image > 0).float(), SegmentationConfig(gain=0.0), np.random.default_rng(3))
    bright, marked = moved > 0.15, where > 0
    overlap = 2 * (bright & marked).sum((1, 2, 3)) / (bright.sum((1, 2, 3)) + marked.sum((1, 2, 3)))
    assert overlap.min() > 0.85
    assert len({tuple(m.flatten().tolist()) for m in where}) == 8  # each slice by draws of its own


def test_without_augmentation_a_slice_is_itself_or_its_mirror_image():
    images, labels = batch(discs())
    still = SegmentationConfig(rotation_rad=0.0, scale=0.0, shift_px=0.0, gain=0.0)
    moved, where = augmented(images, labels, still, np.random.default_rng(0))
    seen = set()
    for before, after, label, new in zip(images, moved, labels, where, strict=True):
        mirrored = not torch.allclose(after, before, atol=1e-4)
        seen.add(mirrored)
        torch.testing.assert_close(after, before.flip(-1) if mirrored else before, atol=1e-4, rtol=0)
        assert torch.equal(new, label.flip(-1) if mirrored else label)
    assert seen == {True, False}


@pytest.mark.parametrize("shift_px", [3.0])
def test_the_largest_shift_is_in_pixels(shift_px):
    image = torch.full((64, 1, SIDE, SIDE), -0.9)
    image[:, :, 15:17, 15:17] = 0.9
    config = SegmentationConfig(rotation_rad=0.0, scale=0.0, gain=0.0, shift_px=shift_px)
    moved, _ = augmented(image, image, config, np.random.default_rng(0))
    weight = moved[:, 0] + 0.9
    weight = weight * (weight > 0.05)
    rows = (weight.sum(2) * torch.arange(SIDE)).sum(1) / weight.sum((1, 2)) - 15.5
    assert 0.8 * shift_px < rows.abs().max() <= shift_px + 0.1


def test_the_network_gives_a_logit_a_pixel():
    network = build_network(SegmentationConfig())
    assert network(torch.zeros(2, 1, 32, 48)).shape == (2, 1, 32, 48)


@pytest.mark.parametrize(
    "setting",
    [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"channels": (4,)}],
)
def test_unusable_settings_are_refused(setting):
    with pytest.raises(InputError, match="the segmentation settings are not usable; got .*; expected positive numbers"):
        SegmentationConfig(**setting)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labels": np.zeros((12, SIDE, SIDE), bool)},
            "no slice has a tumour; expected labels with at least one pixel",
        ),
        ({"cases": ("a",)}, "slices, labels and fans differ; got .*1 cases; expected \\(N, H, W\\) each, N cases"),
        ({"fov": np.ones((12, SIDE, 8), bool)}, "slices, labels and fans differ"),
        ({"images": np.full((12, SIDE, SIDE), np.nan)}, "the training images are not finite or leave"),
        ({"images": np.full((12, SIDE, SIDE), 1.5)}, "the training images are not finite or leave"),
    ],
)
def test_slices_that_cannot_be_learnt_from_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(discs(), **change)


def test_sides_that_cannot_be_halved_often_enough_are_refused():
    whole = discs()
    cut = SegmentationSlices(whole.images[:, :30], whole.labels[:, :30], whole.fov[:, :30], whole.cases)
    with pytest.raises(InputError, match="do not fit the segmentation network; got 30 x 32 pixels; .* multiples of 4"):
        train_segmenter(cut, TINY, 0)


def test_slices_know_their_number():
    assert len(discs(5)) == 5
