"""Stages, weights and everything random of a step are functions of (seed, step) alone."""

from __future__ import annotations

import pytest
import torch

from mhvae_kit import MHVAE
from mhvae_kit.config import TrainingConfig
from mhvae_kit.errors import InputError
from mhvae_kit.training import schedule
from mhvae_kit.training.step import pass_weights

CONFIG = TrainingConfig.from_preset("smoke", steps=1000, warmup_steps=10)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("step", "stage"),
    [
        (0, "reconstruction"),
        (99, "reconstruction"),
        (100, "kl_ramp"),
        (799, "kl_ramp"),
        (800, "adversarial"),
        (999, "adversarial"),
    ],
)
def test_stages_keep_the_paper_s_proportions(step, stage):
    assert schedule.stage_at(CONFIG, step) == stage


def test_without_gan_the_second_stage_lasts():
    assert schedule.stage_at(TrainingConfig.from_preset("smoke", steps=1000, gan=False), 999) == "kl_ramp"


def test_kl_weight_is_floor_then_ramp_then_full():
    weights = [schedule.kl_weight_at(CONFIG, step) for step in (0, 100, 300, 500, 999)]
    assert weights == pytest.approx([0.01, 0.01, 0.505, 1.0, 1.0])


def test_learning_rate_warms_up_then_falls_to_the_final_one():
    rates = [schedule.learning_rate_at(CONFIG, step) for step in range(1000)]
    assert rates[0] == pytest.approx(2e-4)
    assert max(rates) == pytest.approx(2e-3, rel=0.01)
    assert rates[-1] == pytest.approx(1e-4, rel=0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_each_epoch_visits_every_slice_once():
    config = TrainingConfig.from_preset("smoke", batch_size=4)
    seen = [i for step in range(6) for i in schedule.slices_of_step(config, step, 8)]
    assert sorted(seen[:8]) == sorted(seen[8:16]) == sorted(seen[16:]) == list(range(8))
    assert seen[:8] != seen[8:16]


def test_order_depends_on_the_seed():
    orders = [schedule.slices_of_step(TrainingConfig.from_preset("smoke", seed=s), 0, 100) for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_two_modalities_use_all_three_subsets():
    assert sorted(schedule.subsets_of_step(CONFIG, 5)) == [("t2",), ("us",), ("us", "t2")]


def test_more_modalities_draw_every_subset_alike():
    config = TrainingConfig.from_preset("smoke", modalities=("us", "t2", "flair"))
    drawn = [s for step in range(700) for s in schedule.subsets_of_step(config, step)]
    counts = {s: drawn.count(s) for s in set(drawn)}
    assert len(counts) == 7
    assert all(abs(n - 300) < 6 * 300**0.5 for n in counts.values())


def test_noise_of_a_position_does_not_depend_on_who_draws_it():
    config = TrainingConfig.from_preset("smoke")
    model = MHVAE(config.model)
    whole = schedule.noise_of_step(config, model, 7, [0, 1, 2, 3], 3, CPU)
    half = schedule.noise_of_step(config, model, 7, [2, 3], 3, CPU)
    for level, value in half.items():
        assert torch.equal(value.unflatten(0, (3, 2)), whole[level].unflatten(0, (3, 4))[:, 2:])


def test_noise_differs_between_steps_and_is_standard():
    config = TrainingConfig.from_preset("smoke")
    model = MHVAE(config.model)
    first, second = (schedule.noise_of_step(config, model, step, [0], 1, CPU)["z1"] for step in (0, 1))
    assert not torch.equal(first, second)
    assert abs(first.std().item() - 1) < 0.05


def test_the_joint_pass_weighs_what_the_config_says_and_weights_add_up_to_one():
    subsets = [("us", "t2"), ("us",), ("t2",)]
    weights = pass_weights(TrainingConfig.from_preset("smoke", joint_weight=2.0), subsets)
    assert weights == pytest.approx([0.5, 0.25, 0.25])
    assert pass_weights(CONFIG, subsets) == pytest.approx([1 / 3] * 3)


def test_passes_without_the_hardest_image_weigh_what_the_config_says():
    subsets = [("us", "t2"), ("us",), ("t2",)]
    weights = pass_weights(TrainingConfig.from_preset("smoke", synthesis_weight=2.0), subsets)
    assert weights == pytest.approx([0.25, 0.25, 0.5])
    both = pass_weights(TrainingConfig.from_preset("smoke", synthesis_weight=3.0, joint_weight=2.0), subsets)
    assert both == pytest.approx([2 / 6, 1 / 6, 3 / 6])
    other = pass_weights(TrainingConfig.from_preset("smoke", synthesis_weight=2.0, alone="t2"), subsets)
    assert other == pytest.approx([0.25, 0.5, 0.25])


def test_of_many_modalities_every_subset_without_the_hardest_image_weighs_more():
    config = TrainingConfig.from_preset("smoke", modalities=("us", "t2", "flair"), synthesis_weight=4.0)
    weights = pass_weights(config, [("us", "t2"), ("t2", "flair"), ("us",), ("us", "t2", "flair")])
    assert weights == pytest.approx([1 / 7, 4 / 7, 1 / 7, 1 / 7])


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_synthesis_weight_that_is_not_positive_is_refused(weight):
    with pytest.raises(InputError, match=f"synthesis_weight must be positive; got {weight}"):
        TrainingConfig.from_preset("smoke", synthesis_weight=weight)
