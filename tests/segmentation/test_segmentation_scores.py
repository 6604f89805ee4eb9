"""Scores of a segmentation against hand values, and what a network's logits become."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn

from mhvae_kit.errors import InputError
from mhvae_kit.segmentation import score_patients, segment_cases
from mhvae_kit.segmentation.scores import COLUMNS

SHAPE = (12, 16, 20)


def cube(start: int = 3, shift: int = 0, side: int = 4) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[start : start + side, start : start + side, start + shift : start + shift + side] = True
    return mask


def scored(made: np.ndarray, true: np.ndarray, spacing=(1.0, 1.0, 1.0)) -> dict:
    return score_patients({"a": made}, {"a": true}, spacing).iloc[0].to_dict()


def test_a_perfect_answer():
    row = scored(cube(), cube())
    assert (row["dice"], row["hd95_mm"], row["assd_mm"]) == (1.0, 0.0, 0.0)
    assert row["volume_ml"] == row["predicted_ml"] == pytest.approx(0.064)


def test_two_shifted_cubes_by_hand():
    """Of 4 x 4 x 4 voxels shifted by 2, half overlap; both ends lie 2 apart."""
    row = scored(cube(shift=2), cube())
    assert row["dice"] == pytest.approx(0.5)
    assert row["hd95_mm"] == pytest.approx(2.0)
    # The outer face (16 voxels) is 2 away, the layer before it (12 on the surface) 1; the layers that overlap are on
    # the other cube's surface, but for the 4 inner voxels of that cube's own end, which are 1 away.
    surface = 4**3 - 2**3
    expected = (16 * 2 + 12 * 1 + 4 * 1) / surface
    assert row["assd_mm"] == pytest.approx(expected, rel=1e-5)


def test_distances_follow_the_spacing_of_each_axis():
    row = scored(cube(shift=2), cube(), spacing=(1.0, 1.0, 3.0))
    assert row["hd95_mm"] == pytest.approx(6.0)
    assert row["volume_ml"] == pytest.approx(64 * 3 / 1000)


def surface_distances(made: np.ndarray, true: np.ndarray, spacing) -> tuple[np.ndarray, np.ndarray]:
    """Of every surface voxel of one mask to the nearest of the other, by a search over all pairs."""
    edges = [np.argwhere(m & ~ndimage.binary_erosion(m)) * spacing for m in (made, true)]
    pairs = np.linalg.norm(edges[0][:, None] - edges[1][None], axis=2)
    return pairs.min(axis=1), pairs.min(axis=0)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), spacing=st.tuples(*[st.sampled_from([0.5, 1.0, 2.0])] * 3))
def test_scores_against_a_search_over_all_pairs(seed, spacing):
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.standard_normal((2, *SHAPE)), (0, 2, 2, 2))
    made, true = (f > np.quantile(f, 0.9) for f in fields)
    row = scored(made, true, spacing)
    there, back = surface_distances(made, true, spacing)
    assert row["dice"] == pytest.approx(2 * (made & true).sum() / (made.sum() + true.sum()))
    assert row["assd_mm"] == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-4)
    assert row["hd95_mm"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-4)


def test_an_empty_answer_gets_0_and_the_diagonal():
    row = scored(np.zeros(SHAPE, bool), cube(), spacing=(1.0, 2.0, 0.5))
    diagonal = (12**2 + 32**2 + 10**2) ** 0.5
    assert row["dice"] == 0 and row["hd95_mm"] == row["assd_mm"] == pytest.approx(diagonal)
    assert row["predicted_ml"] == 0


def test_a_patient_without_tumour_is_refused():
    with pytest.raises(InputError, match="a has no tumour to be found; expected a label with at least one voxel"):
        scored(cube(), np.zeros(SHAPE, bool))


def test_other_cases_are_refused():
    with pytest.raises(InputError, match="predicted and true labels are of different cases; got .*'b'"):
        score_patients({"a": cube()}, {"a": cube(), "b": cube()}, (1.0, 1.0, 1.0))


def test_one_row_a_case_in_the_order_of_the_truth():
    masks = {"b": cube(), "a": cube(shift=1)}
    table = score_patients(dict(reversed(masks.items())), masks, (1.0, 1.0, 1.0))
    assert tuple(table.columns) == COLUMNS and table["case"].tolist() == ["b", "a"]


class Level(nn.Module):
    """The image itself as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.nothing


def logits(*masks: np.ndarray) -> np.ndarray:
    return np.where(np.any(masks, axis=0), 1.0, -1.0).astype(np.float32)


def test_of_several_pieces_the_largest_is_kept():
    large, small = cube(2, side=4), np.zeros(SHAPE, bool)
    small[8:11, 12:14, 16:18] = True
    found = segment_cases(Level(), {"a": logits(large, small)}, slice_mm=1000.0)["a"]
    assert np.array_equal(found, large) and found.dtype == bool


def test_pieces_that_touch_at_a_corner_are_two():
    mask = np.zeros(SHAPE, bool)
    mask[2:5, 2:5, 2:5] = True
    mask[5, 5, 5] = True
    found = segment_cases(Level(), {"a": logits(mask)}, slice_mm=1000.0)["a"]
    assert found.sum() == 27


def test_a_single_slice_between_others_is_smoothed_away_and_a_gap_is_closed():
    alone = np.zeros(SHAPE, bool)
    alone[6, 4:8, 4:8] = True
    assert not segment_cases(Level(), {"a": logits(alone)}, slice_mm=1.0)["a"].any()
    gap = np.zeros(SHAPE, bool)
    gap[2:10, 4:8, 4:8] = True
    gap[6] = False
    found = segment_cases(Level(), {"a": logits(gap)}, slice_mm=1.0)["a"]
    assert found[6, 5, 5]


def test_an_empty_answer_stays_empty():
    assert not segment_cases(Level(), {"a": logits(np.zeros(SHAPE, bool))})["a"].any()


class Left(Level):
    """Fires left of the middle alone, whatever it sees."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(x.shape[-1]) < x.shape[-1] // 2, 1.0, -0.5).expand_as(x) + self.nothing


def test_an_image_and_its_mirror_image_vote_alike():
    found = segment_cases(Left(), {"a": np.zeros(SHAPE, np.float32)})["a"]
    assert found.all()  # (1 - 0.5) / 2 on both sides


def test_the_batch_size_changes_nothing_and_every_case_has_its_mask():
    rng = np.random.default_rng(0)
    volumes = {c: ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2).astype(np.float32) for c in "ab"}
    one, many = (segment_cases(Level(), volumes, batch_size=n) for n in (1, 16))
    assert list(one) == ["a", "b"] and all(np.array_equal(one[c], many[c]) for c in volumes)
