"""Convolutions of bfloat16 maps: what float64 makes of the same numbers, rounded once, whatever surrounds them."""

from __future__ import annotations

import pytest
import torch
from half_maps import half_map, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from other_vectors import passed_with_old_llvm, passed_with_other_width
from torch import Tensor, nn
from torch.nn import functional as F

from mhvae_kit.kernels import DOUBLED, NORM, NORM_RELU, NORM_SILU, PLAIN, team
from mhvae_kit.kernels.team import without_kernels
from mhvae_kit.networks import bfloat16, half_convolution
from mhvae_kit.networks.convolution import Conv2d

HALF = 2.0**-8  # of a value, what rounding to bfloat16 changes at most
BEFORE = {"nothing": PLAIN, "norm": NORM, "norm and SiLU": NORM_SILU, "norm and ReLU": NORM_RELU}
LAYERS = {  # batch, channels of each map, outputs, height, width, side, stride, reflected
    "two vectors of outputs": (2, [16], 64, 9, 10, 3, 1, False),
    "one vector": (1, [32], 16, 9, 30, 3, 1, False),
    "two maps": (2, [32, 16], 48, 8, 6, 3, 1, False),
    "one pixel": (1, [16], 32, 1, 1, 3, 1, False),
    "several bands": (2, [16], 32, 41, 33, 3, 1, False),
    "stride": (2, [16], 32, 10, 14, 3, 2, False),
    "stride of several bands": (1, [16, 16], 16, 70, 72, 3, 2, False),
    "1x1": (2, [48], 32, 7, 5, 1, 1, False),
    "reflected": (1, [32], 32, 12, 11, 3, 1, True),
    "pixels shorter than a vector": (2, [8], 8, 34, 36, 3, 1, True),
    "7x7 of those": (2, [8], 8, 40, 38, 7, 1, True),
    "pixels of a quarter": (1, [4], 4, 20, 24, 7, 1, True),
    "those padded by zeros": (2, [8], 8, 12, 10, 5, 1, False),
}
CASES = [(name, before) for name in LAYERS for before in BEFORE if name != "one pixel" or BEFORE[before] == PLAIN]


@pytest.fixture(autouse=True)
def _autocast():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        yield


def made(name: str) -> tuple[nn.Conv2d, list[Tensor]]:
    """A layer, whose numbers bfloat16 has, and maps."""
    batch, channels, outputs, height, width, side, stride, reflected = LAYERS[name]
    mode = "reflect" if reflected else "zeros"
    layer = Conv2d(sum(channels), outputs, side, stride, side // 2, padding_mode=mode, bias=name != "two maps")
    for i, parameter in enumerate(layer.parameters()):
        parameter.copy_(0.3 * noise(*parameter.shape, seed=10 + i).bfloat16())
    return layer, [half_map(batch, c, height, width, seed=i) for i, c in enumerate(channels)]


def activated(x: Tensor, before: int) -> Tensor:
    if before == PLAIN:
        return x.double()
    y = F.instance_norm(x.double())
    return {NORM: lambda y: y, NORM_SILU: F.silu, NORM_RELU: F.relu}[before](y)


def exact(layer: nn.Conv2d, seen: Tensor) -> Tensor:
    """What the layer makes of what it sees, in float64."""
    padding = layer.padding[0]
    if layer.padding_mode == "reflect":
        seen, padding = F.pad(seen, (padding,) * 4, mode="reflect"), 0
    bias = None if layer.bias is None else layer.bias.double()
    return F.conv2d(seen, layer.weight.double(), bias, layer.stride, padding)


def assert_near(got: Tensor, expected: Tensor, size: Tensor) -> None:
    """Equal but for rounding: of the result to a half of HALF, and a little more of all that was added up to `size`."""
    assert got.dtype == torch.bfloat16 and got.is_contiguous(memory_format=torch.channels_last)
    error = (got.double() - expected).abs()
    assert (error <= HALF * (0.5 * expected.abs() + 0.7 * size) + 1e-6).all(), (error / size).max()


@pytest.mark.parametrize(("name", "before"), CASES)
def test_a_convolution_is_that_of_float64_and_counts_its_totals(name, before):
    layer, maps = made(name)
    seen = torch.cat([activated(x, BEFORE[before]) for x in maps], 1)
    expected = exact(layer, seen)
    got = half_convolution.convolution(layer, layer.weight, *maps, before=BEFORE[before])
    without_signs = Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride, layer.padding)
    without_signs.padding_mode = layer.padding_mode
    without_signs.weight, without_signs.bias = nn.Parameter(layer.weight.abs()), None
    assert_near(got.values, expected, exact(without_signs, seen.abs()))
    counted = bfloat16.seen(got.values)
    channels = layer.out_channels
    of_both = [x.totals.unflatten(3, (-1, channels)).sum((1, 3)) for x in (got, counted)]
    torch.testing.assert_close(*of_both, rtol=5e-3, atol=5e-3 * float(of_both[0].abs().max()))


def test_products_that_bfloat16_has_are_added_without_error():
    layer = Conv2d(32, 16, 3, padding=1)
    whole = torch.Generator().manual_seed(3)
    for parameter in layer.parameters():
        parameter.copy_(torch.randint(-1, 2, parameter.shape, generator=whole))
    x = torch.randint(-1, 2, (2, 32, 7, 9), generator=whole)
    expected = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    assert expected.abs().max() < 256  # so that bfloat16 has it
    assert torch.equal(layer(x.to(torch.bfloat16, memory_format=torch.channels_last)).double(), expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (24, 26)])
@pytest.mark.parametrize("channels", [16, 48])
def test_a_map_of_twice_the_size_is_that_of_interpolation(size, channels):
    layer, x = Conv2d(channels, 32, 3, padding=1, bias=False), half_map(2, channels, *size)
    layer.weight.copy_(0.3 * noise(*layer.weight.shape, seed=2).bfloat16())
    doubled = F.interpolate(x.double(), scale_factor=2, mode="bilinear", align_corners=False)
    got = half_convolution.convolution(layer, layer.weight, x, before=DOUBLED)
    size = F.conv2d(doubled.abs(), layer.weight.double().abs(), padding=1)
    assert_near(got.values, exact(layer, doubled), size)


@settings(max_examples=25)
@given(
    batch=st.integers(1, 3), runs=st.integers(1, 3), vectors=st.integers(1, 4), height=st.integers(1, 40),
    width=st.integers(1, 40), stride=st.integers(1, 2), side=st.sampled_from([1, 3]),
)  # fmt: skip
def test_any_size_will_do(batch, runs, vectors, height, width, stride, side):
    layer = Conv2d(16 * runs, 16 * vectors, side, stride, side // 2)
    for i, parameter in enumerate(layer.parameters()):
        parameter.copy_(0.3 * noise(*parameter.shape, seed=i).bfloat16())
    x = half_map(batch, 16 * runs, stride * height, stride * width)
    expected = exact(layer, x.double())
    assert (layer(x).double() - expected).abs().max() < 2 * HALF * max(1.0, float(expected.abs().max()))


def test_gates_multiply_the_channels_of_each_image_and_a_map_is_added():
    layer, (x,) = made("1x1")
    gates = noise(*x.shape[:2]).sigmoid()
    below = half_map(len(x), layer.out_channels, *x.shape[2:], seed=5)
    got = half_convolution.convolution(layer, layer.weight, x, gates=gates, onto=below)
    expected = below.double() + exact(layer, x.double() * gates[:, :, None, None].double())
    assert (got.values.double() - expected).abs().max() < 2 * HALF * expected.abs().max()
    counted = bfloat16.seen(got.values).totals.sum(1)
    torch.testing.assert_close(got.totals.sum(1), counted, rtol=5e-3, atol=0.5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["two maps", "stride", "pixels shorter than a vector"])
def test_what_is_no_number_stays_none_where_it_is_seen(name, bad):
    layer, maps = made(name)
    maps[0][-1, 1, 4, 5] = bad
    got = half_convolution.convolution(layer, layer.weight, *maps).values
    expected = exact(layer, torch.cat([x.double() for x in maps], 1))
    rows = half_convolution.bands_of(got)[1]  # none beyond the pixels of a run that see it, and their neighbours
    finite = got.isfinite()
    assert not finite[~expected.isfinite()].any()
    assert finite[:-1].all() and finite[-1][:, :, 12:].all() and finite[-1][:, 4 + rows :].all()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["two maps", "several bands", "pixels shorter than a vector"])
def test_the_number_of_threads_and_the_batch_change_no_bit(name, threads):
    layer, maps = made(name)
    gates = None if maps[0].shape[1] == 8 else noise(2, layer.in_channels)
    before = torch.get_num_threads()

    def convolved(first: int) -> list[Tensor]:
        some = [x[first:] for x in maps]
        given = None if gates is None else gates[first:]
        return list(half_convolution.convolution(layer, layer.weight, *some, before=NORM_SILU, gates=given))

    expected = convolved(0)
    try:
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(convolved(0), expected, strict=True))
        assert all(torch.equal(a[0], b[1]) for a, b in zip(convolved(1), expected, strict=True))
    finally:
        torch.set_num_threads(before)


def test_threads_of_python_wait_for_each_others_filters_too(monkeypatch):
    layer, maps = made("several bands")
    expected = half_convolution.convolution(layer, layer.weight, *maps).values
    monkeypatch.setattr(team, "_team", lambda: team.python_threads)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for _ in range(20):
            assert torch.equal(half_convolution.convolution(layer, layer.weight, *maps).values, expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["two maps", "several bands", "stride of several bands"])
def test_bands_of_few_rows_compute_the_same(name, monkeypatch):
    layer, maps = made(name)
    monkeypatch.setattr(half_convolution, "WHOLE", 0)
    expected = half_convolution.convolution(layer, layer.weight, *maps)
    monkeypatch.setattr(half_convolution, "SEEN_BYTES", 1)
    got = half_convolution.convolution(layer, layer.weight, *maps)
    assert got.totals.shape[1] == got.values.shape[2] > expected.totals.shape[1]
    assert torch.equal(got.values, expected.values)
    torch.testing.assert_close(got.totals.sum(1), expected.totals.sum(1), rtol=1e-5, atol=1e-2)


def test_inputs_and_filters_stay_as_they_are():
    layer, maps = made("two maps")
    kept = [t.clone() for t in (layer.weight, *maps)]
    half_convolution.convolution(layer, layer.weight, *maps, before=NORM_SILU)
    assert all(map(torch.equal, kept, (layer.weight, *maps)))


def test_filters_are_taken_as_they_are_at_each_call():
    layer, (x,) = made("1x1")
    first = layer(x)
    layer.weight.data.mul_(2)
    layer.bias.data.mul_(2)
    torch.testing.assert_close(layer(x), 2 * first)


LEFT_TO_TORCH = {
    "dilated": {"dilation": 2, "padding": 2},
    "padded by less": {"padding": 0},
    "in groups": {"groups": 2},
    "a third a step": {"stride": 3},
    "reflected": {"padding_mode": "reflect"},
    "5x5": {"kernel_size": 5, "padding": 2},
}


@pytest.mark.parametrize("name", LEFT_TO_TORCH)
def test_other_layers_are_left_to_torch(name):
    options = {"kernel_size": 3, "padding": 1} | LEFT_TO_TORCH[name]
    layer, x = Conv2d(32, 32, **options), half_map(1, 32, 12, 12)
    assert not half_convolution.is_quick_for(layer, layer.weight, x)
    with without_kernels():
        expected = layer(x)
    torch.testing.assert_close(layer(x), expected)


def test_it_is_for_bfloat16_without_gradients_on_a_processor_without_a_matrix_unit(monkeypatch):
    layer, x = Conv2d(32, 32, 3, padding=1), half_map(1, 32, 12, 12)
    assert half_convolution.is_quick_for(layer, layer.weight, x)
    assert not half_convolution.is_quick_for(layer, layer.weight, x.float())
    assert not half_convolution.is_quick_for(layer, layer.weight.double(), x)
    assert not half_convolution.is_quick_for(layer, layer.weight, half_map(1, 24, 12, 12), half_map(1, 8, 12, 12))
    strided = Conv2d(32, 32, 3, 2, 1)
    assert not half_convolution.is_quick_for(strided, strided.weight, half_map(1, 32, 11, 12))
    with torch.enable_grad():
        assert not half_convolution.is_quick_for(layer, layer.weight, x)
    with torch.autocast("cpu", enabled=False):
        assert not half_convolution.is_quick_for(layer, layer.weight, x)
    with without_kernels():
        assert not half_convolution.is_quick_for(layer, layer.weight, x)
    monkeypatch.setattr(half_convolution, "_has_matrix_unit", lambda: True)
    assert not half_convolution.is_quick_for(layer, layer.weight, x)


def test_vectors_of_the_other_width_compute_the_same(tmp_path):
    assert "57 passed" in passed_with_other_width([__file__], "float64 or twice or without_error or gates", tmp_path)


def test_without_the_processors_own_products_too(tmp_path):
    choice = "vectors or gates or without_error"
    assert "7 passed" in passed_with_old_llvm([__file__], choice, tmp_path)
