"""Panels as pixels: colours, sizes and titles."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mhvae_kit.widgets.pictures import Panel, coloured, round_limit, strip


def test_grey_maps_minus_1_to_black_and_1_to_white():
    panel = coloured(Panel("a", np.array([[-1.0, 0.0, 1.0, 3.0]])))
    assert panel[0, [0, 2, 3], 0].tolist() == [0, 255, 255] and abs(int(panel[0, 1, 0]) - 128) <= 1


def test_a_difference_of_0_is_nearly_white_and_both_signs_differ():
    panel = coloured(Panel("a", np.array([[-0.5, 0.0, 0.5]]), "difference", 0.5))[0].astype(int)
    assert panel[1].min() > 240 and panel[0, 2] > panel[0, 0] and panel[2, 0] > panel[2, 2]


@pytest.mark.parametrize("kind", ["difference", "deviation"])
def test_what_lies_outside_the_field_of_view_is_blank_and_takes_no_part_in_the_scale(kind):
    values = np.array([[np.nan, 0.0, 0.4, 0.4]])
    panel = coloured(Panel("a", values, kind, round_limit(values)))[0].astype(int)
    assert round_limit(values) == 0.5
    assert panel[0].tolist() == [240, 242, 244] and panel[0].tolist() != panel[1].tolist()


@pytest.mark.parametrize(("largest", "limit"), [(0.0, 0.01), (0.015, 0.02), (0.5, 0.5), (1.7, 2.0)])
def test_colour_scales_end_at_round_numbers(largest, limit):
    assert round_limit(np.full((5, 5), largest)) == limit


def test_pixels_that_are_not_square_keep_their_proportions():
    panel = Panel("a", np.zeros((16, 16)))
    _, square = strip([panel], "", shape=(16, 16))
    _, wide = strip([panel], "", shape=(16, 16), spacing_mm=(1.0, 2.0))
    assert wide[0] - square[0] == 192 and wide[1] == square[1]


def test_a_long_title_is_cut_at_its_panel():
    panel = Panel("x" * 200, np.zeros((16, 16)))
    png, _ = strip([panel, Panel("", None)], "y" * 500, shape=(16, 16))
    image = np.asarray(Image.open(io.BytesIO(png)))
    assert (image[:20, 202:] == 255).all()  # nothing of the first title above the second panel
