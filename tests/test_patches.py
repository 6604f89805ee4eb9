"""Sliced Wasserstein distance of patches: against SciPy, its properties on speckle, and what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.stats import wasserstein_distance

from mhvae_kit import metrics
from mhvae_kit.errors import InputError
from mhvae_kit.metrics import patches


def speckle(seed: int, shape: tuple[int, ...] = (2, 48, 44)) -> np.ndarray:
    """Log-compressed fully developed speckle with a grain of 2 to 3 px, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    fields = rng.normal(size=(2, *shape))
    smooth = ndimage.gaussian_filter(fields, (0,) * (len(shape) - 1) + (1.0, 0.8))
    envelope = np.hypot(*smooth)
    return np.clip(20 * np.log10(envelope / envelope.max()) / 20 + 1, -1, 1)


def disc(height: int = 48, width: int = 44) -> np.ndarray:
    row, column = np.mgrid[:height, :width]
    return np.hypot(row - height / 2, column - width / 2) < 0.45 * width


def distance(a: np.ndarray, b: np.ndarray, **options) -> np.ndarray:
    return metrics.sliced_wasserstein(a, b, data_range=2, **{"mask": disc(), **options})


def test_distance_agrees_with_scipy_on_one_band():
    a, b = speckle(0, (1, 16, 15)), speckle(1, (1, 16, 15))
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    weight = np.ones((16, 15))
    blurred = {}
    for name, image in (("a", a[0]), ("b", b[0]), ("w", weight)):
        blurred[name] = ndimage.convolve(image, np.outer(kernel, kernel), mode="constant")
    bands = [a[0] - blurred["a"] / blurred["w"], b[0] - blurred["b"] / blurred["w"]]
    directions = np.random.default_rng(5).normal(size=(6, 9))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    places = list(itertools.product(range(14), range(13)))
    first, second = ([band[r : r + 3, c : c + 3].ravel() for r, c in places] for band in bands)
    sliced = np.mean([wasserstein_distance(np.array(first) @ d, np.array(second) @ d) for d in directions])
    spread = np.hypot(bands[1].std(), 2 / 255 / np.sqrt(12))
    options = {"n_levels": 1, "patch_px": 3, "n_directions": 6, "seed": 5}
    made = metrics.sliced_wasserstein(a, b, data_range=2, **options)
    assert made == pytest.approx([sliced / spread], rel=1e-5)


@settings(max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([1, 2, 3]))
def test_identical_images_have_no_distance(seed, n_levels):
    image = speckle(seed)
    assert (distance(image, image, n_levels=n_levels) == 0).all()


@pytest.mark.parametrize("damage", ["blur", "noise"])
def test_more_damage_means_a_larger_distance(damage):
    image = speckle(2)
    noise = np.random.default_rng(3).normal(size=image.shape)
    scores = []
    for strength in (0.4, 0.7, 1.0, 1.5, 2.5) if damage == "blur" else (0.03, 0.06, 0.12, 0.25, 0.5):
        bad = ndimage.gaussian_filter(image, (0, strength, strength)) if damage == "blur" else image + strength * noise
        scores.append(distance(np.clip(bad, -1, 1), image))
    assert all((a < b).all() for a, b in itertools.pairwise([np.zeros(2), *scores]))


def test_another_draw_of_the_speckle_is_nearer_than_its_mean():
    real, other = speckle(4), speckle(5)
    mean = np.mean([speckle(seed) for seed in range(10, 40)], axis=0)
    assert (3 * distance(other, real) < distance(mean, real)).all()
    # Pixel by pixel it is the other way round: this is why the metric is there.
    assert (metrics.mae(other, real, data_range=2) > metrics.mae(mean, real, data_range=2)).all()


def test_nothing_outside_the_mask_counts():
    real, made = speckle(6), speckle(7)
    expected = distance(made, real)
    spoilt = [np.where(disc(), x, v) for x, v in ((made, -1.0), (real, 0.7))]
    np.testing.assert_allclose(distance(*spoilt), expected, rtol=1e-6)


def test_brightness_alone_is_no_texture():
    image = 0.5 * speckle(8)
    assert (distance(image + 0.3, image) < 1e-6).all()


def test_distance_does_not_depend_on_the_unit():
    a, b = speckle(9), speckle(10)
    other = metrics.sliced_wasserstein((a + 1) * 127.5, (b + 1) * 127.5, data_range=255, mask=disc())
    np.testing.assert_allclose(other, distance(a, b), rtol=1e-4)


def test_calls_repeat_and_leave_the_global_random_state_alone():
    a, b = speckle(11), speckle(12)
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - this is what is being looked at
    assert (distance(a, b, max_patches=50) == distance(a, b, max_patches=50)).all()
    assert (distance(a, b, seed=1) != distance(a, b)).all()
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_batches_single_images_and_tensors_agree():
    a, b = speckle(13), speckle(14)
    expected = distance(a, b)
    np.testing.assert_allclose([distance(x, y)[0] for x, y in zip(a, b, strict=True)], expected)
    tensors = [torch.from_numpy(x)[:, None] for x in (a, b)]
    np.testing.assert_allclose(distance(*tensors), expected)


def test_few_patches_estimate_the_distance_of_all():
    a, b = ndimage.gaussian_filter(speckle(15), (0, 0.7, 0.7)), speckle(15)
    np.testing.assert_allclose(distance(a, b, max_patches=300), distance(a, b, max_patches=10_000), rtol=0.15)


def test_a_band_without_room_for_a_patch_is_left_out():
    mask = np.zeros((48, 44), bool)
    mask[10:20, 10:20] = True  # 10 px: a 7 px patch fits here, but not at half the size
    a, b = speckle(16), speckle(17)
    np.testing.assert_array_equal(distance(a, b, mask=mask), distance(a, b, mask=mask, n_levels=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.zeros((48, 44))}, "mask is empty"),
        ({"mask": np.pad(np.ones((6, 44)), ((0, 42), (0, 0)))}, "mask is too thin for patches.*7 x 7"),
        ({"target": np.full((2, 48, 44), -1.0)}, "target is constant.*slice of background.*image 0.*Leave"),
        ({"prediction": np.full((2, 48, 44), np.nan)}, "prediction holds NaN"),
        ({"prediction": np.full((2, 48, 44), 3.0)}, "prediction lies outside the declared range"),
        ({"prediction": np.zeros((1, 2, 48, 44))}, "not an image"),
        ({"n_levels": 0}, "n_levels is not usable"),
        ({"patch_px": 2.5}, "patch_px is not usable"),
        ({"n_directions": True}, "n_directions is not usable"),
    ],
)
def test_unfit_arguments_are_refused(change, message):
    given_ = {"prediction": speckle(0), "target": speckle(1), "mask": disc(), **change}
    with pytest.raises(InputError, match=message):
        metrics.sliced_wasserstein(given_.pop("prediction"), given_.pop("target"), data_range=2, **given_)


def test_constant_images_are_named_by_their_number():
    images = speckle(0)
    images[1] = np.where(disc(), 0.25, images[1])
    with pytest.raises(InputError, match=r"0\.25 everywhere in 1 of 2 images, the first is image 1"):
        patches.check_textured(images, np.broadcast_to(disc(), images.shape))
