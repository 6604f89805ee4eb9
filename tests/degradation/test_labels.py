"""Propagated labels: off by exactly the asked error over the tumour."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_scene import discs

from mhvae_kit.degradation import labels as module
from mhvae_kit.degradation.labels import propagated
from mhvae_kit.errors import InputError

LABELS = discs(38, 45, 10)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def field_of(monkeypatch, *arguments, **options) -> np.ndarray:
    """The displacement (2, D, H, W) in pixels that a label was moved by."""
    seen, warped = [], module.warped

    def spy(volume, displacement, **rest):
        seen.append(displacement)
        return warped(volume, displacement, **rest)

    with monkeypatch.context() as patched:
        patched.setattr(module, "warped", spy)
        propagated(*arguments, **options)
    return seen[0]


@pytest.mark.parametrize("deform", [False, True])
@pytest.mark.parametrize(("error_mm", "spacing_mm"), [(1.0, 1.0), (4.0, 0.5), (8.0, 1.5)])
def test_the_displacement_over_the_tumour_is_the_error(monkeypatch, error_mm, spacing_mm, deform):
    field = field_of(monkeypatch, LABELS, error_mm, spacing_mm, rng(), deform=deform)
    lengths_mm = np.linalg.norm(field.astype(float), axis=0)[LABELS] * spacing_mm
    assert np.sqrt(np.mean(lengths_mm**2)) == pytest.approx(error_mm, rel=1e-4)


def test_an_affine_error_is_affine_and_a_deformed_one_is_not(monkeypatch):
    bends = []
    for deform in (False, True):
        field = field_of(monkeypatch, LABELS, 4.0, 1.0, rng(), deform=deform)
        bends.append(max(np.abs(np.diff(field, n=2, axis=a)).max() for a in (2, 3)))
        assert deform or np.array_equal(field[:, 0], field[:, -1])
    assert bends[0] < 1e-4 < bends[1]


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), deform=st.booleans())
def test_no_error_changes_nothing(seed, deform):
    moved, drawn = propagated(LABELS, 0, 1.0, rng(seed), deform=deform)
    assert np.array_equal(moved, LABELS) and moved.dtype == bool
    assert drawn == {"error_mm": 0.0, "deform": deform, "rms_mm": 0.0}


@pytest.mark.parametrize(("error_mm", "deform"), [(1, False), (4, False), (1, True)])
def test_the_tumour_itself_moves_by_about_the_error(error_mm, deform):
    """Exactly so is the field over the true label; the centre moves more or less, most so with a large deformation."""
    lengths = []
    for seed in range(8):
        moved, _ = propagated(LABELS, error_mm, 1.0, rng(seed), deform=deform)
        lengths.append(np.linalg.norm(np.argwhere(moved).mean(axis=0)[1:] - np.argwhere(LABELS).mean(axis=0)[1:]))
    assert 0.6 * error_mm < np.sqrt(np.mean(np.square(lengths))) < 1.25 * error_mm


def test_a_larger_error_overlaps_less():
    def dice(error_mm: float) -> float:
        moved = [propagated(LABELS, error_mm, 1.0, rng(s))[0] for s in range(5)]
        return float(np.mean([2 * (m & LABELS).sum() / (m.sum() + LABELS.sum()) for m in moved]))

    scores = [dice(e) for e in (0, 1, 2, 4, 8)]
    assert scores[0] == 1.0 and scores == sorted(scores, reverse=True) and scores[-1] < 0.75


def test_the_same_generator_moves_alike_and_the_record_is_json():
    first, second, other = (propagated(LABELS, 4, 1.0, rng(s), deform=True) for s in (0, 0, 1))
    assert np.array_equal(first[0], second[0]) and not np.array_equal(first[0], other[0])
    assert json.loads(json.dumps(first[1])) == first[1]


def test_the_label_is_not_modified():
    before = LABELS.copy()
    propagated(LABELS, 8, 1.0, rng(), deform=True)
    assert np.array_equal(LABELS, before)


@pytest.mark.parametrize("error_mm", [-1, float("nan"), float("inf")])
def test_an_error_that_is_no_length_is_refused(error_mm):
    with pytest.raises(InputError, match=f"the label cannot be propagated; got an error of {error_mm} mm; expected 0"):
        propagated(LABELS, error_mm, 1.0, rng())


def test_a_label_without_tumour_is_refused():
    with pytest.raises(InputError, match="got a label without a voxel; expected 0 mm or more, and a tumour"):
        propagated(np.zeros_like(LABELS), 1, 1.0, rng())
