"""What a step of the "mmhvae" objective minimises: every slice goes as far as its patient's images do.

All terms are means over the slices of what each slice has by itself, so a batch cut into parts, or shared by processes,
gives the same sums as a whole one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mhvae_kit.config import Modality, TrainingConfig
from mhvae_kit.losses import ElboTerms
from mhvae_kit.networks.mhvae import ObservedRows, Synthesis


def pass_shares(config: TrainingConfig, passes: Sequence[ObservedRows]) -> Tensor:
    """Weight of each pass in the loss of each slice, (P, B): they add up to 1, and one that observes nothing has none.

    Args:
        config: `joint_weight` is that of the first pass, which observes all, and `synthesis_weight` that of the last,
            which observes some of the images besides `alone`.
        passes: From `mixture_of_step`.
    """
    observes = torch.stack([torch.stack(list(rows.values())).any(0) for rows in passes]).float()
    observes[0] *= config.joint_weight
    observes[2:] *= config.synthesis_weight
    return observes / observes.sum(0)


def mixture_loss(terms: Sequence[ElboTerms], shares: Tensor, kl_weight: float) -> Tensor:
    """Mean over the slices of their passes' negative ELBO, weighted, in nats per pixel, a scalar.

    Args:
        terms: By pass; images that a slice lacks have no part in its reconstruction.
        shares: From `pass_shares`, (P, B).
        kl_weight: Of the KL against the reconstruction.
    """
    losses = [t.negative_elbo(kl_weight, share) for t, share in zip(terms, shares, strict=True)]
    return torch.stack(losses).sum()


@dataclass(frozen=True)
class SyntheticRows:
    """Images of one modality that were made from inputs without it, and what each weighs in the adversarial terms.

    Args:
        images: (n, 1, H, W); one of no weight where no slice has such an image, so that every critic has a gradient in
            every process.
        generator: (n,), weights in the generator's term; over all modalities they add up to 1.
        critic: (n,), weights in the critics' loss: 0 where the slice has no true image to hold against it.
        real: (B,), weights of the slices' true images in the critics' loss.
    """

    images: Tensor
    generator: Tensor
    critic: Tensor
    real: Tensor

    def detach(self) -> SyntheticRows:
        """The same without its graph."""
        return SyntheticRows(self.images.detach(), self.generator, self.critic, self.real)


def synthetic_rows(syntheses: Sequence[Synthesis], present: ObservedRows) -> dict[Modality, SyntheticRows]:
    """By modality, the images of all passes that observed something, but not it.

    A slice's synthetic images weigh the same in the generator's term, those of modalities that its patient lacks among
    them. A critic compares a slice's true image with the mean of its synthetic ones, and learns from slices that have
    both.

    Args:
        syntheses: By pass, with all images decoded.
        present: By modality, bool (B,): which slices have it.
    Source:
        ReubenDo/MMHVAE:train.py: its critics learn from the same images; its generator is judged on observed ones too.
    """
    observes = torch.stack([torch.stack(list(s.rows.values())).any(0) for s in syntheses])
    nothing = torch.zeros_like(observes[0])
    lacks = {m: observes & ~torch.stack([s.rows.get(m, nothing) for s in syntheses]) for m in present}
    made = {m: rows.sum(0) for m, rows in lacks.items()}
    judged = {m: present[m] & (made[m] > 0) for m in present}
    n_slices = len(nothing)
    n_made = sum(made.values())
    n_judged = sum(j.int() for j in judged.values()).clamp(min=1)
    found = {}
    for m, rows in lacks.items():
        real = judged[m] / n_judged / n_slices
        kept = rows.flatten()
        if not kept.any():
            kept = torch.arange(len(kept), device=kept.device) == 0
        found[m] = SyntheticRows(
            images=torch.cat([s.images[m] for s in syntheses])[kept],
            generator=(rows / n_made / n_slices).flatten()[kept],
            critic=(rows * real / made[m].clamp(min=1)).flatten()[kept],
            real=real,
        )
    return found


def _squared(scores: Tensor, goal: float) -> Tensor:
    """Mean squared distance of a critic's scores from a goal, by image, (n,)."""
    return (scores.float() - goal).square().flatten(1).mean(1)


def generator_by_row(critics: Mapping[str, nn.Module], fake: Mapping[Modality, SyntheticRows]) -> Tensor:
    """Least-squares GAN term of the generator, as `losses.generator_adversarial` but with a weight for each image."""
    terms = [(rows.generator * _squared(critics[m](rows.images), 1.0)).sum() for m, rows in fake.items()]
    return torch.stack(terms).sum()


def discriminator_by_row(
    critics: Mapping[str, nn.Module], real: Mapping[Modality, Tensor], fake: Mapping[Modality, SyntheticRows]
) -> Tensor:
    """Least-squares GAN loss of the critics, as `losses.discriminator_loss` but with a weight for each image."""
    terms = []
    for m, rows in fake.items():
        terms.append((rows.real * _squared(critics[m](real[m]), 1.0)).sum())
        terms.append((rows.critic * _squared(critics[m](rows.images.detach()), 0.0)).sum())
    return torch.stack(terms).sum()


def mean_error(
    syntheses: Sequence[Synthesis], images: Mapping[Modality, Tensor], present: ObservedRows, shares: Tensor
) -> Tensor:
    """Mean absolute error over a slice's passes and images, then over the slices, a scalar."""
    errors = {
        m: torch.stack([(s.images[m].float() - x).abs().mean((1, 2, 3)) for s in syntheses]) for m, x in images.items()
    }
    used = (shares > 0).float()
    total = sum((errors[m] * used).sum(0) * present[m] for m in images)
    return (total / used.sum(0) / sum(present[m].float() for m in images)).mean()
