"""Pix2Pix: published sizes, the U-Net by hand, both directions, training that can be repeated, what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mhvae_kit.baselines.pix2pix import Pix2Pix, Pix2PixConfig, UNet
from mhvae_kit.baselines.registry import saved_settings
from mhvae_kit.baselines.storage import load_method, save_method
from mhvae_kit.errors import InputError

TINY = Pix2PixConfig(image_size=(32, 32), width=2, critic_width=2, norm="instance", learning_rate=2e-3)


def tiny_method(config: Pix2PixConfig = TINY, seed: int = 0) -> Pix2Pix:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Pix2Pix(config)


def tiny_images(n: int = 2, side: int = 32, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    t2 = F.interpolate(torch.rand(n, 1, 4, 4, generator=generator) * 2 - 1, (side, side), mode="bilinear")
    return {"us": -t2, "t2": t2}


def train(method: Pix2Pix, steps: int, optimizers=None, first: int = 0, seed: int = 3) -> list[dict[str, float]]:
    images = tiny_images(side=method.config.image_size[0])
    fov = torch.ones_like(images["us"], dtype=torch.bool)
    optimizers = optimizers or method.optimizers()
    draws = (torch.Generator().manual_seed(seed + step) for step in range(first, first + steps))
    return [method.training_step(images, fov, optimizers, draw, 0.5) for draw in draws]


def weights(method: Pix2Pix) -> torch.Tensor:
    return nn.utils.parameters_to_vector(method.parameters()).detach().clone()


@pytest.mark.parametrize(
    ("width", "downs", "side", "parameters", "gmac"),
    [(64, 6, 192, 29_237_889, 3.27), (64, 8, 256, 54_407_809, 5.95), (16, 6, 64, 1_829_025, 0.0233)],
)
def test_size_and_cost_of_one_direction(width, downs, side, parameters, gmac):
    with torch.device("meta"):
        network, image = UNet(width, downs, "batch", 0.5), torch.zeros(1, 1, side, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, rel=5e-3)


@pytest.mark.parametrize(("variant", "parameters"), [("native", 29_237_889), ("padded-256", 54_407_809)])
def test_both_directions_are_counted_at_paper_size(variant, parameters):
    with torch.device("meta"):
        method = Pix2Pix(Pix2PixConfig.preset("paper", variant=variant))
    assert method.parameters_per_direction() == parameters and method.n_unique_parameters() == 2 * parameters
    assert {m: sum(p.numel() for p in critic.parameters()) for m, critic in method.critics.items()} == dict.fromkeys(
        ("us", "t2"), 2_764_609
    )


@pytest.mark.parametrize(("preset", "size", "depth"), [("paper", 192, 6), ("demo", 96, 5), ("smoke", 64, 6)])
def test_presets(preset, size, depth):
    config = Pix2PixConfig.preset(preset)
    assert config.image_size == (size, size) and config.depth == depth


@pytest.mark.parametrize(("downs", "blocks"), [(8, 3), (6, 1), (5, 0)])
def test_blocks_with_dropout(downs, blocks):
    assert sum(isinstance(m, nn.Dropout) for m in UNet(1, downs, "batch", 0.5).modules()) == blocks


def test_the_u_net_of_two_halvings_by_hand():
    torch.manual_seed(0)
    network, x = UNet(2, 2, "batch", 0.5).eval(), torch.rand(1, 1, 8, 8) * 2 - 1
    (down0, down1), (up0, up1) = ([layers[0].weight for layers in part] for part in (network.down, network.up))
    first = F.conv2d(x, down0, stride=2, padding=1)
    bottom = F.conv2d(F.leaky_relu(first, 0.2), down1, stride=2, padding=1)
    norm = network.up[1][1]
    back = F.conv_transpose2d(bottom.relu(), up1, stride=2, padding=1) / (1 + norm.eps) ** 0.5
    back = back * norm.weight[:, None, None] + norm.bias[:, None, None]
    both = torch.cat((first, back), 1).relu()
    expected = F.conv_transpose2d(both, up0, network.up[0][0].bias, stride=2, padding=1).tanh()
    assert torch.allclose(network(x), expected, atol=1e-6)


@pytest.mark.parametrize("variant", ["native", "padded-256"])
def test_images_in_range_from_each_to_the_other(variant):
    method = tiny_method(dataclasses.replace(TINY, variant=variant, width=1)).eval()
    images = tiny_images()
    for source, target in (("t2", "us"), ("us", "t2")):
        made = method({source: images[source]}).images
        assert list(made) == [target] and made[target].shape == (2, 1, 32, 32)
        assert made[target].abs().max() <= 1 and made[target].std() > 0


def test_padding_is_background_around_the_image():
    method = tiny_method(dataclasses.replace(TINY, variant="padded-256", width=1)).eval()
    seen, image = [], tiny_images(n=1)["t2"]
    method.generators["us"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    method({"t2": image})
    (padded,) = seen
    assert padded.shape == (1, 1, 256, 256) and torch.equal(padded[..., 112:144, 112:144], image)
    padded[..., 112:144, 112:144] = -1
    assert torch.equal(padded, torch.full_like(padded, -1))


def test_each_direction_has_its_own_network():
    method, images = tiny_method().eval(), tiny_images()
    before = method({"us": images["us"]}).images["t2"]
    nn.init.zeros_(method.generators["us"].up[0][0].weight)
    assert torch.equal(method({"us": images["us"]}).images["t2"], before)
    assert not method({"t2": images["t2"]}).images["us"].any()


@pytest.mark.parametrize(("observed", "target"), [(["t2"], "t2"), (["us"], "us"), (["us", "t2"], "us")])
def test_a_direction_it_does_not_have_is_refused(observed, target):
    method = tiny_method()
    encoding = method.encode(tiny_images())
    with pytest.raises(InputError, match=f"pix2pix cannot make {target} from .* expected t2 to us, us to t2"):
        method.decode(encoding, observed, targets=[target])


def test_a_temperature_is_refused():
    with pytest.raises(InputError, match="pix2pix cannot use this temperature"):
        tiny_method()({"t2": tiny_images()["t2"]}, temperature=0.5)


def with_dropout() -> Pix2Pix:
    return tiny_method(Pix2PixConfig(image_size=(64, 64), width=1, critic_width=1, norm="instance"))


def test_dropout_is_off_in_evaluation_and_on_in_training():
    method, image = with_dropout(), {"t2": tiny_images(side=64)["t2"]}
    first, second = (method(image).images["us"] for _ in range(2))
    assert not torch.equal(first, second)
    method.eval()
    assert torch.equal(method(image).images["us"], method(image).images["us"])


@pytest.mark.parametrize("gan", ["bce", "lsgan"])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_step_changes_every_network_and_reports_finite_numbers(gan, norm):
    method = tiny_method(dataclasses.replace(TINY, gan=gan, norm=norm))
    parts = [*method.generators.values(), *method.critics.values()]
    before = [nn.utils.parameters_to_vector(part.parameters()).detach().clone() for part in parts]
    (values,) = train(method, 1)
    names = {"loss"} | {f"{kind}_{m}" for kind in ("l1", "adversarial", "critic") for m in ("us", "t2")}
    assert set(values) == names and torch.isfinite(torch.tensor(list(values.values()))).all()
    for part, old in zip(parts, before, strict=True):
        assert not torch.equal(nn.utils.parameters_to_vector(part.parameters()).detach(), old)


def test_the_loss_is_the_mean_of_both_generators():
    (values,) = train(tiny_method(), 1)
    expected = sum(values[f"adversarial_{m}"] + 100 * values[f"l1_{m}"] for m in ("us", "t2")) / 2
    assert values["loss"] == pytest.approx(expected, rel=1e-5)


def test_it_learns_one_batch_by_heart():
    values = train(tiny_method(dataclasses.replace(TINY, width=4)), 24)
    assert values[-1]["l1_us"] < 0.5 * values[0]["l1_us"] and values[-1]["l1_t2"] < 0.5 * values[0]["l1_t2"]


def test_training_depends_on_its_generator_alone():
    ends = []
    for global_seed, seed in ((1, 3), (2, 3), (1, 4)):
        method = with_dropout()
        torch.manual_seed(global_seed)
        train(method, 2, seed=seed)
        ends.append(weights(method))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_training_goes_on_exactly_from_saved_states():
    whole = with_dropout()
    train(whole, 4)
    first = with_dropout()
    optimizers = first.optimizers()
    train(first, 2, optimizers)
    states = copy.deepcopy({name: optimizer.state_dict() for name, optimizer in optimizers.items()})
    second = tiny_method(first.config, seed=9)
    second.load_state_dict(first.state_dict())
    resumed = second.optimizers()
    for name, optimizer in resumed.items():
        optimizer.load_state_dict(states[name])
    train(second, 2, resumed, first=2)
    assert torch.equal(weights(second), weights(whole))


def test_it_comes_back_from_disk(tmp_path):
    method, image = tiny_method().eval(), {"t2": tiny_images()["t2"]}
    loaded = load_method(save_method(method, tmp_path / "model"))
    assert loaded.config == TINY and torch.equal(loaded(image).images["us"], method(image).images["us"])


def test_settings_survive_json():
    config = Pix2PixConfig.preset("demo")
    assert saved_settings("pix2pix", json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modalities": ("us", "t2", "flair")}, "pix2pix goes between two modalities"),
        ({"modalities": ("us", "us")}, "modalities must be distinct names"),
        ({"image_size": (100, 100), "downs": 3}, "3 halvings of 100x100 px"),
        ({"image_size": (99, 99)}, "0 halvings of 99x99 px"),
        ({"image_size": (16, 16)}, "at least 24 px, or the critic has nothing to score"),
        ({"width": 0}, "width must be a whole number of at least 1; got 0"),
        ({"variant": "unet_256"}, "unknown variant; got 'unet_256'; expected native or padded-256"),
        ({"norm": "layer"}, "unknown norm; got 'layer'; expected batch or instance"),
        ({"gan": "hinge"}, "unknown gan; got 'hinge'; expected bce or lsgan"),
        ({"downs": "6"}, "downs must be a whole number of at least 1; got '6'"),
        ({"l1_weight": "100"}, "l1_weight must be a finite number of at least 0; got '100'"),
        ({"l1_weight": float("nan")}, "l1_weight must be a finite number"),
        ({"dropout": 1.0}, "dropout must be below 1"),
        ({"learning_rate": 0.0}, "both learning rates positive"),
        ({"betas": (0.5, 1.0)}, "betas of Adam do not fit"),
        ({"depth": 3}, "has no setting depth"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(settings, message):
    with pytest.raises(InputError, match=message):
        Pix2PixConfig.preset("paper", **settings)
