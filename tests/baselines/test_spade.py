"""SPADE: published sizes, its norms and losses by hand, and a training step that is exact and learns."""

from __future__ import annotations

import copy
import dataclasses
import io
from functools import partial

import pytest
import torch
from test_vgg import THIN, thin_state
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mhvae_kit.baselines import spade
from mhvae_kit.baselines.spade import Spade, SpadeConfig, critic_hinge, feature_matching, generator_hinge
from mhvae_kit.baselines.spade_networks import SpadeCritic, SpadeGenerator, SpadeNorm, convolution
from mhvae_kit.baselines.storage import load_method, save_method
from mhvae_kit.baselines.vgg import load_vgg19
from mhvae_kit.errors import InputError, MissingError, RunError

TINY = {"width": 2, "hidden": 2, "critic_width": 2}


@pytest.fixture(autouse=True)
def no_weights(monkeypatch, tmp_path):
    """No VGG19 here, whatever the machine has."""
    monkeypatch.delenv("MHVAE_VGG19", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


@pytest.fixture
def thin_vgg(monkeypatch, tmp_path):
    """A thin VGG19 in place of the real one."""
    torch.save(thin_state(), tmp_path / "vgg.pth")
    monkeypatch.setenv("MHVAE_VGG19", str(tmp_path / "vgg.pth"))
    monkeypatch.setattr(spade, "load_vgg19", partial(load_vgg19, stages=THIN))


def tiny(seed: int = 0, **settings) -> Spade:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Spade(SpadeConfig.preset("smoke", **{**TINY, **settings}))


def batch(n: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(n, 1, 8, 8, generator=generator) * 1.6 - 0.8
    t2 = nn.functional.interpolate(coarse, (64, 64), mode="bilinear")
    return {"t2": t2, "us": -t2}


def step(method: Spade, optimizers, images=None) -> dict[str, float]:
    images = batch() if images is None else images
    fov = torch.ones_like(images["us"], dtype=torch.bool)
    return method.training_step(images, fov, optimizers, torch.Generator(), 0.0)


def n_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def gmac(network: nn.Module, *inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        network(*inputs)
    return counter.get_total_flops() / 2e9


def test_full_size_has_the_published_parameters_and_cost():
    with torch.device("meta"):
        method = Spade(SpadeConfig.preset("paper"))
        image = torch.empty(1, 1, 192, 192)
        assert method.parameters_per_direction() == 91_998_529
        assert method.n_unique_parameters() == 2 * 91_998_529
        assert n_parameters(method.critics["us"]) == 5_525_634
        assert gmac(method.generators["us"], image) == pytest.approx(76.3, abs=0.05)
        assert gmac(method.critics["us"], image, image) == pytest.approx(2.67, abs=0.005)


def test_small_sizes():
    with torch.device("meta"):
        assert n_parameters(SpadeGenerator(16, 32, "instance", "nearest")) == 5_761_873
        assert n_parameters(SpadeGenerator(8, 16, "instance", "nearest")) == 1_444_457
        assert n_parameters(SpadeCritic(16, 3)) == 85_026
        assert Spade(SpadeConfig.preset("demo")).parameters_per_direction() == 5_761_873


def test_the_source_starts_at_a_32nd_of_its_size():
    generator = SpadeGenerator(1, 1, "instance", "nearest")
    shapes = []
    for block in generator.blocks:
        block.register_forward_hook(lambda _, inputs, output: shapes.append((*output.shape[1:], *inputs[1].shape[2:])))
    assert generator(torch.zeros(1, 1, 96, 64)).shape == (1, 1, 96, 64)
    sizes = [(3, 2), (6, 4), (6, 4), (12, 8), (24, 16), (48, 32), (96, 64)]
    assert shapes == [(c, *s, *s) for c, s in zip((16, 16, 16, 8, 4, 2, 1), sizes, strict=True)]


@pytest.mark.parametrize("resize", ["nearest", "area"])
def test_how_the_source_is_brought_to_size(resize):
    generator = SpadeGenerator(1, 1, "instance", resize)
    seen = []
    generator.first.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    source = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    generator(source)
    expected = (
        source[..., ::32, ::32] if resize == "nearest" else source.unfold(2, 32, 32).unfold(3, 32, 32).mean((4, 5))
    )
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_spade_norm_by_its_formula(norm):
    torch.manual_seed(0)
    layer = SpadeNorm(3, 4, norm)
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    x, source = torch.randn(2, 3, 5, 6), torch.randn(2, 1, 5, 6)
    dims = (0, 2, 3) if norm == "batch" else (2, 3)
    mean, variance = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
    hidden = nn.functional.conv2d(source, layer.hidden.weight, layer.hidden.bias, padding=1).clamp(min=0)
    weight, bias = layer.scale_and_shift.weight, layer.scale_and_shift.bias
    scale = nn.functional.conv2d(hidden, weight[:3], bias[:3], padding=1)
    shift = nn.functional.conv2d(hidden, weight[3:], bias[3:], padding=1)
    expected = (x - mean) / (variance + 1e-5).sqrt() * (1 + scale) + shift
    torch.testing.assert_close(layer(x, source), expected, rtol=1e-4, atol=1e-5)


def test_spectral_norm_leaves_a_largest_singular_value_of_one():
    torch.manual_seed(0)
    layer = convolution(3, 8, 3, spectral=True)
    for _ in range(30):  # power iteration goes on with each use
        weight = layer.weight
    assert torch.linalg.svdvals(weight.detach().flatten(1))[0].item() == pytest.approx(1.0, abs=1e-3)


def test_spectral_norm_in_evaluation_ignores_the_length_of_its_vector_and_keeps_it():
    torch.manual_seed(0)
    layer = convolution(3, 8, 3, spectral=True).eval()
    vector = layer.parametrizations.weight[0].left
    before = vector.clone()
    expected = layer.weight.detach().clone()
    assert torch.equal(vector, before)
    vector.mul_(0.3)  # as the average of vectors that turned
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-5, atol=1e-6)
    assert vector.norm().item() == pytest.approx(0.3, abs=1e-5)
    layer.train()
    assert layer.weight.isfinite().all()  # one use, one step
    assert vector.norm().item() == pytest.approx(1.0, abs=1e-5)


def test_spectral_norm_has_the_gradient_of_the_quotient():
    torch.manual_seed(0)
    layer = convolution(2, 3, 1, spectral=True).eval().double()
    original = layer.parametrizations.weight.original
    with torch.no_grad():
        original.normal_()
        layer.train()
        for _ in range(200):
            layer(torch.zeros(1, 2, 1, 1, dtype=torch.float64))
        layer.eval()
    direction = torch.randn_like(original)
    (layer.weight * direction).sum().backward()
    free = original.detach().clone().requires_grad_(True)
    (free / torch.linalg.matrix_norm(free.flatten(1), 2) * direction).sum().backward()
    torch.testing.assert_close(original.grad, free.grad)


def maps(*values: float) -> list[list[torch.Tensor]]:
    """Two scales of one feature map and one score map; the second scale is the first with its sign changed."""
    one = [torch.full((1, 1, 2, 2), v) for v in values]
    return [one, [-x for x in one]]


def test_hinge_losses_by_hand():
    # scores 0.4 and -0.4 for real, 2 and -2 for synthetic
    real, synthetic = maps(0.0, 0.4), maps(0.0, 2.0)
    assert critic_hinge(real, synthetic).item() == pytest.approx(((0.6 + 3.0) + (1.4 + 0.0)) / 2)
    assert generator_hinge(maps(0.0, 2.0)[:1]).item() == pytest.approx(-2.0)
    assert generator_hinge(maps(0.0, 2.0)).item() == pytest.approx(0.0)


def test_feature_matching_by_hand():
    # the score, last, does not count; layers add up, scales are averaged
    real, synthetic = maps(1.0, 2.0, 9.0), maps(0.5, 4.0, 0.0)
    assert feature_matching(real, synthetic).item() == pytest.approx(0.5 + 2.0)


def test_feature_matching_reaches_the_synthetic_side_alone():
    real, synthetic = torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    feature_matching([[real, real]], [[synthetic, synthetic]]).backward()
    assert real.grad is None
    assert synthetic.grad.item() == -1


def test_the_critic_sees_source_and_image_at_two_scales():
    torch.manual_seed(0)
    critic = SpadeCritic(4, 4)
    source, image = torch.randn(2, 1, 64, 64), torch.randn(2, 1, 64, 64)
    found = critic(source, image)
    assert [[tuple(m.shape[1:]) for m in scale] for scale in found] == [
        [(4, 33, 33), (8, 17, 17), (16, 9, 9), (32, 10, 10), (1, 11, 11)],
        [(4, 17, 17), (8, 9, 9), (16, 5, 5), (32, 6, 6), (1, 7, 7)],
    ]
    assert not torch.equal(critic(image, image)[1][-1], found[1][-1])


def test_shapes_range_and_directions():
    method, images = tiny().eval(), batch()
    with torch.no_grad():
        made = method({"t2": images["t2"]}).images
    assert list(made) == ["us"]
    assert made["us"].shape == (2, 1, 64, 64)
    assert made["us"].abs().max() <= 1
    assert method.directions == ((("t2",), "us"), (("us",), "t2"))


def test_each_direction_has_its_own_network():
    method, images = tiny().eval(), batch()
    with torch.no_grad():
        before = method({"t2": images["t2"]}).images["us"]
        for p in method.generators["t2"].parameters():
            p.zero_()
        assert torch.equal(method({"t2": images["t2"]}).images["us"], before)


def test_other_directions_and_temperatures_are_refused():
    method, images = tiny(), batch()
    with pytest.raises(InputError, match="spade cannot make t2 from t2; expected t2 to us, us to t2"):
        method({"t2": images["t2"]}, targets=["t2"])
    with pytest.raises(InputError, match="spade cannot make anything from t2\\+us"):
        method({"t2": images["t2"], "us": images["us"]})
    with pytest.raises(InputError, match="spade cannot use this temperature; got 0.5; expected 0"):
        method({"t2": images["t2"]}, temperature=0.5)


def test_a_step_returns_its_terms_and_their_weighted_sum():
    method = tiny(feature_weight=3.0, l1_weight=7.0)
    values = step(method, method.optimizers())
    terms = ("adversarial", "features", "l1", "critic")
    assert set(values) == {"loss", *(f"{name}_{m}" for name in terms for m in ("us", "t2"))}
    sums = [values[f"adversarial_{m}"] + 3 * values[f"features_{m}"] + 7 * values[f"l1_{m}"] for m in ("us", "t2")]
    assert values["loss"] == pytest.approx(sum(sums) / 2, rel=1e-5)


def test_gradients_of_critic_and_generator_do_not_mix():
    method, images = tiny(), batch()
    twin = copy.deepcopy(method)
    method.optimizers()
    step(method, {n: torch.optim.SGD(p.parameters(), lr=0.0) for n, p in method.named_children()}, images)

    made = twin.generators["us"](images["t2"])
    twin._judge(images["t2"], images["us"], made, "us")  # a step of power iteration, as for the generator's loss
    real, synthetic = twin._judge(images["t2"], images["us"], made.detach(), "us")
    critic_hinge(real, synthetic).backward()
    for a, b in zip(method.critics["us"].parameters(), twin.critics["us"].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert all(p.grad is None for p in twin.generators.parameters())
    assert all(p.grad is not None and p.requires_grad for p in method.generators.parameters())


def test_a_tiny_batch_is_learned():
    method = tiny(width=4, hidden=4, learning_rate=3e-3)
    optimizers = method.optimizers()
    values = [step(method, optimizers) for _ in range(30)]
    for m in ("us", "t2"):
        assert values[-1][f"l1_{m}"] < 0.5 * values[0][f"l1_{m}"]


def test_resumed_training_is_exact():
    straight, images = tiny(norm="batch"), batch()
    optimizers = straight.optimizers()
    for _ in range(2):
        step(straight, optimizers, images)
    file = io.BytesIO()
    torch.save([straight.state_dict(), {n: o.state_dict() for n, o in optimizers.items()}], file)
    step(straight, optimizers, images)

    file.seek(0)
    state, rates = torch.load(file, weights_only=True)
    resumed = tiny(seed=1, norm="batch")
    again = resumed.optimizers()
    resumed.load_state_dict(state)
    for name, optimizer in again.items():
        optimizer.load_state_dict(rates[name])
    step(resumed, again, images)
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert a == b if isinstance(a, dict) else torch.equal(a, b), name


def test_without_weights_it_is_l1_and_says_so(tmp_path):
    method = tiny()
    assert method.perceptual is None
    values = step(method, method.optimizers())
    assert method.perceptual == method.card["perceptual"] == "l1"
    assert "l1_us" in values and "vgg19_us" not in values
    assert load_method(save_method(method, tmp_path / "spade")).perceptual == "l1"


def test_with_weights_it_is_vgg19_and_says_so(thin_vgg, tmp_path):
    method = tiny(perceptual_weight=5.0)
    before = set(method.state_dict()), n_parameters(method)
    values = step(method, method.optimizers())
    assert method.perceptual == method.card["perceptual"] == "vgg19"
    sums = [values[f"adversarial_{m}"] + 10 * values[f"features_{m}"] + 5 * values[f"vgg19_{m}"] for m in ("us", "t2")]
    assert values["loss"] == pytest.approx(sum(sums) / 2, rel=1e-5)
    assert (set(method.state_dict()), n_parameters(method)) == before  # VGG19 is no part of the method
    assert load_method(save_method(method, tmp_path / "spade")).perceptual == "vgg19"


def test_l1_can_be_chosen_where_there_are_weights(thin_vgg):
    method = tiny(perceptual="l1")
    assert "l1_us" in step(method, method.optimizers())


def test_vgg19_that_is_asked_for_and_missing_stops_training_not_loading():
    method = tiny(perceptual="vgg19")
    with pytest.raises(MissingError, match="no VGG19 weights"):
        method.optimizers()


def test_a_resumed_training_keeps_its_term(monkeypatch, request):
    began = tiny()
    began.optimizers()
    state = began.state_dict()
    request.getfixturevalue("thin_vgg")
    resumed = tiny()
    optimizers = resumed.optimizers()
    assert resumed.perceptual == "vgg19"
    resumed.load_state_dict(state)
    assert "l1_us" in step(resumed, optimizers) and resumed.card["perceptual"] == "l1"

    state = tiny().state_dict() | {"_extra_state": {"perceptual": "vgg19"}}
    monkeypatch.delenv("MHVAE_VGG19")
    elsewhere = tiny()
    elsewhere.optimizers()
    with pytest.raises(MissingError, match="no VGG19 weights"):
        elsewhere.load_state_dict(state)


def test_a_step_without_optimizers_is_refused():
    method = tiny()
    optimizers = {n: torch.optim.SGD(p.parameters(), lr=0.0) for n, p in method.named_children()}
    with pytest.raises(RunError, match="training of spade begins with its optimizers"):
        step(method, optimizers)


@pytest.mark.parametrize(("preset", "size", "start"), [("paper", 192, 6), ("demo", 96, 3), ("smoke", 64, 2)])
def test_presets(preset, size, start):
    config = SpadeConfig.preset(preset)
    assert config.image_size == (size, size) and size // 32 == start
    assert config.betas == (0.0, 0.9) and config.feature_weight == config.perceptual_weight == 10
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    assert SpadeConfig.preset(preset, **values) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modalities": ("us",)}, "spade goes between two modalities"),
        ({"modalities": ("us", "us")}, "spade goes between two modalities"),
        ({"image_size": (96, 80)}, "multiples of 32, at least 64"),
        ({"image_size": (32, 32)}, "multiples of 32, at least 64"),
        ({"width": 0}, "width must be a whole number"),
        ({"norm": "group"}, "unknown norm; got 'group'; expected batch or instance"),
        ({"resize": "cubic"}, "unknown resize"),
        ({"perceptual": "lpips"}, "unknown perceptual; got 'lpips'; expected auto or vgg19 or l1"),
        ({"l1_weight": -1.0}, "may be negative"),
        ({"critic_learning_rate": 0.0}, "learning rates must be positive"),
        ({"betas": (0.0, 1.0)}, "betas of Adam do not fit"),
        ({"critics": 3}, "SpadeConfig has no setting critics"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SpadeConfig.preset("smoke", **settings)
