"""Figures of a comparison: what is drawn for whom, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mhvae_kit.errors import InputError
from mhvae_kit.figures.comparison import ComparedSlice, cost_panels, error_against_texture, method_grid


def compared(methods: tuple[str, ...] = ("A", "B"), seed: int = 0) -> ComparedSlice:
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1, 1, (16, 16))
    made = {name: np.clip(image + 0.1 * (k + 1), -1, 1) for k, name in enumerate(methods)}
    return ComparedSlice(label="case 1", source=-image, target=image, predictions=made, fov=np.ones((16, 16), bool))


def texts(figure) -> str:
    found = [t.get_text() for axes in figure.axes for t in (axes.title, axes.xaxis.label, axes.yaxis.label)]
    return " ".join([figure._suptitle.get_text(), *found])


def test_every_method_has_its_image_and_its_difference():
    figure = method_grid([compared(), compared(seed=1)], data="phantom", source_name="t2", target_name="us")
    pictures = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(pictures) == 2 * (2 + 2 * 2)  # input, target, two images, two differences for each slice
    assert "phantom" in texts(figure) and "input: t2" in texts(figure)


def test_differences_are_method_minus_target_inside_the_fan():
    one = compared(("A",))
    fov = np.zeros((16, 16), bool)
    fov[4:8] = True
    one = ComparedSlice(label="c", source=one.source, target=one.target, predictions=one.predictions, fov=fov)
    figure = method_grid([one], data="phantom", source_name="t2", target_name="us")
    errors = [axes.images[0].get_array() for axes in figure.axes if axes.images][-1]
    expected = np.where(fov, one.predictions["A"] - one.target, 0)
    np.testing.assert_allclose(np.asarray(errors), expected, atol=1e-6)


def test_slices_with_different_methods_are_refused():
    with pytest.raises(InputError, match="same methods"):
        method_grid([compared(), compared(("A",))], data="phantom", source_name="t2", target_name="us")


def test_costs_are_drawn_in_their_units():
    columns = {"parameters": [2e6, 4e6], "macs": [1e9, 3e9], "ms_per_slice": [5.0, 7.0], "training_seconds": [60, 120]}
    figure = cost_panels(pd.DataFrame(columns, index=["A", "B"]), data="phantom")
    widths = [[patch.get_width() for patch in axes.patches] for axes in figure.axes]
    assert widths == [[2, 4], [1, 3], [5, 7], [1, 2]]


def test_costs_without_a_column_are_refused():
    with pytest.raises(InputError, match="costs cannot be drawn"):
        cost_panels(pd.DataFrame({"parameters": [1.0]}), data="phantom")


def test_points_without_both_values_are_left_out_and_texture_points_up():
    frame = {"method": ["A", "B"], "mode": "mean path", "PSNR (dB)": [20.0, 21.0], "spectrum (dB)": [3.0, np.inf]}
    figure = error_against_texture(pd.DataFrame(frame), data="phantom", error="PSNR (dB)", texture="spectrum (dB)")
    axes = figure.axes[0]
    assert len(axes.lines) == 1 and axes.yaxis_inverted()
    frame["spectrum (dB)"] = [np.inf, np.nan]
    with pytest.raises(InputError, match="both values"):
        error_against_texture(pd.DataFrame(frame), data="phantom", error="PSNR (dB)", texture="spectrum (dB)")
