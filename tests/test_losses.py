"""The ELBO's terms by hand, the authors' alternatives, and the adversarial terms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mhvae_kit.gaussian import Gaussian
from mhvae_kit.losses import discriminator_loss, elbo_terms, generator_adversarial, synthetic_images
from mhvae_kit.networks import Synthesis


def synthesis(image: torch.Tensor, observed: tuple[str, ...] = ("t2",), shift: float = 0.0) -> Synthesis:
    """A decoding with the same image for us and t2, and one level whose posterior is the prior moved by `shift`."""
    zeros = torch.zeros(image.shape[0], 3)
    prior, posterior = Gaussian(zeros, zeros), Gaussian(zeros + shift, zeros)
    images = {"us": image, "t2": image}
    return Synthesis(images, {"z1": zeros + shift}, {"z1": prior}, {"z1": posterior}, {"z1": {}}, observed)


def test_laplace_reconstruction_by_hand():
    image = torch.zeros(2, 1, 4, 5)
    terms = elbo_terms(synthesis(image), {"us": image + 0.1}, likelihood_scale=0.05)
    expected = 20 * (0.1 / 0.05 + math.log(2 * 0.05))
    torch.testing.assert_close(terms.reconstruction["us"], torch.full((2,), expected), rtol=1e-5, atol=1e-4)


def test_laplace_is_a_normalised_density():
    x = torch.linspace(-3, 3, 60_001, dtype=torch.float64)
    density = (-(x.abs() / 0.05 + math.log(0.1))).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1.0, abs=1e-4)


def test_kl_by_hand_and_its_weight():
    image = torch.zeros(2, 1, 4, 5)
    terms = elbo_terms(synthesis(image, shift=2.0), {"us": image}, likelihood_scale=0.5)
    torch.testing.assert_close(terms.kl["z1"], torch.full((2,), 3 * 0.5 * 2.0**2))
    # the Laplace constant log 2b is 0 for b = 0.5, so that only the KL is left: 6 nats over 20 pixels
    assert terms.negative_elbo(0.5).item() == pytest.approx(0.5 * 6 / 20)


def test_authors_reconstruction_is_half_a_squared_error():
    image = torch.zeros(1, 1, 4, 5)
    terms = elbo_terms(synthesis(image), {"us": image + 0.2}, likelihood_scale=1.0, reconstruction="smooth_l1_sum")
    assert terms.reconstruction["us"].item() == pytest.approx(20 * 0.5 * 0.2**2)


def test_one_sample_estimate_uses_the_drawn_latent():
    image = torch.zeros(1, 1, 4, 5)
    terms = elbo_terms(synthesis(image, shift=2.0), {"us": image}, likelihood_scale=1.0, kl_estimate="one_sample")
    # at z = posterior mean: log q - log p = 0.5 * 2^2 in each of 3 elements
    assert terms.kl["z1"].item() == pytest.approx(6.0)


def test_only_targets_are_scored():
    image = torch.zeros(1, 1, 4, 5)
    assert list(elbo_terms(synthesis(image), {"t2": image}, likelihood_scale=1.0).reconstruction) == ["t2"]


def test_an_image_that_a_row_lacks_is_no_target_of_it():
    image = torch.zeros(2, 1, 4, 5)
    present = {"us": torch.tensor([True, False]), "t2": torch.tensor([True, True])}
    terms = elbo_terms(synthesis(image), {"us": image + 0.1, "t2": image}, likelihood_scale=0.5, present=present)
    assert terms.reconstruction["us"].tolist() == pytest.approx([20 * 0.2, 0.0])
    # the Laplace constant is 0 for b = 0.5; a mean over two rows of 20 pixels, the second weighing three times as much
    assert terms.negative_elbo(1.0, torch.tensor([1.0, 3.0])).item() == pytest.approx(20 * 0.2 / 2 / 20)


def test_synthetic_images_are_those_of_unobserved_modalities():
    image = torch.zeros(2, 1, 4, 4)
    passes = [synthesis(image, ("us", "t2")), synthesis(image + 0.1, ("us",)), synthesis(image + 0.2, ("t2",))]
    fake = synthetic_images(passes, ["us", "t2"])
    assert fake["t2"].mean().item() == pytest.approx(0.1)
    assert fake["us"].mean().item() == pytest.approx(0.2)


def test_adversarial_terms_by_hand():
    critics = nn.ModuleDict({"us": nn.Identity()})
    real, fake = {"us": torch.full((1, 1, 2, 2), 0.9)}, {"us": torch.full((1, 1, 2, 2), 0.2)}
    assert generator_adversarial(critics, fake).item() == pytest.approx(0.8**2)
    assert discriminator_loss(critics, real, fake).item() == pytest.approx(0.1**2 + 0.2**2)


def test_critic_loss_does_not_reach_the_generator():
    critics = nn.ModuleDict({"us": nn.Conv2d(1, 1, 1)})
    fake = torch.zeros(1, 1, 2, 2, requires_grad=True)
    discriminator_loss(critics, {"us": torch.ones(1, 1, 2, 2)}, {"us": fake}).backward()
    assert fake.grad is None
