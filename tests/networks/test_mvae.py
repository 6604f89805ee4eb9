"""MVAE: the sizes of the paper's baseline, one latent level, and the same face as MHVAE."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mhvae_kit import MHVAE, MHVAEConfig
from mhvae_kit.errors import InputError
from mhvae_kit.gaussian import Gaussian, kl_divergence, product_of_experts
from mhvae_kit.networks import Encoding
from mhvae_kit.networks.mvae import MVAE

TINY = MHVAEConfig(
    architecture="mvae", image_size=(32, 32), levels=4, base_channels=4, max_channels=8, decoder_blocks=1
)


def model_of(config: MHVAEConfig = TINY) -> MVAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MVAE(config)


def images_of(config: MHVAEConfig = TINY, n: int = 2, seed: int = 1) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {m: torch.rand(n, 1, *config.image_size, generator=source) * 2 - 1 for m in config.modalities}


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("decoder_blocks", "expected"), [(6, 9_525_744), (5, 9_523_408)])
def test_parameters_of_the_paper_model(decoder_blocks, expected):
    with torch.device("meta"):
        model = MVAE(MHVAEConfig.paper(architecture="mvae", decoder_blocks=decoder_blocks))
    assert parameters(model) == expected


@pytest.mark.parametrize(("observed", "gmac"), [(("t2",), 5.34), (("t2", "us"), 6.24)])
def test_cost_of_the_paper_model(observed, gmac):
    with torch.device("meta"):
        model = MVAE(MHVAEConfig.paper(architecture="mvae", decoder_blocks=6))
        image = torch.zeros(1, 1, 192, 192)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        bottleneck = {m: model.encoder[m](image)[1] for m in observed}
        model.decode(Encoding({m: {} for m in observed}, bottleneck, 1), temperature=0)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=0.005)


def test_four_modalities_at_full_size():
    names = ("us", "t2", "cet1", "flair")
    with torch.device("meta"):
        model = MVAE(MHVAEConfig.paper(architecture="mvae", modalities=names, decoder_blocks=6))
    assert parameters(model) == 13_201_482


def test_its_one_latent_is_the_paper_s_coarsest():
    config = MHVAEConfig.paper(architecture="mvae")
    assert config.level_names == ("z7",)
    assert config.latent_shape("z7") == MHVAEConfig.paper().latent_shape("z7") == (256,)
    with pytest.raises(InputError, match="unknown latent level"):
        config.latent_shape("z1")


def test_the_backbone_is_mhvae_s():
    own = {k: v.shape for k, v in model_of().state_dict().items() if not k.startswith("narrow.")}
    hierarchical = MHVAE(dataclasses.replace(TINY, architecture="mhvae")).state_dict()
    theirs = {k: v.shape for k, v in hierarchical.items() if k.split(".")[0] not in ("prior_head", "expert_head")}
    assert own == theirs


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        dataclasses.replace(TINY, image_size=(32, 48), expert_bias=True, min_latent_channels=5),
        dataclasses.replace(TINY, modalities=("a", "b", "c"), levels=2, encoder_cell="mobilenet_v2", head_channels=6),
        dataclasses.replace(TINY, modalities=("us",), fusion="scale"),
    ],
)
def test_shapes_of_any_config(config):
    model = model_of(config)
    result = model(images_of(config))
    (level,) = config.level_names
    shape = (2, *config.latent_shape(level))
    assert {m: tuple(x.shape) for m, x in result.images.items()} == dict.fromkeys(
        config.modalities, (2, 1, *config.image_size)
    )
    assert list(result.latents) == list(result.kl) == list(result.experts) == [level]
    assert result.latents[level].shape == result.prior[level].mean.shape == result.posterior[level].std.shape == shape
    assert set(result.experts[level]) == set(config.modalities)
    assert all(x.abs().max() <= 1 for x in result.images.values())
    assert list(model.sample(3).images) == list(config.modalities)


@pytest.mark.parametrize("rule", ["precision", "scale"])
def test_posterior_is_the_product_of_prior_and_experts(rule):
    model = model_of(dataclasses.replace(TINY, fusion=rule))
    encoding = model.encode(images_of())
    limit = TINY.soft_clamp
    heads = {m: limit * torch.tanh(model.bottleneck_expert(encoding.bottleneck[m]) / limit) for m in ("us", "t2")}
    experts = {m: Gaussian(*head.chunk(2, 1)) for m, head in heads.items()}
    standard = Gaussian(torch.zeros(2, 16), torch.zeros(2, 16))
    result = model.decode(encoding, temperature=0)
    expected = product_of_experts(standard, list(experts.values()), rule)
    posterior = result.posterior["z4"]
    torch.testing.assert_close(posterior.mean, expected.mean)
    torch.testing.assert_close(posterior.log_std, expected.log_std)
    torch.testing.assert_close(result.kl["z4"], kl_divergence(expected, standard))
    if rule == "precision":
        precision = 1 + sum((-2 * e.log_std).exp() for e in experts.values())
        mean = sum(e.mean * (-2 * e.log_std).exp() for e in experts.values()) / precision
        torch.testing.assert_close(posterior.mean, mean)
        torch.testing.assert_close(posterior.std, precision.rsqrt())


def test_the_vector_alone_decides_the_images():
    model = model_of()
    z = {"z4": torch.randn(2, 16, generator=torch.Generator().manual_seed(0))}
    first, second = (model(images_of(seed=s), levels=z).images["us"] for s in (1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, model(images_of(), levels={"z4": z["z4"] + 0.1}).images["us"])


def test_temperature_zero_is_deterministic_and_one_is_not():
    model, images = model_of(), images_of()
    cold, again = (model(images, temperature=0).images["us"] for _ in range(2))
    assert torch.equal(cold, again)
    assert not torch.equal(cold, model(images, generator=torch.Generator().manual_seed(0)).images["us"])


def test_gradient_reaches_every_parameter_of_what_is_observed():
    model = model_of()
    result = model(images_of())
    (sum(x.square().mean() for x in result.images.values()) + result.kl["z4"].mean()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_order_of_modalities_does_not_matter():
    model, images = model_of(), images_of()
    swapped = {m: images[m] for m in reversed(list(images))}
    first, second = (model(x, temperature=0).images["us"] for x in (images, swapped))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_absent_modality_gets_no_gradient():
    model = model_of()
    result = model({"us": images_of()["us"]})
    sum(x.square().mean() for x in result.images.values()).backward()
    assert all(p.grad is None for p in model.encoder["t2"].parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.encoder["us"].parameters())


def test_stacked_subsets_equal_single_ones():
    model = model_of()
    encoding = model.encode(images_of())
    subsets = [("us", "t2"), ("us",), ("t2",), ()]
    noise = model.draw_noise(8, torch.Generator().manual_seed(0))
    assert list(noise) == ["z4"]
    for i, result in enumerate(model.decode_subsets(encoding, subsets, noise=noise)):
        single = model.decode(encoding, subsets[i], noise={"z4": noise["z4"][2 * i : 2 * i + 2]})
        assert result.observed == subsets[i]
        torch.testing.assert_close(result.images["us"], single.images["us"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(result.kl["z4"], single.kl["z4"], atol=1e-4, rtol=1e-4)
    assert (result.kl["z4"] == 0).all()


@pytest.mark.parametrize(("cls", "other"), [(MHVAE, "mvae"), (MVAE, "mhvae")])
def test_a_config_of_another_architecture_is_refused(cls, other):
    with pytest.raises(InputError, match=f"not that of an {cls.__name__}.*architecture='{other}'"):
        cls(dataclasses.replace(TINY, architecture=other))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": {"z1": 0.5}}, "unknown latent level"),
        ({"noise": {"z1": torch.zeros(2, 2, 32, 32)}}, "unknown latent level"),
        ({"levels": {"z4": torch.zeros(2, 17)}}, "wrong shape"),
        ({"observed": ["flair"]}, "observed"),
    ],
)
def test_bad_decode_options_are_refused(options, message):
    model = model_of()
    with pytest.raises(InputError, match=message):
        model.decode(model.encode(images_of()), **options)
