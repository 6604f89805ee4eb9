"""The conditional PatchGAN and what goes with it: sizes, receptive field, losses by hand, seeded dropout."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mhvae_kit.baselines.patchgan import (
    PatchGAN,
    critic_loss,
    frozen,
    gan_loss,
    init_normal,
    norm_layer,
    seeded_dropout,
)


@pytest.mark.parametrize(
    ("width", "side", "parameters", "gmac", "logits"),
    [(64, 192, 2_764_609, 1.74, 22), (16, 64, 175_057, 0.0112, 6)],
)
def test_size_and_cost(width, side, parameters, gmac, logits):
    with torch.device("meta"):
        critic, image = PatchGAN(width=width), torch.zeros(1, 1, side, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        scores = critic(image, image)
    assert sum(p.numel() for p in critic.parameters()) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, rel=5e-3)
    assert scores.shape == (1, 1, logits, logits)


def test_one_logit_sees_70_by_70_pixels_of_source_and_image():
    torch.manual_seed(0)
    critic = PatchGAN(width=2).eval()  # batch statistics would let every pixel reach every logit
    pair = [torch.rand(1, 1, 128, 128, requires_grad=True) for _ in range(2)]
    scores = critic(*pair)
    scores[0, 0, 7, 7].backward()
    for image in pair:
        rows, columns = (image.grad[0, 0] != 0).nonzero().T
        assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (70, 70)


def test_the_condition_matters():
    torch.manual_seed(0)
    critic, image = PatchGAN(width=2).eval(), torch.rand(1, 1, 32, 32)
    assert not torch.allclose(critic(image, image), critic(-image, image))


def test_losses_by_hand():
    scores = torch.tensor([0.0, 2.0])
    assert float(gan_loss(scores, True, "lsgan")) == pytest.approx((1 + 1) / 2)
    assert float(gan_loss(scores, False, "lsgan")) == pytest.approx((0 + 4) / 2)
    assert float(gan_loss(torch.zeros(3), True, "bce")) == pytest.approx(math.log(2))


@given(score=st.floats(-20, 20), real=st.booleans())
@settings(max_examples=30)
def test_bce_is_the_negative_log_likelihood(score, real):
    probability = 1 / (1 + math.exp(-score if real else score))
    assert float(gan_loss(torch.tensor([score]), real, "bce")) == pytest.approx(-math.log(probability), abs=1e-5)


def test_the_critic_loss_is_halved_and_leaves_the_generator_alone():
    made = torch.full((1, 1, 2, 2), 0.5, requires_grad=True)
    weight = nn.Parameter(torch.ones(()))

    class Critic(nn.Module):
        def forward(self, condition, image):
            return weight * image + condition

    loss = critic_loss(Critic(), torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 3.0), made, "lsgan")
    assert float(loss.detach()) == pytest.approx(((3 - 1) ** 2 + 0.5**2) / 2)
    loss.backward()
    assert made.grad is None and float(weight.grad) == pytest.approx((2 * 2 * 3 + 2 * 0.5 * 0.5) / 2)


def test_a_frozen_network_lets_the_gradient_through_and_thaws_after_an_error():
    network, x = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    with frozen(network):
        network(x).sum().backward()
    assert network.weight.grad is None and torch.equal(x.grad, network.weight.detach())
    with pytest.raises(RuntimeError, match="stop"), frozen(network):
        raise RuntimeError("stop")
    assert network.weight.requires_grad


def test_instance_norm_is_batch_norm_of_one_image():
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    one, other = norm_layer("instance", 3), norm_layer("batch", 3).train()
    for norm in (one, other):
        nn.init.constant_(norm.weight, 1.5)
        nn.init.constant_(norm.bias, 0.25)
    assert torch.allclose(one(image), other(image), atol=1e-5)


def test_initial_weights():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(64, 64, 3), nn.BatchNorm2d(4096))
    init_normal(network)
    convolution, scale = network[0].weight.detach(), network[1].weight.detach()
    assert float(convolution.std()) == pytest.approx(0.02, rel=0.05) and not network[0].bias.any()
    assert float(scale.mean()) == pytest.approx(1, abs=2e-3) and float(scale.std()) == pytest.approx(0.02, rel=0.1)


def test_dropout_depends_on_the_generator_and_on_nothing_else():
    def masks(global_seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(global_seed)
        generator = torch.Generator().manual_seed(5)
        drawn = []
        for _ in range(2):
            with seeded_dropout(generator, torch.device("cpu")):
                drawn.append(F.dropout(torch.ones(50)))
        return tuple(drawn)

    (first, second), (again, _) = masks(1), masks(2)
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_seeding_dropout_leaves_the_global_generator_as_it_was():
    before = torch.get_rng_state()
    with seeded_dropout(torch.Generator().manual_seed(5), torch.device("cpu")):
        torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())
