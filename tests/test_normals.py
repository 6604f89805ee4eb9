"""Draws are torch's own, to rounding, and leave a generator in the state that torch leaves it in."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhvae_kit import MHVAE, MHVAEConfig, normals
from mhvae_kit.kernels.team import without_kernels
from mhvae_kit.normals import BLOCK, DRAWS_FROM, WORDS, standard_normal


def two(seed: int = 1, burnt: int = 0) -> tuple[torch.Generator, torch.Generator]:
    """Two generators in the same state, some of whose words have been taken."""
    both = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    for generator in both:
        torch.rand(burnt, generator=generator)
    return both


def assert_draws_are_torchs(n: int, seed: int, burnt: int) -> None:
    mine, theirs = two(seed, burnt)
    got, expected = standard_normal((n,), mine), torch.randn(n, generator=theirs)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=3e-6)
    assert torch.equal(mine.get_state(), theirs.get_state())
    assert torch.equal(torch.rand(700, generator=mine), torch.rand(700, generator=theirs))


@settings(max_examples=30)
@given(n=st.integers(DRAWS_FROM, 3 * DRAWS_FROM), seed=st.integers(0, 2**63 - 1), burnt=st.integers(0, 2 * WORDS))
def test_draws_of_any_number_are_torchs(n, seed, burnt):
    assert_draws_are_torchs(n, seed, burnt)


@pytest.mark.parametrize("burnt", [0, 1, WORDS - 1, WORDS, WORDS + 1])
@pytest.mark.parametrize("n", [DRAWS_FROM, DRAWS_FROM + 1, DRAWS_FROM + BLOCK - 1, 27 * WORDS, 27 * WORDS - 1])
def test_draws_where_states_and_blocks_end_are_torchs(n, burnt):
    assert_draws_are_torchs(n, 7, burnt)


def test_draws_are_made_by_the_kernel(monkeypatch):
    made, real = [], normals._drawn
    monkeypatch.setattr(normals, "_drawn", lambda *a: made.append(a[0]) or real(*a))
    standard_normal((2, DRAWS_FROM // 2), two()[0])
    standard_normal((DRAWS_FROM - 1,), two()[0])
    with without_kernels():
        standard_normal((DRAWS_FROM,), two()[0])
    assert made == [DRAWS_FROM]


def test_draws_have_their_shape_and_the_moments_of_the_normal():
    x = standard_normal((40, 3, 50, 50), two(3)[0])
    assert x.shape == (40, 3, 50, 50) and x.dtype == torch.float32 and x.is_contiguous()
    n = x.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float(x.double().pow(power).mean()) - moment) < 4 * math.sqrt(variance / n)
    assert abs(float((x[:-1] * x[1:]).double().mean())) < 4 / math.sqrt(n)


def test_the_global_generator_is_used_where_none_is_given():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        got, after = standard_normal((DRAWS_FROM,)), torch.rand(1)
        torch.manual_seed(5)
        torch.testing.assert_close(got, torch.randn(DRAWS_FROM), rtol=1e-6, atol=3e-6)
        assert torch.equal(after, torch.rand(1))


def test_the_same_seed_gives_the_same_bits_whatever_the_threads():
    threads, made = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            made.append(standard_normal((5 * DRAWS_FROM + 3,), two(2)[0]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


def test_threads_that_share_a_generator_draw_one_after_the_other():
    mine, theirs = two(6)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: standard_normal((20 * DRAWS_FROM,), mine), range(40)))
    expected = [torch.randn(20 * DRAWS_FROM, generator=theirs) for _ in range(40)]
    assert torch.equal(mine.get_state(), theirs.get_state())
    firsts = sorted(float(x[0]) for x in made)
    torch.testing.assert_close(firsts, sorted(float(x[0]) for x in expected), rtol=1e-6, atol=3e-6)


def test_other_precisions_are_left_to_torch():
    torch.set_default_dtype(torch.float64)
    try:
        mine, theirs = two()
        assert torch.equal(standard_normal((DRAWS_FROM,), mine), torch.randn(DRAWS_FROM, generator=theirs))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("change", [{"_drawn": lambda n, generator: torch.zeros(n)}, {"STATE": 5064}])
def test_a_torch_that_draws_in_another_way_is_believed_and_named(change, monkeypatch):
    for name, value in change.items():
        monkeypatch.setattr(normals, name, value)
    normals._are_torchs.cache_clear()
    try:
        mine, theirs = two()
        with pytest.warns(UserWarning, match="draws in another way"):
            got = standard_normal((DRAWS_FROM,), mine)
        assert torch.equal(got, torch.randn(DRAWS_FROM, generator=theirs))
    finally:
        normals._are_torchs.cache_clear()


def test_a_model_draws_what_it_drew_by_torch():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MHVAE(MHVAEConfig.preset("smoke", image_size=(96, 96)))
    mine, theirs = two(4)
    got = model.draw_noise(2, mine)
    with without_kernels():
        expected = model.draw_noise(2, theirs)
    assert any(z.numel() >= DRAWS_FROM for z in got.values())
    for level, z in got.items():
        torch.testing.assert_close(z, expected[level], rtol=1e-6, atol=3e-6)
