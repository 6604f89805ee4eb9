"""Norms, activations and depthwise filters of bfloat16 maps: what float64 gives, rounded once."""

from __future__ import annotations

import pytest
import torch
from half_maps import half_map, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from other_vectors import passed_with_other_width
from torch import Tensor, nn
from torch.nn import functional as F

from mhvae_kit import MHVAE, MHVAEConfig
from mhvae_kit.kernels.lanes import LANES
from mhvae_kit.kernels.team import without_kernels
from mhvae_kit.networks import bfloat16, blocks
from mhvae_kit.networks.inference import laid_out

HALF = 2.0**-8  # of a value, what rounding to bfloat16 changes at most
MAPS = {  # batch, channels, height, width
    "several vectors of channels": (2, 48, 20, 18),
    "one vector": (1, 16, 33, 8),
    "pixels shorter than a vector": (3, 8, 12, 10),
    "few pixels": (1, 32, 3, 2),
    "rows of many bands": (1, 16, 70, 6),
    "rows longer than those that take two vectors": (1, 32, 6, 70),
}


@pytest.fixture(autouse=True)
def _autocast():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        yield


def seeded(make, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def norm(x: Tensor) -> Tensor:
    return F.instance_norm(x.double())


def assert_rounded(got: Tensor, exact: Tensor, slack: float = 1.5) -> None:
    """Equal but for the rounding, and for `slack` times as much what else is computed more roughly than in float32."""
    assert got.dtype == torch.bfloat16 and got.is_contiguous(memory_format=torch.channels_last)
    error = (got.double() - exact).abs()
    assert (error <= slack * HALF * exact.abs() + 2e-3).all(), error.max()


@pytest.mark.parametrize("name", MAPS)
def test_norm_and_silu(name):
    x = half_map(*MAPS[name])
    got, sums = bfloat16.norm_silu(x)
    exact = F.silu(norm(x))
    assert_rounded(got, exact)
    means = sums.view(len(x), -1, x.shape[1]).sum(1).double() / (x.shape[2] * x.shape[3])
    torch.testing.assert_close(means, exact.mean((2, 3)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("slope", [bfloat16.LEAKY, bfloat16.LINEAR])
def test_norm_with_a_slope_below_zero_onto_another_map(name, slope):
    x, onto = half_map(*MAPS[name]), half_map(*MAPS[name], seed=2)
    exact = F.leaky_relu(norm(x), slope / 10)
    assert_rounded(bfloat16.norm_leaky(x, slope, 1), F.pad(exact, (1, 1, 1, 1), mode="reflect"))
    assert_rounded(bfloat16.norm_leaky(x, slope, onto=onto), exact + onto.double())


@pytest.mark.parametrize("name", [name for name, shape in MAPS.items() if shape[1] % 16 == 0])
def test_norm_silu_and_a_depthwise_filter_whose_totals_the_next_norm_takes(name):
    x = half_map(*MAPS[name])
    layer = seeded(lambda: nn.Conv2d(x.shape[1], x.shape[1], 5, padding=2, groups=x.shape[1]))
    made = bfloat16.norm_silu_depthwise(x, layer)
    exact = F.conv2d(F.silu(norm(x)), layer.weight.double(), layer.bias.double(), padding=2, groups=x.shape[1])
    assert_rounded(made.values, exact)
    counted = bfloat16.seen(made.values)
    torch.testing.assert_close(made.totals.sum(1), counted.totals.sum(1), rtol=2e-2, atol=0.5)
    assert_rounded(bfloat16.norm_silu(made)[0], F.silu(norm(made.values)), slack=3)


@settings(max_examples=20)
@given(
    batch=st.integers(1, 3), vectors=st.integers(1, 5), height=st.integers(2, 60), width=st.integers(2, 40),
)  # fmt: skip
def test_any_size_will_do(batch, vectors, height, width):
    x = half_map(batch, 16 * vectors, height, width)
    layer = seeded(lambda: nn.Conv2d(x.shape[1], x.shape[1], 5, padding=2, groups=x.shape[1]))
    exact = F.silu(norm(x))
    assert_rounded(bfloat16.norm_silu(x)[0], exact)
    exact = F.conv2d(exact, layer.weight.double(), layer.bias.double(), padding=2, groups=x.shape[1])
    assert_rounded(bfloat16.norm_silu_depthwise(x, layer).values, exact)


def test_a_mean_far_from_zero_loses_no_digits_that_the_map_has():
    x = (noise(1, 16, 24, 24) + 100).to(torch.bfloat16, memory_format=torch.channels_last)
    assert_rounded(bfloat16.norm_leaky(x), norm(x))


def test_two_maps_are_activated_as_one():
    x, y = half_map(2, 32, 10, 12), half_map(2, 32, 10, 12, seed=2)
    assert torch.equal(bfloat16.norm_silu_of_both(x, y), bfloat16.norm_silu(torch.cat((x, y), 1))[0])


def test_narrow_maps_too():
    x, y = half_map(2, LANES // 2, 10, 12), half_map(2, LANES // 2, 10, 12, seed=2)
    assert torch.equal(bfloat16.norm_silu_of_both(x, y), bfloat16.norm_silu(torch.cat((x, y), 1))[0])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("outputs", [6, 32])
@pytest.mark.parametrize("channels", [8, 32])
def test_gates_before_a_product_and_onto_another_map(batch, channels, outputs):
    x, y = half_map(batch, channels, 10, 12), half_map(batch, channels, 10, 12, seed=2)
    below = half_map(batch, outputs, 10, 12, seed=3)
    gate = seeded(lambda: blocks.SqueezeExcitation(channels))
    projection = seeded(lambda: nn.Conv2d(channels, outputs, 1))
    with torch.autocast("cpu", enabled=False):
        factor = gate.factor(x.float())[:, :, None, None]
        exact = projection(x.float() * factor).double()
        onto = x.double() + y.double() * gate.factor(y.float())[:, :, None, None].double()
    for got, expected in (
        (gate.projected(x, projection), exact),
        (gate.projected(x, projection, onto=below), exact + below.double()),
    ):
        torch.testing.assert_close(got.double(), expected, rtol=2e-2, atol=2e-2 * float(exact.abs().max()))
    assert_rounded(gate.onto(x, y.clone()), onto)
    active, sums = bfloat16.norm_silu(x)
    ways = [gate.projected(active, projection, given) for given in (sums, None)]
    torch.testing.assert_close(*ways, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("name", MAPS)
def test_a_soft_clamp_is_stored_plainly_in_float32(name):
    x = half_map(*MAPS[name])
    y = bfloat16.soft_clamp(x, 5.0)
    assert y.is_contiguous()
    torch.testing.assert_close(y, (5 * (x.double() / 5).tanh()).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [7, 35])
@pytest.mark.parametrize("channels", [1, 4, 6, 8, 24, 32])
def test_a_map_is_rounded_and_laid_out_as_torch_does(channels, width):
    x = noise(2, channels, 9, width)
    x[0, 0, 0, 1:5] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1 + 2.0**-8])  # the last lies half way
    made = bfloat16.laid(x)
    assert made.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(made, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_stays_none_and_in_its_channel(bad):
    x = half_map(2, 16, 12, 8)
    x[1, 3, 5, 2] = bad
    layer = seeded(lambda: nn.Conv2d(16, 16, 5, padding=2, groups=16))
    for y in (bfloat16.norm_silu(x)[0], bfloat16.norm_leaky(x), bfloat16.norm_silu_depthwise(x, layer).values):
        assert y[1, 3].isnan().any() and y[0].isfinite().all() and y[1, 4:].isfinite().all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_and_the_batch_change_no_bit(threads):
    x, before = half_map(3, 48, 50, 18), torch.get_num_threads()
    layer = seeded(lambda: nn.Conv2d(48, 48, 5, padding=2, groups=48))

    def made(x: Tensor) -> list[Tensor]:
        filtered = bfloat16.norm_silu_depthwise(x, layer)
        return [filtered.values, *bfloat16.norm_silu(filtered), bfloat16.norm_leaky(x, margin=2)]

    expected = made(x)
    try:
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(made(x), expected, strict=True))
        assert all(torch.equal(a[0], b[2]) for a, b in zip(made(x[2:]), expected, strict=True))
    finally:
        torch.set_num_threads(before)


CELLS = {
    "encoder": lambda: blocks.ResidualSECell(16),
    "mobilenet": lambda: blocks.MobileNetV2Cell(16),
    "top-down": lambda: blocks.TopDownCell(16, 3),
    "up": lambda: blocks.UpConvolution(16, 8),
    "image head": lambda: blocks.ImageHead(8, 2),
    "wider image head": lambda: blocks.ImageHead(16, 1, width=8),
    "image head of channels that do not fit": lambda: blocks.ImageHead(6, 1),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_as_near_to_float32_as_with_torchs_operations(name):
    cell = seeded(CELLS[name])
    x = noise(3, {"image head of channels that do not fit": 6, "image head": 8}.get(name, 16), 24, 32)
    with torch.autocast("cpu", enabled=False):
        exact = cell(x)
    before = x.clone()
    given = x if "head" in name else laid_out(x)
    kept = given.clone()
    quick = cell(given)
    with without_kernels():
        plain = cell(given)
    errors = [float((y.float() - exact).square().mean().sqrt()) for y in (quick, plain)]
    assert errors[0] < 1.5 * errors[1] and errors[0] < 0.02 * float(exact.std())
    assert torch.equal(x, before) and torch.equal(given, kept)


def test_a_model_draws_the_same_and_stores_latents_as_in_float32():
    config = MHVAEConfig(image_size=(64, 96), levels=4, base_channels=16, max_channels=32, decoder_blocks=1)
    model = seeded(lambda: MHVAE(config))
    images = {m: noise(2, 1, 64, 96, seed=i).clamp(-1, 1) for i, m in enumerate(config.modalities)}
    draws = model.draw_noise(2, torch.Generator().manual_seed(2))

    def made() -> object:
        return model.decode(model.encode(images), temperature=0.7, noise=draws)

    quick = made()
    with torch.autocast("cpu", enabled=False):
        exact = made()
    for level, latent in quick.latents.items():
        assert latent.dtype == torch.float32 and latent.is_contiguous()
        assert (latent - exact.latents[level]).abs().mean() < 0.01
    for modality, image in quick.images.items():
        assert (image - exact.images[modality]).abs().mean() < 0.02 * exact.images[modality].std()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_left_to_torch(dtype):
    cell, x = seeded(lambda: blocks.TopDownCell(16, 2)), half_map(1, 16, 8, 8)
    gate = seeded(lambda: blocks.SqueezeExcitation(16)).to(dtype)
    assert not bfloat16.applies_to(x, *gate.parameters())
    with torch.autocast("cpu", enabled=False):
        exact = cell(x.float())
    got = cell.bfloat16()(x).float()
    assert (got - exact).abs().mean() < 0.02 * exact.std()


def test_gates_alone_of_another_precision_are_left_to_torch():
    cell, x = seeded(lambda: blocks.ResidualSECell(16)), half_map(1, 16, 8, 8)
    expected = cell(x).float()
    cell.gate.bfloat16()
    assert (cell(x).float() - expected).abs().mean() < 0.02 * expected.std()


@pytest.mark.parametrize("size", [(3, 8), (8, 3)])
def test_an_image_too_small_to_be_reflected_is_torchs_error(size):
    head = seeded(lambda: blocks.ImageHead(8, 1))
    with pytest.raises(RuntimeError, match="[Pp]adding size"):
        head(noise(1, 8, *size))


def test_they_are_for_bfloat16_without_gradients_on_a_processor():
    x = half_map(1, 16, 8, 8)
    assert bfloat16.applies_to(x)
    assert not bfloat16.applies_to(x.float()) and not bfloat16.applies_to(x.to("meta"))
    assert not bfloat16.applies_to(half_map(1, 3, 8, 8)) and not bfloat16.applies_to(half_map(1, 2, 8, 3))
    with without_kernels():
        assert not bfloat16.applies_to(x)
    with torch.enable_grad():
        assert not bfloat16.applies_to(x)
    with torch.autocast("cpu", enabled=False):
        assert not bfloat16.applies_to(x)
    with torch.autocast("cpu", torch.float16):
        assert not bfloat16.applies_to(x)


def test_vectors_of_the_other_width_compute_the_same(tmp_path):
    assert "50 passed" in passed_with_other_width([__file__], "norm or soft_clamp or laid_out or gates", tmp_path)
