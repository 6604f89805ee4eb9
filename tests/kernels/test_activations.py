"""Sigmoid and hyperbolic tangent by polynomials and estimated inverses: all but the last digits that float32 has."""

from __future__ import annotations

import math
from collections.abc import Callable

import numba
import numpy as np
import pytest
from other_vectors import passed_with_other_width

from mhvae_kit.kernels import activations
from mhvae_kit.kernels.lanes import LANES

f32 = np.float32


@numba.njit(error_model="numpy")
def _silu(x, out):
    activations.silu_of_normalised(x, f32(0.5), f32(2.0), out)


@numba.njit(error_model="numpy")
def _silu_and_slope(x, out, slope):
    activations.silu_and_slope(x, f32(0.5), f32(2.0), out, slope)


@numba.njit(error_model="numpy")
def _soft_clamp(x, out):
    activations.soft_clamped(x, f32(5.0), out)


def silu(x: np.ndarray) -> np.ndarray:
    z = 2.0 * (x.astype(float) - 0.5)
    return z / (1 + np.exp(-z))


def slope(x: np.ndarray) -> np.ndarray:
    z = 2.0 * (x.astype(float) - 0.5)
    gate = 1 / (1 + np.exp(-z))
    return gate * (1 + z * (1 - gate))


def soft_clamp(x: np.ndarray) -> np.ndarray:
    return 5 * np.tanh(x.astype(float) / 5)


FUNCTIONS: dict[str, tuple[Callable, Callable]] = {"silu": (_silu, silu), "soft clamp": (_soft_clamp, soft_clamp)}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("size", [1e-30, 1e-4, 0.1, 1.0, 10.0, 40.0])
def test_values_of_every_size_keep_their_digits(name, size):
    function, exact = FUNCTIONS[name]
    x = (size * np.linspace(-1, 1, 20001)).astype(f32)
    x = x + f32(0.5) if name == "silu" else x
    made = np.empty_like(x)
    function(x, made)
    assert np.abs(made - exact(x)).max() <= 4e-7 * np.abs(exact(x)).max()
    np.testing.assert_allclose(made, exact(x), rtol=5e-7, atol=0)


@pytest.mark.parametrize("n", [1, LANES - 1, LANES, LANES + 1, 3 * LANES + 5])
def test_a_run_of_any_length_is_done_and_nothing_behind_it(n):
    x = np.linspace(-3, 3, n).astype(f32)
    for function, exact in FUNCTIONS.values():
        made = np.full(n + LANES, 7, f32)
        function(x, made[:n])
        np.testing.assert_allclose(made[:n], exact(x), rtol=5e-7, atol=1e-7)
        assert (made[n:] == 7).all()
        own = x.copy()
        function(own, own)
        assert np.array_equal(own, made[:n])


def test_the_slope_of_silu():
    x = np.linspace(-12, 12, 10007).astype(f32)
    made, of_made, alone = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    _silu_and_slope(x, made, of_made)
    _silu(x, alone)
    assert np.array_equal(made, alone)
    np.testing.assert_allclose(of_made, slope(x), rtol=1e-6, atol=1e-6)


def test_what_is_no_number_stays_none_and_infinity_is_no_number_less():
    x = np.array([math.nan, math.inf, -math.inf, 0.0, -0.0, 300.0, -300.0], f32)
    made = np.empty_like(x)
    _soft_clamp(x, made)
    assert math.isnan(made[0])
    np.testing.assert_allclose(made[1:], [5, -5, 0, 0, 5, -5], rtol=5e-7)
    assert not np.signbit(made[3]) and np.signbit(made[4])
    _silu(x, made)
    assert math.isnan(made[0]) and made[1] == math.inf and -1e-30 < made[6] <= 0
    assert math.isclose(made[5], 599, rel_tol=5e-7)


def test_vectors_of_the_other_width_compute_the_same(tmp_path):
    assert "19 passed" in passed_with_other_width([__file__], "values or run or slope or number", tmp_path)
