"""Rectified flow: published size, the line and its integration by hand, a step that is exact and learns."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import inspect
import io
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mhvae_kit.baselines import flow
from mhvae_kit.baselines.flow import FlowConfig, RectifiedFlow, integrate, noisy, velocity_network
from mhvae_kit.baselines.storage import load_method, save_method
from mhvae_kit.errors import InputError, MissingError

TINY = {"image_size": (16, 16), "channels": (4, 8), "norm_groups": 2, "head_channels": 4, "sampling_steps": 3}


def tiny(seed: int = 0, **options) -> RectifiedFlow:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RectifiedFlow(FlowConfig.preset("smoke", **{**TINY, **options}))


class Constant(nn.Module):
    """In place of the UNet: a velocity that is learned as one number and what it was called with."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def forward(self, x, timesteps, class_labels):
        self.calls.append((x, timesteps, class_labels))
        return torch.zeros_like(x[:, :1]) + self.value


def constant(value: float = 0.0, **options) -> RectifiedFlow:
    method = tiny(**options)
    method.network = Constant(value)
    return method


def batch(n: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    t2 = torch.rand(n, 1, 16, 16, generator=generator) * 1.6 - 0.8
    return {"t2": t2, "us": -t2}


def step(method: RectifiedFlow, optimizers, images=None, fov=None, seed: int = 0) -> dict[str, float]:
    images = batch() if images is None else images
    fov = torch.ones_like(images["us"], dtype=torch.bool) if fov is None else fov
    return method.training_step(images, fov, optimizers, torch.Generator().manual_seed(seed), 0.0)


def n_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_full_size_has_the_published_parameters_and_cost():
    config = FlowConfig.preset("paper")
    with torch.device("meta"):
        assert n_parameters(velocity_network(config, 1, None)) == 10_726_401
        method = RectifiedFlow(config)
        # a channel more in the first convolution, and an embedding of each target
        assert method.n_unique_parameters() == 10_726_401 + 9 * 32 + 2 * 4 * 32
        with FlopCounterMode(display=False) as counter:
            image = torch.empty(1, 1, 192, 192)
            method.velocity(image, torch.empty(1), {"t2": image}, "us")
    assert counter.get_total_flops() / 2e9 == pytest.approx(18.6, abs=0.05)


def test_the_line_from_image_to_noise():
    image, noise = torch.full((3, 1, 2, 2), 0.5), torch.full((3, 1, 2, 2), -1.0)
    found = noisy(image, noise, torch.tensor([0.0, 250.0, 1000.0]))
    torch.testing.assert_close(found[:, 0, 0, 0], torch.tensor([0.5, 0.75 * 0.5 - 0.25, -1.0]))


@given(st.integers(1, 60), st.floats(-2, 2))
@settings(max_examples=20)
def test_a_constant_velocity_is_followed_exactly(steps, value):
    start = torch.linspace(-1, 1, 8).reshape(2, 1, 2, 2)
    torch.testing.assert_close(integrate(lambda x, t: torch.full_like(x, value), start, steps), start + value)


def test_a_straight_path_ends_at_its_image_in_any_number_of_steps():
    image, noise = torch.full((1, 1, 2, 2), 0.3), torch.full((1, 1, 2, 2), -2.0)
    for steps in (1, 7, 20):
        torch.testing.assert_close(integrate(lambda x, t: image - noise, noise, steps), image)


def test_euler_steps_of_a_linear_equation():
    start = torch.ones(1, 1, 1, 1)
    assert integrate(lambda x, t: -x, start, 10).item() == pytest.approx(0.9**10, rel=1e-5)


def test_the_velocity_is_asked_for_at_the_times_of_the_steps():
    times = []
    integrate(lambda x, t: times.append(t) or torch.zeros_like(x), torch.zeros(2, 1, 1, 1), 3)
    assert [t.tolist() for t in times] == [[1000.0] * 2, [667.0] * 2, [333.0] * 2]


def test_steps_agree_with_their_rounded_times():
    # dx = t / 1000 a step of (t - next) / 1000: with 1000, 667 and 333
    found = integrate(lambda x, t: (t / 1000)[:, None, None, None].expand_as(x), torch.zeros(1, 1, 1, 1), 3)
    assert found.item() == pytest.approx(1.0 * 0.333 + 0.667 * 0.334 + 0.333 * 0.333, rel=1e-5)


def test_channels_and_target_that_the_network_gets():
    method, images = constant(), batch()
    method({"us": images["us"]}, temperature=0.0)
    x, times, labels = method.network.calls[0]
    torch.testing.assert_close(x, torch.cat((torch.zeros(2, 1, 16, 16), images["us"], torch.zeros(2, 1, 16, 16)), 1))
    assert times.tolist() == [1000.0, 1000.0]
    assert labels.tolist() == [1, 1]  # t2 is the second modality
    assert len(method.network.calls) == 3


def test_temperature_scales_the_noise_that_it_starts_from():
    method, images = constant(0.25), {"t2": batch()["t2"]}
    noise = method.draw_noise(2, torch.Generator().manual_seed(1))
    made = method(images, temperature=0.1, noise=noise).images["us"]
    torch.testing.assert_close(made, (0.1 * noise["image"] + 0.25).clamp(-1, 1))
    torch.testing.assert_close(method(images, temperature=0.0, noise=noise).images["us"], torch.full_like(made, 0.25))


def test_images_stay_in_range():
    made = constant(3.0)({"t2": batch()["t2"]}, temperature=0.0).images["us"]
    assert torch.equal(made, torch.ones(2, 1, 16, 16))


def test_shapes_and_directions():
    method = tiny().eval()
    assert method.directions == ((("t2",), "us"), (("us",), "t2"))
    with torch.no_grad():
        made = method({"t2": batch()["t2"]}, temperature=1.0, generator=torch.Generator().manual_seed(0)).images
    assert list(made) == ["us"] and made["us"].shape == (2, 1, 16, 16) and made["us"].abs().max() <= 1


def test_three_modalities_have_six_directions_in_one_network():
    method = tiny(modalities=("us", "t2", "flair"))
    assert len(set(method.directions)) == 6
    images = {**batch(), "flair": batch()["t2"]}
    values = step(method, method.optimizers(), images)
    assert values["loss"] == pytest.approx(sum(v for k, v in values.items() if k != "loss") / 6)
    assert "velocity_flair_to_us" in values


@torch.no_grad()
def trained_like(seed: int = 0) -> RectifiedFlow:
    """Weights that are not those of the start, where the last layer is 0."""
    method = tiny(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for p in method.network.parameters():
        p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return method


@torch.no_grad()
def test_same_noise_same_image_other_noise_another():
    method, images = trained_like(), {"t2": batch()["t2"]}
    noise = [method.draw_noise(2, torch.Generator().manual_seed(i)) for i in (0, 0, 1)]
    one, same, other = (method(images, temperature=1.0, noise=n).images["us"] for n in noise)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@torch.no_grad()
def test_temperature_zero_draws_nothing():
    method, images = trained_like(), {"t2": batch()["t2"]}
    state = torch.get_rng_state()
    one, two = (method(images, temperature=0.0).images["us"] for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(state, torch.get_rng_state())


@torch.no_grad()
def test_source_and_target_matter():
    method, images = trained_like(), batch()
    made = method({"t2": images["t2"]}, temperature=0.0).images["us"]
    assert not torch.equal(made, method({"t2": images["us"]}, temperature=0.0).images["us"])
    assert not torch.equal(made, method({"us": images["t2"]}, temperature=0.0).images["t2"])


def test_other_directions_temperatures_and_noise_are_refused():
    method, images = constant(), batch()
    with pytest.raises(InputError, match="flow cannot make us from us; expected t2 to us, us to t2"):
        method({"us": images["us"]}, targets=["us"])
    with pytest.raises(InputError, match="flow cannot use this temperature; got -1; expected a finite number"):
        method({"t2": images["t2"]}, temperature=-1)
    with pytest.raises(
        InputError, match=r"noise\['image'\] does not fit; got \(3, 1, 16, 16\); expected \(2, 1, 16, 16\)"
    ):
        method({"t2": images["t2"]}, temperature=1.0, noise={"image": torch.zeros(3, 1, 16, 16)})
    with pytest.raises(InputError, match=r"noise\['image'\] does not fit; got nothing"):
        method({"t2": images["t2"]}, temperature=1.0, noise={"z1": torch.zeros(2, 1, 16, 16)})


def test_the_loss_by_hand():
    """The velocity 0.5 everywhere, against image - noise, at weight 1 inside the fan and 0.1 outside."""
    method, images = constant(0.5, background_weight=0.1), batch()
    fov = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    fov[0, 0, 3:9, 2:7] = True
    generator = torch.Generator().manual_seed(5)
    expected = {}
    for source, target, label in (("t2", "us", 0), ("us", "t2", 1)):
        noise = torch.randn(2, 1, 16, 16, generator=generator)
        times = 1000 * (torch.tensor([0.0, 1.0]) + torch.rand(2, generator=generator)) / 2
        square = (0.5 - (images[target] - noise)) ** 2
        n_inside = 30
        inside, outside = square[fov].sum(), square[~fov].sum()
        expected[target] = ((inside + 0.1 * outside) / (n_inside + 0.1 * (2 * 256 - n_inside))).item()
        expected[f"call_{target}"] = (noise, times, label, source)
    optimizers = {"network": torch.optim.SGD(method.network.parameters(), lr=0.0)}
    values = step(method, optimizers, images, fov, seed=5)
    assert values["velocity_us"] == pytest.approx(expected["us"], rel=1e-5)
    assert values["velocity_t2"] == pytest.approx(expected["t2"], rel=1e-5)
    assert values["loss"] == pytest.approx((expected["us"] + expected["t2"]) / 2, rel=1e-5)
    for target, (x, times, labels) in zip(("us", "t2"), method.network.calls, strict=True):
        noise, drawn, label, source = expected[f"call_{target}"]
        torch.testing.assert_close(times, drawn)
        share = (drawn / 1000)[:, None, None, None]
        torch.testing.assert_close(x[:, :1], (1 - share) * images[target] + share * noise)
        assert labels.tolist() == [label, label]
        assert torch.equal(x[:, 1 + ["us", "t2"].index(source)], images[source][:, 0])
        assert not x[:, 1 + label].any()  # the target is not shown


def test_nothing_inside_the_fan_is_refused_when_only_that_counts():
    method = constant(background_weight=0.0)
    with pytest.raises(InputError, match="nothing of the batch is inside the fan"):
        step(method, method.optimizers(), fov=torch.zeros(2, 1, 16, 16, dtype=torch.bool))


@given(st.integers(1, 9), st.integers(0, 100))
@settings(max_examples=20)
def test_times_are_spread_over_the_whole_range(n, seed):
    times = RectifiedFlow._draw_times(n, torch.Generator().manual_seed(seed))
    assert (times * n / 1000).long().tolist() == list(range(n))


def test_the_optimizer_has_the_settings():
    (group,) = tiny(learning_rate=0.02, weight_decay=0.3).optimizers()["network"].param_groups
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.3)


def test_a_tiny_batch_is_learned():
    method = tiny(channels=(8, 16), learning_rate=5e-3)
    optimizers = method.optimizers()
    losses = [step(method, optimizers, seed=i)["loss"] for i in range(60)]
    assert sum(losses[-10:]) < 0.4 * sum(losses[:10])
    method.eval()
    images = batch()
    with torch.no_grad():
        made = method({"t2": images["t2"]}, temperature=0.0).images["us"]
    assert (made - images["us"]).abs().mean() < 0.6 * images["us"].abs().mean()


def test_a_step_depends_on_its_generator_and_the_state_alone():
    images = batch()
    straight = tiny()
    optimizers = straight.optimizers()
    step(straight, optimizers, images, seed=0)
    file = io.BytesIO()
    torch.save([straight.state_dict(), optimizers["network"].state_dict()], file)
    state = torch.get_rng_state()
    step(straight, optimizers, images, seed=1)
    assert torch.equal(state, torch.get_rng_state())

    file.seek(0)
    weights, rates = torch.load(file, weights_only=True)
    resumed = tiny(seed=1)
    again = resumed.optimizers()
    resumed.load_state_dict(weights)
    again["network"].load_state_dict(rates)
    torch.manual_seed(99)
    step(resumed, again, images, seed=1)
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@torch.no_grad()
def test_saved_and_loaded_it_makes_the_same(tmp_path):
    method, images = trained_like(), {"t2": batch()["t2"]}
    loaded = load_method(save_method(method, tmp_path / "flow"))
    assert loaded.card["sampling_steps"] == 3
    assert torch.equal(loaded(images, temperature=0.0).images["us"], method(images, temperature=0.0).images["us"])


@pytest.mark.parametrize("missing", ["monai", "einops"])
def test_a_library_that_is_not_installed_is_named(monkeypatch, missing):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == missing:
            raise ImportError(f"No module named {missing!r}")
        return real(name, *args, **kwargs)

    for name in [n for n in sys.modules if n.split(".")[0] == "monai"]:
        if missing == "monai":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    if missing == "einops":  # MONAI looked for it when it was imported; what it keeps then raises when it is used

        def absent(*args, **kwargs):
            raise ImportError("from einops.layers.torch import Rearrange (No module named 'einops').")

        monkeypatch.setattr("monai.networks.blocks.selfattention.Rearrange", absent)
    with pytest.raises(MissingError, match=f"needs MONAI 1.5 or newer and einops; got .*{missing}.*; pip install"):
        tiny()


def test_the_module_is_read_without_monai():
    at_once = [
        node for node in ast.parse(inspect.getsource(flow)).body if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    assert len(at_once) > 5 and not any("monai" in ast.unparse(node) for node in at_once)


@pytest.mark.parametrize(("preset", "size"), [("paper", 192), ("demo", 96), ("smoke", 64)])
def test_presets(preset, size):
    config = FlowConfig.preset(preset)
    assert config.image_size == (size, size)
    assert 10 <= config.sampling_steps <= 25
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    assert FlowConfig.preset(preset, **values) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": ("us",)}, "a flow goes between modalities"),
        ({"modalities": ("us", "us")}, "a flow goes between modalities"),
        ({"channels": (4, 9)}, "channels do not fit; got \\(4, 9\\); expected some, each a multiple of norm_groups=2"),
        ({"channels": ()}, "channels do not fit"),
        ({"channels": (4, 0)}, "channels\\[1\\] must be a whole number"),
        ({"head_channels": 3}, "head_channels does not fit; got 3; expected a divisor of 8"),
        (
            {"image_size": (16, 15)},
            "image_size does not fit .* got \\(16, 15\\); expected height and width in multiples of 2",
        ),
        ({"sampling_steps": 0}, "sampling_steps must be a whole number"),
        ({"sampling_steps": 1001}, "too many sampling_steps"),
        ({"background_weight": 2.0}, "background_weight does not fit"),
        ({"learning_rate": 0.0}, "learning_rate, weight_decay or background_weight does not fit"),
        ({"steps": 3}, "FlowConfig has no setting steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        FlowConfig.preset("smoke", **{**TINY, **options})
