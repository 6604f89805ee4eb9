"""What the compiled kernels give is what torch's own operations give in float64, forward and backward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mhvae_kit import MHVAE, MHVAEConfig
from mhvae_kit.kernels.team import without_kernels
from mhvae_kit.networks import blocks, fused

CELLS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "encoder": (lambda: blocks.ResidualSECell(5), ((3, 5, 9, 12),)),
    "mobilenet": (lambda: blocks.MobileNetV2Cell(3), ((2, 3, 8, 8),)),
    "top-down": (lambda: blocks.TopDownCell(4, 3), ((3, 4, 11, 14),)),
    "top-down, small map": (lambda: blocks.TopDownCell(4, 6), ((2, 4, 2, 3),)),
    "expert": (lambda: blocks.ExpertHead(6, 2), ((2, 6, 10, 7), (2, 6, 10, 7))),
    "residual, 8 channels": (lambda: blocks.ResidualBlock(8), ((3, 8, 19, 12),)),
    "residual, 6 channels": (lambda: blocks.ResidualBlock(6), ((2, 6, 35, 9),)),
    "residual, last band of one row": (lambda: blocks.ResidualBlock(5), ((2, 5, 17, 9),)),
    "residual, rows of many vectors": (lambda: blocks.ResidualBlock(8), ((2, 8, 18, 101),)),
    "residual, 1 channel": (lambda: blocks.ResidualBlock(1), ((2, 1, 16, 16),)),
    "residual, smallest map": (lambda: blocks.ResidualBlock(3), ((1, 3, 2, 2),)),
    "residual, 16 channels": (lambda: blocks.ResidualBlock(16), ((2, 16, 6, 6),)),
    "head": (lambda: blocks.ImageHead(4, 2), ((2, 4, 13, 16),)),
}


def made(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_gradients(cell: nn.Module, inputs: list[Tensor], behind: Tensor | None = None) -> list[Tensor]:
    """The output, and the gradients of the inputs and of every parameter, of a weighted sum of the output."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    y = cell(*inputs)
    weights = noise(*y.shape, seed=7).to(y.dtype) if behind is None else behind
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [*inputs, *cell.parameters()])]


def assert_close(got: list[Tensor], exact: list[Tensor]) -> None:
    largest = max(float(g.abs().max()) for g in exact[1:])
    torch.testing.assert_close(got[0], exact[0].float(), rtol=1e-5, atol=1e-5)
    for mine, expected in zip(got[1:], exact[1:], strict=True):  # a bias before a norm has no gradient but rounding
        torch.testing.assert_close(mine, expected.float(), rtol=1e-4, atol=2e-6 * max(1.0, largest))


@pytest.mark.parametrize("name", CELLS)
def test_cells_and_their_gradients_are_those_of_torch_in_float64(name):
    make, shapes = CELLS[name]
    cell, exact = made(make), made(make).double()
    inputs = [2 * noise(*shape, seed=i) + 1 for i, shape in enumerate(shapes)]
    before = [x.clone() for x in inputs]
    got = with_gradients(cell, inputs)
    assert_close(got, with_gradients(exact, [x.double() for x in inputs]))
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
    with torch.no_grad():
        torch.testing.assert_close(cell(*inputs), got[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CELLS)
def test_the_same_call_gives_the_same_bits(name):
    make, shapes = CELLS[name]
    cell, inputs = made(make), [noise(*shape) for shape in shapes]
    first, second = (with_gradients(cell, inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["top-down", "expert", "encoder"])
def test_other_layouts_and_expanded_gradients_are_taken(name):
    make, shapes = CELLS[name]
    cell, exact = made(make), made(make).double()
    inputs = [noise(*shape).contiguous(memory_format=torch.channels_last) for shape in shapes]
    y = cell(*inputs)
    behind = torch.ones(()).expand(y.shape)
    assert_close(with_gradients(cell, inputs, behind), with_gradients(exact, [x.double() for x in inputs], behind))


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 9),
    height=st.integers(2, 40),
    width=st.integers(2, 40),
    seed=st.integers(0, 99),
)
def test_a_residual_block_of_any_size_is_that_of_torch(batch, channels, height, width, seed):
    block, x = made(lambda: blocks.ResidualBlock(channels), seed), noise(batch, channels, height, width, seed=seed)
    got = block(x)
    with without_kernels():
        torch.testing.assert_close(got, block(x), rtol=1e-4, atol=1e-4)


def test_parts_of_a_batch_change_no_gradient(monkeypatch):
    make, shapes = CELLS["top-down"]
    cell, inputs = made(make), [noise(*shape) for shape in shapes]
    whole = with_gradients(cell, inputs)
    monkeypatch.setattr(fused, "PART_BYTES", 1)
    assert_close(with_gradients(cell, inputs), [t.double() for t in whole])


def test_frozen_parameters_get_no_gradient_and_pass_one_on():
    for name in ("encoder", "top-down", "expert", "residual, 8 channels"):
        make, shapes = CELLS[name]
        cell, inputs = made(make), [noise(*shape).requires_grad_() for shape in shapes]
        cell.requires_grad_(False)
        cell(*inputs).sum().backward()
        assert all(x.grad is not None for x in inputs) and all(p.grad is None for p in cell.parameters())


def kept(function: Callable[[], Tensor], *known: Tensor) -> list[tuple[int, ...]]:
    """Shapes of the maps that are kept for the backward pass, without those that are known."""
    found: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t) or t, lambda t: t):
        function()
    addresses = {t.data_ptr() for t in known}
    return sorted(tuple(t.shape) for t in found if t.ndim == 4 and t.data_ptr() not in addresses)


def test_a_top_down_cell_keeps_two_wide_maps():
    cell, x = made(lambda: blocks.TopDownCell(4, 3)), noise(2, 4, 8, 8).requires_grad_()
    wide = [shape for shape in kept(lambda: cell(x), *cell.parameters()) if shape[1] == 12]
    assert wide == [(2, 12, 8, 8)] * 2


def test_a_residual_block_keeps_two_maps_besides_its_input():
    block, x = made(lambda: blocks.ResidualBlock(4)), noise(2, 4, 8, 8).requires_grad_()
    assert kept(lambda: block(x), x, *block.parameters()) == [(2, 4, 8, 8)] * 2


@pytest.mark.parametrize("bias", [True, False])
def test_a_gated_product_without_gradients_is_that_of_its_pieces(bias):
    gate, projection = made(lambda: blocks.SqueezeExcitation(40)), made(lambda: nn.Conv2d(40, 6, 1, bias=bias))
    x = noise(3, 40, 7, 9)
    with torch.no_grad():
        got, factor = gate.projected(x, projection), gate.factor(x)
        exact = gate.double().factor(x.double())
        torch.testing.assert_close(factor, exact.float(), rtol=1e-5, atol=1e-6)
        expected = projection.double()(x.double() * exact[:, :, None, None]).float()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_maps_side_by_side_are_one_map_of_all_their_channels():
    convolution = made(lambda: nn.Conv2d(9, 4, 3, padding=1))
    parts = [noise(2, c, 10, 14, seed=c).requires_grad_() for c in (2, 4, 3)]
    got = fused.norm_silu_convolution(*parts, convolution=convolution)
    whole = fused.norm_silu_convolution(torch.cat(parts, 1), convolution=convolution)
    assert torch.equal(got, whole)
    behind = noise(*got.shape, seed=7)
    mine, expected = (torch.autograd.grad(y, [*parts, *convolution.parameters()], behind) for y in (got, whole))
    for g, e in zip(mine, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-5, atol=1e-6)


def test_an_expert_head_keeps_no_copy_of_what_it_is_given():
    head = made(lambda: blocks.ExpertHead(4, 2))
    feature, skip = (noise(2, 4, 8, 8, seed=i).requires_grad_() for i in range(2))
    assert (2, 8, 8, 8) not in kept(lambda: head(feature, skip), feature, skip, *head.parameters())


@pytest.mark.parametrize("which", [[0, 0], [0, 1, 1, 0], [1, 0]])
@pytest.mark.parametrize("with_kernels", [True, False])
def test_an_expert_head_sees_a_skip_several_times_as_if_it_were_there_as_often(which, with_kernels):
    head = made(lambda: blocks.ExpertHead(6, 2))
    skips, feature = noise(3 * (1 + max(which)), 6, 10, 14), noise(3 * len(which), 6, 10, 14, seed=2)
    rows = torch.cat([skips[3 * part : 3 * part + 3] for part in which])
    exact = head.double()(feature.double(), rows.double()).float()
    with torch.no_grad(), contextlib.nullcontext() if with_kernels else without_kernels():
        got = head.float()(feature, skips, which)
    torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(skips, noise(*skips.shape)) and torch.equal(feature, noise(*feature.shape, seed=2))


def test_a_skip_that_is_seen_twice_has_both_gradients():
    head = made(lambda: blocks.ExpertHead(6, 2))
    skip, feature = noise(2, 6, 8, 8).requires_grad_(), noise(4, 6, 8, 8, seed=2)
    behind = noise(4, 4, 8, 8, seed=3)
    (of_shared,) = torch.autograd.grad(head(feature, skip, [0, 0]), skip, behind)
    (of_both,) = torch.autograd.grad(head(feature, torch.cat((skip, skip))), skip, behind)
    torch.testing.assert_close(of_shared, of_both)


@pytest.mark.parametrize("own", [True, False])
def test_a_map_is_written_over_only_where_it_is_the_callers_own(own):
    convolution, x = made(lambda: nn.Conv2d(8, 8, 3, padding=1)), noise(2, 8, 24, 24)
    before = x.clone()
    expected = fused.norm_silu_convolution(x, convolution=convolution, own=True)
    assert torch.equal(x, before)  # gradients need it
    with torch.no_grad():
        assert torch.equal(fused.norm_silu_convolution(x, convolution=convolution, own=own), expected)
    assert torch.equal(x, before) != own


@pytest.mark.parametrize("cell", ["encoder", "mobilenet", "top-down", "expert", "head"])
def test_no_cell_writes_over_what_it_is_given(cell):
    make, shapes = CELLS[cell]
    given = [noise(*shape, seed=i) for i, shape in enumerate(shapes)]
    with torch.no_grad():
        made(make)(*given)
    assert all(torch.equal(x, noise(*x.shape, seed=i)) for i, x in enumerate(given))


@pytest.mark.parametrize("limit", [1.0, 10.0])
def test_the_soft_clamp_and_its_gradient_are_those_of_tanh(limit):
    x = (20 * noise(3, 4, 5, 6)).requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, expected = torch.cat(blocks.soft_clamped_halves(x, limit), 1), limit * (exact / limit).tanh()
    torch.testing.assert_close(y, expected.float(), rtol=1e-6, atol=1e-6)
    weights = noise(3, 4, 5, 6, seed=2)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, exact.grad.float(), rtol=1e-4, atol=1e-6)


def test_a_soft_clamp_of_bfloat16_is_float32_and_its_gradient_is_not():
    x = noise(2, 4, 3, 3).bfloat16().requires_grad_()
    y = torch.cat(blocks.soft_clamped_halves(x, 10.0), 1)
    y.sum().backward()
    assert y.dtype == torch.float32 and x.grad.dtype == torch.bfloat16


def test_a_model_and_its_gradients_are_those_without_kernels():
    config = MHVAEConfig(image_size=(32, 48), levels=3, base_channels=8, max_channels=16, decoder_blocks=1)
    model = made(lambda: MHVAE(config))
    images = {m: noise(2, 1, 32, 48, seed=i).clamp(-1, 1) for i, m in enumerate(config.modalities)}
    draws = model.draw_noise(2, torch.Generator().manual_seed(3))

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        synthesis = model(images, noise=draws)
        (
            sum(x.square().mean() for x in synthesis.images.values()) + 1e-3 * sum(synthesis.kl.values()).mean()
        ).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    with without_kernels():
        plain = gradients()
    quick = gradients()
    assert plain.keys() == quick.keys()
    largest = max(float(g.abs().max()) for g in plain.values())
    for name, expected in plain.items():
        torch.testing.assert_close(quick[name], expected, rtol=1e-3, atol=1e-5 * largest)
