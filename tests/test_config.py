"""Settings that do not fit are refused by name, before anything is built."""

from __future__ import annotations

import pytest

from mhvae_kit.config import MHVAEConfig, TrainingConfig, digest
from mhvae_kit.errors import InputError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": (96, 96)}, "multiples of 64"),
        ({"image_size": (64, 64)}, "at least one of them larger"),
        ({"modalities": ()}, "distinct names"),
        ({"modalities": ("us", "us")}, "distinct names"),
        ({"modalities": ("us", "t.2")}, "distinct names"),
        ({"levels": 1}, "no hierarchy"),
        ({"base_channels": 3}, "no hierarchy"),
        ({"levels": "7"}, "levels must be a whole number"),
        ({"fusion": "variance"}, "unknown fusion"),
        ({"encoder_cell": "resnet"}, "unknown encoder_cell"),
        ({"architecture": "vae"}, "unknown architecture.*mhvae or mvae"),
        ({"soft_clamp": 0.0}, "soft_clamp must be positive"),
    ],
)
def test_bad_model_settings(settings, message):
    with pytest.raises(InputError, match=message):
        MHVAEConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 5}, "perhaps 'steps'"),
        ({"steps": 0}, "steps must be positive"),
        ({"steps": "100"}, "steps has the wrong type"),
        ({"gan": "false"}, "gan has the wrong type"),
        ({"precision": "float16"}, "unknown precision"),
        ({"objective": "elbo"}, "unknown objective.*mhvae or wu2018 or mmhvae"),
        ({"objective": "mmhvae", "missing": 1.0}, r"missing is not a probability below 1.*got 1.0.*in \[0, 1\)"),
        ({"objective": "mmhvae", "missing": -0.1}, "missing is not a probability"),
        ({"objective": "mmhvae", "missing": float("nan")}, "missing must be a finite number.*nan"),
        ({"objective": "mmhvae", "missing": "0.3"}, "missing has the wrong type"),
        ({"missing": 0.3}, "objective mhvae needs every image.*mmhvae"),
        ({"objective": "mmhvae", "alone": "flair"}, "observed alone.*got alone='flair' of us, t2"),
        ({"objective": "mmhvae", "modalities": ("us",)}, "at least two modalities"),
        ({"learning_rate": float("inf")}, "learning_rate must be a finite number"),
        ({"kl_weight": float("nan")}, "kl_weight must be a finite number"),
        ({"objective": "wu2018"}, "wu2018 has no adversarial term.*gan=True"),
        ({"kl_ramp_until": 0.9}, "stages are out of order"),
        ({"ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_bad_training_settings(settings, message):
    with pytest.raises(InputError, match=message):
        TrainingConfig.from_preset("smoke", **settings)


def test_unknown_preset():
    with pytest.raises(InputError, match="unknown preset"):
        MHVAEConfig.preset("large")


@pytest.mark.parametrize(("name", "value"), [("fusion", "scale"), ("architecture", "mvae")])
def test_overrides_reach_the_model(name, value):
    assert getattr(TrainingConfig.from_preset("smoke", **{name: value}).model, name) == value


@pytest.mark.parametrize(("architecture", "names"), [("mhvae", ("z4", "z3", "z2", "z1")), ("mvae", ("z4",))])
def test_latent_levels_of_an_architecture(architecture, names):
    config = MHVAEConfig(architecture=architecture, levels=4)
    assert config.level_names == names
    assert config.finer_levels == ("z3", "z2", "z1")
    assert [config.map_channels(level) for level in config.finer_levels] == [32, 16, 8]


@pytest.mark.parametrize(
    "settings",
    [
        {"modalities": ("us", "t2", "flair")},
        {"architecture": "mvae", "objective": "wu2018"},
        {"modalities": ("ct", "pet"), "objective": "mmhvae", "alone": "pet", "missing": 0.2},
    ],
)
def test_saved_config_comes_back_equal(settings):
    config = TrainingConfig.from_preset("demo", seed=3, gan=False, **settings)
    assert TrainingConfig.from_saved(config.to_dict()) == config


def test_config_saved_before_there_were_architectures_is_an_mhvae_s():
    config = TrainingConfig.from_preset("smoke")
    saved = config.to_dict()
    del saved["objective"], saved["model"]["architecture"], saved["alone"], saved["missing"]
    assert TrainingConfig.from_saved(saved) == config


def test_digest_tells_configs_apart():
    assert digest(MHVAEConfig()) == digest(MHVAEConfig.paper()) != digest(MHVAEConfig.demo())


def test_paper_budget_is_the_paper_s():
    config = TrainingConfig.from_preset("paper")
    assert (config.batch_size, config.steps) == (16, 56 * 1000)
    assert config.adversarial_from * 1000 == 800
