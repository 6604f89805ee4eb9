"""The forward pass without gradients gives what the plain one gives, and writes over nothing that is not its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mhvae_kit import MHVAE, MVAE, MHVAEConfig
from mhvae_kit.kernels.team import without_kernels
from mhvae_kit.networks import blocks, inference, normalisation

SIZES = {"image_size": (64, 96), "levels": 3, "base_channels": 8, "max_channels": 16, "decoder_blocks": 1}
CONFIGS = {
    "plain": MHVAEConfig(**SIZES),
    "released": MHVAEConfig(**SIZES, fusion="scale", head_channels=6),
    "demo": MHVAEConfig(**SIZES, min_latent_channels=8, expert_bias=True, expansion=3),
    "mobilenet": MHVAEConfig(**SIZES, encoder_cell="mobilenet_v2"),
}
CELLS = {
    "encoder": lambda: blocks.ResidualSECell(8),
    "mobilenet": lambda: blocks.MobileNetV2Cell(8),
    "top-down": lambda: blocks.TopDownCell(8, 3),
    "up": lambda: blocks.UpConvolution(8, 4),
    "head": lambda: blocks.ImageHead(8, 2),
    "gate": lambda: blocks.SqueezeExcitation(8),
}


def seeded(make, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(config: MHVAEConfig, n: int = 3) -> dict[str, torch.Tensor]:
    return {m: noise(n, 1, *config.image_size, seed=i).clamp(-1, 1) for i, m in enumerate(config.modalities)}


@pytest.fixture(params=["whole batch", "one image at a time"])
def _cut(request, monkeypatch):
    if request.param == "one image at a time":
        monkeypatch.setattr(inference, "CACHED_BYTES", 1)


@pytest.mark.usefixtures("_cut")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_gives_the_same_images_and_latents_without_gradients(name):
    config = CONFIGS[name]
    model, given = seeded(lambda: MHVAE(config)), images(config)
    draws = model.draw_noise(2 * 3, torch.Generator().manual_seed(2))
    plain = model.decode_subsets(model.encode(given), [("t2",), ("t2", "us")], 0.7, noise=draws)
    with torch.no_grad():
        quick = model.decode_subsets(model.encode(given), [("t2",), ("t2", "us")], 0.7, noise=draws)
    for a, b in zip(plain, quick, strict=True):
        for kind in ("images", "latents"):
            for key, value in getattr(a, kind).items():
                torch.testing.assert_close(getattr(b, kind)[key], value.detach(), rtol=1e-4, atol=1e-4)
        for level, value in a.kl.items():
            torch.testing.assert_close(b.kl[level], value.detach(), rtol=1e-3, atol=1e-3)


def test_an_mvae_gives_the_same_images_without_gradients():
    config = MHVAEConfig(**SIZES, architecture="mvae")
    model, given = seeded(lambda: MVAE(config)), images(config)
    plain = model(given, temperature=0.0).images
    with torch.inference_mode():
        quick = model(given, temperature=0.0).images
    for modality, image in plain.items():
        torch.testing.assert_close(quick[modality], image.detach(), rtol=1e-4, atol=1e-4)


def test_the_global_generator_is_used_as_with_gradients():
    config = CONFIGS["plain"]
    model, given = seeded(lambda: MHVAE(config)), images(config)
    made = []
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            made.append(model(given, generator=torch.Generator().manual_seed(3)).images["us"].detach())
    torch.testing.assert_close(made[0], made[1], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_cut")
def test_the_same_call_gives_the_same_bits_and_leaves_its_images_alone():
    config = CONFIGS["plain"]
    model, given = seeded(lambda: MHVAE(config)), images(config)
    before = {m: x.clone() for m, x in given.items()}
    with torch.inference_mode():
        first, second = (model(given, temperature=0.0).images["us"] for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(given[m], before[m]) for m in given)


def test_one_encoding_can_be_decoded_again():
    config = CONFIGS["plain"]
    model, given = seeded(lambda: MHVAE(config)), images(config)
    with torch.inference_mode():
        encoding = model.encode(given)
        first = model.decode(encoding, temperature=0.0).images["us"]
        model.decode(encoding, observed=("t2",), temperature=1.0)
        assert torch.equal(model.decode(encoding, temperature=0.0).images["us"], first)


def test_bfloat16_stays_near_float32():
    config = CONFIGS["plain"]
    model, given = seeded(lambda: MHVAE(config)), images(config)
    with torch.inference_mode():
        exact = model(given, temperature=0.0).images["us"]
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(given, temperature=0.0).images["us"]
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.03 * exact.std()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_gives_the_same_and_does_not_write_over_its_input(name, layout):
    cell, x = seeded(CELLS[name]), noise(2, 8, 56, 56).contiguous(memory_format=layout)
    before = x.clone()
    plain = cell(x).detach()
    with torch.no_grad():
        quick = cell(x)
    torch.testing.assert_close(quick, plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)


@pytest.mark.parametrize("n_out", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("width", [22, 38])
def test_a_wide_convolution_is_a_convolution(n_out, width):
    x, weight, bias = noise(2, 3, 10, width), noise(n_out, 3, 7, 7, seed=2), noise(n_out, seed=3)
    exact = F.conv2d(x.double(), weight.double(), bias.double()).float()
    torch.testing.assert_close(inference.wide_convolution(x, weight, bias), exact, rtol=1e-5, atol=1e-4)
    exact = F.conv2d(x.double(), weight.double()).float()
    torch.testing.assert_close(inference.wide_convolution(x, weight, None), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_norm_of_a_large_map_keeps_its_digits_far_from_zero(layout):
    x = (noise(1, 4, 192, 192) + 10).contiguous(memory_format=layout)
    exact = F.silu(F.instance_norm(x.double()))
    with torch.no_grad():
        assert (normalisation.norm_silu(x) - exact).abs().max() < 2e-6


def test_in_bfloat16_every_map_is_stored_channels_last():
    x = noise(2, 8, 24, 24)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert inference.is_channels_last(inference.laid_out(x))
        assert torch.equal(inference.laid_out(x), x.bfloat16())


def test_without_kernels_large_maps_change_their_layout_in_bfloat16_and_no_value():
    x = noise(2, 8, 48, 48)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), without_kernels():
        assert inference.is_channels_last(inference.laid_out(x))
        assert torch.equal(inference.laid_out(x), x)
        assert not inference.is_channels_last(inference.laid_out(x[:, :, :24, :24]))
        assert inference.is_channels_last(inference.laid_out(x[:, :, :24, :24], scale=2))


def test_nothing_else_changes_its_layout():
    x = noise(2, 8, 48, 48)
    assert inference.laid_out(x) is x
    with torch.no_grad():
        assert inference.laid_out(x) is x


def test_parts_are_put_together_in_order(monkeypatch):
    x, sizes = noise(5, 2, 4, 4), []
    monkeypatch.setattr(inference, "CACHED_BYTES", 2 * 4 * 3 * 16)

    def double(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        return 2 * part

    with torch.no_grad():
        assert torch.equal(inference.in_parts(double, x, channels=3), 2 * x)
    assert sizes == [2, 2, 1]
