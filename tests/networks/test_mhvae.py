"""The model: sizes of the paper, the decode contract, and what it refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mhvae_kit import MHVAE, MHVAEConfig
from mhvae_kit.errors import InputError
from mhvae_kit.networks import Encoding, PatchDiscriminator

TINY = MHVAEConfig(image_size=(32, 32), levels=4, base_channels=4, max_channels=8, decoder_blocks=1)


def tiny_model(config: MHVAEConfig = TINY, seed: int = 0) -> MHVAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MHVAE(config)


def tiny_images(config: MHVAEConfig = TINY, n: int = 2, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {m: torch.rand(n, 1, *config.image_size, generator=generator) * 2 - 1 for m in config.modalities}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def paper_cost(n_inputs: int, **overrides) -> tuple[int, float]:
    """Parameters and GMAC (convolutions and linear layers) of one 192x192 slice, both images decoded."""
    with torch.device("meta"):
        model = MHVAE(MHVAEConfig.paper(**overrides))
    image = torch.zeros(1, 1, 192, 192)
    skips_shape = dict.fromkeys(("t2", "us")[:n_inputs], image)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = {m: model.encoder[m](x.to("meta")) for m, x in skips_shape.items()}
        names = model.config.level_names[:0:-1]
        encoding = Encoding(
            {m: dict(zip(names, skips, strict=True)) for m, (skips, _) in features.items()},
            {m: bottleneck for m, (_, bottleneck) in features.items()},
            1,
        )
        model.decode(encoding, temperature=0)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2e9


@pytest.mark.parametrize(
    ("overrides", "n_inputs", "parameters", "gmac"),
    [
        ({}, 1, 10_096_696, 5.69),
        ({}, 2, 10_096_696, 7.72),
        ({"decoder_blocks": 6}, 1, 10_099_032, 5.77),
        ({"decoder_blocks": 6}, 2, 10_099_032, 7.81),
        ({"encoder_cell": "mobilenet_v2"}, 2, 9_953_524, 7.35),
    ],
)
def test_cost_of_the_paper_model(overrides, n_inputs, parameters, gmac):
    counted, measured = paper_cost(n_inputs, **overrides)
    assert counted == parameters
    assert measured == pytest.approx(gmac, abs=0.005)


def test_four_modalities_at_full_size():
    with torch.device("meta"):
        model = MHVAE(MHVAEConfig.paper(modalities=("us", "t2", "cet1", "flair"), decoder_blocks=6))
    assert sum(p.numel() for p in model.parameters()) == 13_774_770


def test_paper_latents():
    config = MHVAEConfig.paper()
    shapes = [config.latent_shape(level) for level in config.level_names]
    expected = [(256,), (64, 6, 6), (64, 12, 12), (64, 24, 24), (32, 48, 48), (16, 96, 96), (8, 192, 192)]
    assert shapes == expected


def test_a_latent_has_at_least_the_channels_asked_for():
    config = MHVAEConfig.paper(min_latent_channels=20)
    shapes = [config.latent_shape(level)[0] for level in config.level_names]
    assert shapes == [256, 64, 64, 64, 32, 20, 20]


def test_expert_bias_moves_the_experts_of_its_modality_and_level_alone():
    model = tiny_model(dataclasses.replace(TINY, expert_bias=True))
    plain = tiny_model()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("expert_bias")})
    images = tiny_images()
    before = plain(images, temperature=0)
    with torch.no_grad():
        model.expert_bias["z1"]["us"][:2] += 0.5  # z1 has two channels: the first two entries are of the mean
    after = model(images, temperature=0)
    limit = TINY.soft_clamp
    raw = [limit * (r.experts["z1"]["us"].mean / limit).atanh() for r in (before, after)]
    torch.testing.assert_close(raw[1] - raw[0], torch.full_like(raw[0], 0.5), atol=1e-4, rtol=1e-4)
    assert torch.equal(after.experts["z1"]["us"].log_std, before.experts["z1"]["us"].log_std)
    assert torch.equal(after.experts["z1"]["t2"].mean, before.experts["z1"]["t2"].mean)
    assert torch.equal(after.experts["z2"]["us"].mean, before.experts["z2"]["us"].mean)


def test_paper_discriminator_ends_in_one_score():
    with torch.device("meta"):
        critic = PatchDiscriminator((192, 192))
        assert critic(torch.zeros(1, 1, 192, 192)).shape == (1, 1, 1, 1)
    assert sum(p.numel() for p in critic.parameters()) == 4_856_257


@pytest.mark.parametrize("side", [32, 64, 96, 128, 192, 256])
def test_default_discriminator_fits_any_size(side):
    with torch.device("meta"):
        scores = PatchDiscriminator((side, side), channels=4)(torch.zeros(1, 1, side, side))
    assert scores.shape[-1] >= 1


def test_too_deep_discriminator_is_refused():
    with pytest.raises(InputError, match="too deep"):
        PatchDiscriminator((64, 64), layers=6)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        MHVAEConfig(image_size=(32, 48), levels=4, base_channels=4, max_channels=8, decoder_blocks=1),
        MHVAEConfig(modalities=("a", "b", "c"), image_size=(16, 16), levels=3, base_channels=2, decoder_blocks=1),
        MHVAEConfig(image_size=(32, 32), levels=3, base_channels=4, head_channels=6, encoder_cell="mobilenet_v2"),
        MHVAEConfig(image_size=(32, 32), levels=2, base_channels=2, fusion="scale", modalities=("us",)),
        MHVAEConfig(image_size=(16, 16), levels=3, base_channels=4, min_latent_channels=5, expert_bias=True),
    ],
)
def test_shapes_of_any_config(config):
    model = tiny_model(config)
    result = model(tiny_images(config), generator=generator())
    assert {m: tuple(x.shape) for m, x in result.images.items()} == dict.fromkeys(
        config.modalities, (2, 1, *config.image_size)
    )
    for level in config.level_names:
        shape = (2, *config.latent_shape(level))
        assert (
            result.latents[level].shape == result.prior[level].mean.shape == result.posterior[level].mean.shape == shape
        )
        assert result.kl[level].shape == (2,)
        assert set(result.experts[level]) == set(config.modalities)
    assert all(x.abs().max() <= 1 for x in result.images.values())


def test_gradient_reaches_every_parameter_of_what_is_observed():
    model = tiny_model()
    result = model(tiny_images(), generator=generator())
    loss = sum(x.square().mean() for x in result.images.values()) + sum(v.mean() for v in result.kl.values())
    loss.backward()
    unreached = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert unreached == []


def test_absent_modality_gets_no_gradient():
    model = tiny_model()
    images = tiny_images()
    result = model({"us": images["us"]}, generator=generator())
    sum(x.square().mean() for x in result.images.values()).backward()
    assert all(p.grad is None for p in model.encoder["t2"].parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.encoder["us"].parameters())


def test_modalities_share_no_encoder_or_head():
    model = tiny_model()
    parts = [model.encoder["us"], model.encoder["t2"], model.image_head["us"], model.image_head["t2"]]
    ids = [id(p) for part in parts for p in part.parameters()]
    assert len(ids) == len(set(ids))


def test_missing_modality_equals_leaving_it_out_of_the_subset():
    model, images = tiny_model(), tiny_images()
    alone = model({"t2": images["t2"]}, temperature=0).images["us"]
    left_out = model(images, observed=["t2"], temperature=0).images["us"]
    torch.testing.assert_close(alone, left_out)


def test_temperature_zero_is_deterministic():
    model, images = tiny_model(), tiny_images()
    first, second = (model(images, temperature=0).images["us"] for _ in range(2))
    assert torch.equal(first, second)


def test_order_of_modalities_does_not_matter():
    model, images = tiny_model(), tiny_images()
    swapped = {m: images[m] for m in reversed(list(images))}
    first, second = (model(x, temperature=0).images["us"] for x in (images, swapped))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_stacked_subsets_equal_single_ones():
    model, images = tiny_model(), tiny_images()
    encoding = model.encode(images)
    subsets = [("us", "t2"), ("us",), ("t2",), ()]
    noise = model.draw_noise(8, generator())
    stacked = model.decode_subsets(encoding, subsets, noise=noise)
    for i, subset in enumerate(subsets):
        part = {k: v[2 * i : 2 * i + 2] for k, v in noise.items()}
        single = model.decode(encoding, subset, noise=part)
        assert stacked[i].observed == subset
        torch.testing.assert_close(stacked[i].images["us"], single.images["us"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(stacked[i].kl["z1"], single.kl["z1"], atol=1e-3, rtol=1e-4)


def test_one_pass_at_several_temperatures_is_as_many_single_ones():
    model, images = tiny_model(), tiny_images(n=1)
    encoding, noise = model.encode(images), model.draw_noise(1, generator())
    taus = [0.0, 0.3, {"z1": 0.0}, 1.0]
    together = model.decode_subsets(encoding, [("t2",)] * 4, taus, noise=noise)
    for made, tau in zip(together, taus, strict=True):
        single = model.decode(encoding, ("t2",), tau, noise=noise)
        torch.testing.assert_close(made.images["us"], single.images["us"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(made.latents["z1"], single.latents["z1"], atol=1e-5, rtol=1e-4)


def test_several_temperatures_without_noise_have_draws_of_their_own():
    model, images = tiny_model(), tiny_images(n=1)
    encoding = model.encode(images)
    first, second = model.decode_subsets(encoding, [("t2",)] * 2, [1.0, 1.0], generator=generator())
    assert not torch.equal(first.latents["z4"], second.latents["z4"])


@pytest.mark.parametrize(
    ("taus", "message"),
    [([0.5], "do not fit the subsets.*1 for 2"), ([0.5, -1.0], "0 or more.*-1"), ([0.5, {"z9": 1.0}], "z9")],
)
def test_temperatures_that_do_not_fit_are_refused(taus, message):
    model = tiny_model()
    with pytest.raises(InputError, match=message):
        model.decode_subsets(model.encode(tiny_images()), [("t2",), ("us",)], taus)


@pytest.mark.parametrize("fusion", ["precision", "scale"])
def test_rows_with_subsets_of_their_own_equal_single_ones(fusion):
    config = dataclasses.replace(TINY, fusion=fusion, expert_bias=True)
    model, images = tiny_model(config), tiny_images(config, n=3)
    rows = {"us": torch.tensor([True, False, False]), "t2": torch.tensor([True, True, False])}
    noise = model.draw_noise(6, generator())
    together = model.decode_subsets(model.encode(images), [rows, ("us",)], noise=noise)
    assert together[0].observed == ("us", "t2") and together[1].rows is None
    for row, subset in enumerate([("us", "t2"), ("t2",), ()]):
        one = model.encode({m: x[row : row + 1] for m, x in images.items()})
        single = model.decode(one, subset, noise={k: v[row : row + 1] for k, v in noise.items()})
        for m in images:
            torch.testing.assert_close(together[0].images[m][row], single.images[m][0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together[0].kl["z1"][row], single.kl["z1"][0], atol=1e-3, rtol=1e-4)
    assert together[0].kl["z1"][2].item() == pytest.approx(0.0, abs=1e-3)


def test_rows_that_do_not_observe_an_image_give_it_no_gradient():
    model = tiny_model()
    images = {m: x.requires_grad_() for m, x in tiny_images(n=2).items()}
    rows = {"us": torch.tensor([True, True]), "t2": torch.tensor([True, False])}
    made = model.decode_subsets(model.encode(images), [rows], generator=generator())[0]
    sum(x.square().sum() for x in made.images.values()).backward()
    assert images["t2"].grad[0].any() and not images["t2"].grad[1].any()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"ct": torch.ones(2, dtype=torch.bool)}, "not there or twice.*ct"),
        ({"us": torch.ones(3, dtype=torch.bool)}, r"observe 'us' are no mask.*\(3,\).*bool tensor of shape \(2,\)"),
        ({"us": torch.ones(2)}, "no mask.*float32"),
        ({"us": [True, False]}, "no mask.*list"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows, message):
    model = tiny_model()
    with pytest.raises(InputError, match=message):
        model.decode_subsets(model.encode(tiny_images()), [rows])


def test_same_generator_seed_same_draw():
    model, images = tiny_model(), tiny_images()
    first, second = (model(images, generator=generator(3)).images["us"] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, model(images, generator=generator(4)).images["us"])


def test_fixed_noise_moves_with_temperature_alone():
    model, images = tiny_model(), tiny_images()
    noise = model.draw_noise(2, generator())
    encoding = model.encode(images)
    low, high = (model.decode(encoding, temperature={"z1": t}, noise=noise) for t in (0.2, 0.8))
    for level in TINY.level_names[:-1]:
        assert torch.equal(low.latents[level], high.latents[level])
    q = low.posterior["z1"]
    torch.testing.assert_close(high.latents["z1"] - q.mean, 4 * (low.latents["z1"] - q.mean), atol=1e-5, rtol=1e-4)


def test_imposed_levels_reproduce_the_images():
    model, images = tiny_model(), tiny_images()
    encoding = model.encode(images)
    drawn = model.decode(encoding, generator=generator())
    again = model.decode(encoding, levels=drawn.latents)
    assert torch.equal(drawn.images["t2"], again.images["t2"])


def test_targets_decode_only_what_is_asked_for():
    result = tiny_model()(tiny_images(), targets=["us"], temperature=0)
    assert list(result.images) == ["us"]


def test_nothing_observed_is_the_prior():
    model = tiny_model()
    result = model.decode(model.encode(tiny_images()), observed=(), generator=generator())
    assert all((value == 0).all() for value in result.kl.values())


def test_sample_from_the_prior():
    result = tiny_model().sample(3, temperature=0.7, generator=generator())
    assert result.images["us"].shape == (3, 1, 32, 32)
    assert result.observed == ()


def test_inputs_are_not_modified():
    model, images = tiny_model(), tiny_images()
    before = {m: x.clone() for m, x in images.items()}
    model(images, generator=generator())
    assert list(images) == list(before)
    assert all(torch.equal(images[m], before[m]) for m in images)


def test_gaussians_stay_float32_under_autocast():
    model, images = tiny_model(), tiny_images()
    with torch.autocast("cpu", torch.bfloat16):
        result = model(images, generator=generator())
    tensors = [t for g in (*result.posterior.values(), *result.prior.values()) for t in (g.mean, g.log_std)]
    assert {t.dtype for t in (*tensors, *result.kl.values(), *result.images.values())} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {}, "no image was given"),
        (lambda x: {"pet": x["us"]}, "unknown modality"),
        (lambda x: {"us": x["us"][:, :, :-1]}, "wrong shape"),
        (lambda x: {"us": x["us"][:, 0]}, "wrong shape"),
        (lambda x: {"us": x["us"][:0]}, "wrong shape"),
        (lambda x: {"us": x["us"].to(torch.uint8)}, "wrong type"),
        (lambda x: {"us": x["us"] * 128 + 127}, "out of range"),
        (lambda x: {"us": x["us"] / 0}, "NaN or infinity"),
        (lambda x: {"us": x["us"].numpy()}, "not a tensor"),
        (lambda x: {"us": x["us"], "t2": x["t2"][:1]}, "differ in batch size"),
    ],
)
def test_bad_images_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        tiny_model().encode(change(tiny_images()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observed": ["flair"]}, "observed"),
        ({"targets": ["flair"]}, "targets"),
        ({"temperature": -0.1}, "temperature of z4"),
        ({"temperature": float("nan")}, "temperature of z4"),
        ({"temperature": {"z9": 0.5}}, "unknown latent level"),
        ({"noise": {"z1": torch.zeros(2, 1, 32, 32)}}, "wrong shape"),
        ({"levels": {"z4": torch.zeros(3, 16)}}, "wrong shape"),
    ],
)
def test_bad_decode_options_are_refused(options, message):
    model = tiny_model()
    with pytest.raises(InputError, match=message):
        model.decode(model.encode(tiny_images()), **options)
