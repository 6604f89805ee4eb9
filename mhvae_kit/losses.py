"""What training minimises: the negative ELBO of each observed subset, and the adversarial terms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mhvae_kit.config import Level, Modality
from mhvae_kit.gaussian import kl_one_sample
from mhvae_kit.networks.mhvae import Synthesis

Reconstruction = Literal["laplace", "smooth_l1_sum"]
KLEstimate = Literal["closed_form", "one_sample"]


@dataclass(frozen=True)
class ElboTerms:
    """The parts of one subset's negative ELBO, each in nats per image, shape (B,).

    Args:
        reconstruction: By modality, the negative log-likelihood of the image (up to a constant for smooth_l1_sum).
        kl: By level "z1" ... "z7", KL(posterior || prior).
        n_pixels: Height times width, to express the sum per pixel.
    """

    reconstruction: dict[Modality, Tensor]
    kl: dict[Level, Tensor]
    n_pixels: int

    def negative_elbo(self, kl_weight: float = 1.0, weights: Tensor | None = None) -> Tensor:
        """Mean over the batch of reconstruction + kl_weight * KL, in nats per pixel, a scalar.

        Args:
            kl_weight: Weight of the KL.
            weights: (B,), a factor for each image's sum; None = 1.
        """
        total = sum(self.reconstruction.values()) + kl_weight * sum(self.kl.values())
        return (total if weights is None else weights * total).mean() / self.n_pixels


def elbo_terms(
    synthesis: Synthesis,
    targets: Mapping[Modality, Tensor],
    *,
    likelihood_scale: float,
    reconstruction: Reconstruction = "laplace",
    kl_estimate: KLEstimate = "closed_form",
    present: Mapping[Modality, Tensor] | None = None,
) -> ElboTerms:
    """The terms of the ELBO of one observed subset: every target image is to be reconstructed from it.

    Args:
        synthesis: From `MHVAE.decode` at temperature 1.
        targets: By modality, the true images (B, 1, H, W) in [-1, 1]; only these are scored.
        likelihood_scale: Laplace scale b: -log p(x | z1) = |x - x'| / b + log 2b per pixel.
        reconstruction: "laplace", or "smooth_l1_sum" as the authors train (b is not used).
        kl_estimate: "closed_form", or "one_sample" as the authors train.
        present: By modality, bool (B,): rows that lack the target have nothing to reconstruct; None = all have it.
    Source:
        Dorent et al., MICCAI 2023, section 2; ReubenDo/MHVAE:train.py for the alternatives.
    """
    losses = {}
    for modality, target in targets.items():
        error = synthesis.images[modality].float() - target
        if reconstruction == "laplace":
            per_pixel = error.abs() / likelihood_scale + math.log(2 * likelihood_scale)
        else:
            per_pixel = F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none")
        losses[modality] = per_pixel.flatten(1).sum(1)
        if present is not None:
            losses[modality] = torch.where(present[modality], losses[modality], 0.0)
    if kl_estimate == "closed_form":
        kl = dict(synthesis.kl)
    else:
        q, p = synthesis.posterior, synthesis.prior
        kl = {level: kl_one_sample(q[level], p[level], z) for level, z in synthesis.latents.items()}
    height, width = next(iter(targets.values())).shape[-2:]
    return ElboTerms(losses, kl, height * width)


def synthetic_images(syntheses: Sequence[Synthesis], targets: Iterable[Modality]) -> dict[Modality, Tensor]:
    """By modality, the decoded images of all subsets that did not contain it, stacked along the batch."""
    found = {m: [s.images[m] for s in syntheses if m not in s.observed and s.observed] for m in targets}
    return {m: torch.cat(images) for m, images in found.items() if images}


def generator_adversarial(critics: Mapping[str, nn.Module], fake: Mapping[Modality, Tensor]) -> Tensor:
    """Least-squares GAN term of the generator: mean (D(fake) - 1)^2, averaged over modalities, a scalar.

    Only images of modalities that were not observed are judged, so that reconstruction stays a likelihood matter.
    """
    terms = [(critics[m](image) - 1).square().mean() for m, image in fake.items()]
    return torch.stack(terms).mean()


def discriminator_loss(
    critics: Mapping[str, nn.Module], real: Mapping[Modality, Tensor], fake: Mapping[Modality, Tensor]
) -> Tensor:
    """Least-squares GAN loss of the critics: mean (D(real) - 1)^2 + mean D(fake)^2, averaged over modalities.

    Args:
        critics: One per modality.
        real: True images by modality.
        fake: Synthesised images by modality; their graph is not followed.
    """
    terms = [
        (critics[m](real[m]) - 1).square().mean() + critics[m](image.detach()).square().mean()
        for m, image in fake.items()
    ]
    return torch.stack(terms).mean()
