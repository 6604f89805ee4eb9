"""The registration check: what it draws and what it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mhvae_kit.errors import InputError
from mhvae_kit.figures import RegistrationRow, registration_grid
from mhvae_kit.figures.registration import _checkerboard, _overlay


@pytest.fixture
def row() -> RegistrationRow:
    image = np.add.outer(np.arange(24.0), np.arange(30.0))
    return RegistrationRow(
        reference=image,
        before=image[::-1],
        after=image,
        fov=np.ones(image.shape),
        similarity=(0.1, 0.25),
        method="simpleitk",
    )


def test_it_says_data_method_and_similarity(row):
    figure = registration_grid({"t2": row}, data="phantom", title="case 1")
    texts = [a.get_xlabel() + a.get_ylabel() for a in figure.axes]
    assert "phantom data" in figure._suptitle.get_text() and "t2 (simpleitk)" in "".join(texts)
    assert "0.100" in texts[0] and "0.250" in texts[1] and len(figure.axes) == 4


def test_squares_take_turns():
    board = _checkerboard(np.zeros((12, 12)), np.ones((12, 12)))
    assert board.mean() == 0.5 and board[0, 0] == 0 and board[0, 2] == 1 and board[2, 2] == 0


def test_edges_lie_where_the_other_image_changes():
    moving, inside = np.zeros((40, 40)), np.ones((40, 40), bool)
    moving[:, 20:] = 1
    coloured = np.ptp(_overlay(np.full((40, 40), 0.5), moving, inside), axis=2) > 0.05
    assert coloured[20, 18:22].any() and not coloured[:, :14].any() and not coloured[:, 26:].any()


def test_images_of_two_sizes_are_refused(row):
    with pytest.raises(InputError, match="differ in size"):
        registration_grid({"t2": dataclasses.replace(row, after=np.zeros((3, 3)))}, data="phantom")
    with pytest.raises(InputError, match="no registration to show"):
        registration_grid({}, data="phantom")
