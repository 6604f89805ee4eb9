"""One training step: the ELBO over the subsets, the adversarial term, then the critics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhvae_kit.config import Modality, Objective, TrainingConfig
from mhvae_kit.losses import discriminator_loss, elbo_terms, generator_adversarial, synthetic_images
from mhvae_kit.networks.mhvae import ObservedRows, Subset
from mhvae_kit.training.distributed import Processes
from mhvae_kit.training.mixture import (
    SyntheticRows,
    discriminator_by_row,
    generator_by_row,
    mean_error,
    mixture_loss,
    pass_shares,
    synthetic_rows,
)
from mhvae_kit.training.schedule import (
    first_step,
    kl_weight_at,
    learning_rate_at,
    mixture_of_step,
    noise_of_step,
    stage_at,
    subsets_of_step,
)
from mhvae_kit.training.state import TrainingState, check_finite

Fakes = dict[Modality, Tensor] | dict[Modality, SyntheticRows]


@dataclass(frozen=True)
class Batch:
    """One process's part of a step's slices.

    Args:
        images: By modality, (B, 1, H, W) in [-1, 1], on the training device.
        positions: Where each slice stands in the step's global batch; names its noise.
        sources: (case, slice) of each, for messages.
        present: By modality, bool (B,): which slices have it; what the others hold is background. None = all.
    """

    images: dict[Modality, Tensor]
    positions: list[int]
    sources: list[tuple[str, int]]
    present: dict[Modality, Tensor] | None = None

    def having(self) -> dict[Modality, Tensor]:
        """By modality, bool (B,): which slices have it."""
        everywhere = torch.ones(len(self.positions), dtype=torch.bool)
        return self.present or {m: everywhere.to(x.device) for m, x in self.images.items()}

    def parts(self, n: int) -> list[Batch]:
        """Cut into at most `n` batches of nearly equal size."""
        size = -(-len(self.positions) // n)
        cuts = [slice(i, i + size) for i in range(0, len(self.positions), size)]
        return [
            Batch(
                {m: x[c] for m, x in self.images.items()},
                self.positions[c],
                self.sources[c],
                {m: has[c] for m, has in self.present.items()} if self.present else None,
            )
            for c in cuts
        ]


def train_step(state: TrainingState, batch: Batch, processes: Processes, folder: Path) -> dict[str, float]:
    """Do one step of the model and, late in the budget, of its critics; returns the numbers to log.

    Raises:
        RunError: A value is not finite (the batch is saved in `folder`), or too many steps were refused.
    """
    config = state.config
    stage = stage_at(config, state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate_at(config, state.step)
    state.optimizer.zero_grad(set_to_none=True)
    mixture = config.objective == "mmhvae"
    subsets = [] if mixture else subsets_of_step(config, state.step)
    values: dict[str, float] = {}
    fakes: list[Fakes] = []
    for part in batch.parts(config.accumulate):
        share = len(part.positions) / len(batch.positions)
        passes = mixture_of_step(config, state.step, part.positions, part.having()) if mixture else subsets
        terms, fake = _backward(state, part, passes, stage, share, folder)
        fakes.append(fake)
        for name, value in terms.items():
            values[name] = values.get(name, 0.0) + share * value
    values["grad_norm"] = _apply(state, processes, batch, stage, folder)
    values["skipped"] = float(state.guard.skipped)
    values["learning_rate"] = learning_rate_at(config, state.step)
    values["kl_weight"] = kl_weight_at(config, state.step)
    values["discriminator"] = _critic_step(state, batch, fakes, processes, stage, folder)
    state.average.update(state.model, state.step)
    state.step += 1
    return values


def _backward(
    state: TrainingState,
    part: Batch,
    passes: Sequence[Subset | ObservedRows],
    stage: str,
    share: float,
    folder: Path,
) -> tuple[dict[str, float], Fakes]:
    """Forward and backward of one part of the batch; gradients add up. Returns the terms and the synthetic images."""
    config, model = state.config, state.model
    device = next(model.parameters()).device
    mixture = config.objective == "mmhvae"
    noise = noise_of_step(config, model, state.step, part.positions, len(passes), device)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        encoding = model.encode(part.images)
        syntheses = model.decode_subsets(encoding, passes, noise=noise)
        if mixture:
            fake, judge = synthetic_rows(syntheses, part.having()), generator_by_row
        else:
            fake, judge = synthetic_images(syntheses, config.model.modalities), generator_adversarial
        adversarial = None
        if stage == "adversarial":
            state.critics.requires_grad_(False)
            adversarial = judge(state.critics, fake)
            state.critics.requires_grad_(True)
    options = _loss_options(config) | ({"present": part.having()} if mixture else {})
    terms = [elbo_terms(s, scored_images(config.objective, s.observed, part.images), **options) for s in syntheses]
    weight = kl_weight_at(config, state.step)
    if mixture:
        loss = mixture_loss(terms, pass_shares(config, passes), weight)
    else:
        losses = torch.stack([t.negative_elbo(weight) for t in terms])
        shares = losses.new_tensor(pass_weights(config, passes))
        loss = (shares * losses).sum()
    if adversarial is not None:
        loss = loss + config.adversarial_weight * adversarial
    record = _record(config, part, syntheses, terms, adversarial, loss)
    check_finite(
        {k: torch.tensor(v) for k, v in record.items()},
        {"images": part.images, "sources": [list(s) for s in part.sources]},
        folder,
        stage,
        state.step,
    )
    (share * loss).backward()
    return record, {m: x.detach() for m, x in fake.items()}


def scored_images(objective: Objective, observed: Subset, images: Mapping[Modality, Tensor]) -> dict[Modality, Tensor]:
    """The images that an observed subset's ELBO asks it to reconstruct.

    Fewer images make a smaller sum, not a mean: each subset's negative ELBO stays the exact bound on the likelihood of
    the images it answers for, in nats per pixel position, and an image's error weighs the same against the KL in every
    pass. A pass with one image therefore counts about half as much as one with two, in the loss and its gradient, as
    in the sum of ELBOs that the objective is.

    Args:
        objective: "mhvae": all of them; "wu2018": the subset's own; "mmhvae": all of them, where they are present.
        observed: The subset.
        images: By modality, all images of the batch.
    Source:
        Wu & Goodman, "Multimodal Generative Models for Scalable Weakly-Supervised Learning", NeurIPS 2018;
        mhw32/multimodal-vae-public:celeba/train.py.
    """
    return {m: image for m, image in images.items() if objective != "wu2018" or m in observed}


def pass_weights(config: TrainingConfig, subsets: Sequence[Subset]) -> list[float]:
    """Weight of each observed subset's negative ELBO in the loss; they add up to 1."""
    weights = [_pass_weight(config, subset) for subset in subsets]
    return [weight / sum(weights) for weight in weights]


def _pass_weight(config: TrainingConfig, subset: Subset) -> float:
    if len(subset) == len(config.model.modalities):
        return config.joint_weight
    return 1.0 if config.alone in subset else config.synthesis_weight


def _loss_options(config: TrainingConfig) -> dict[str, Any]:
    return {
        "likelihood_scale": config.likelihood_scale,
        "reconstruction": config.reconstruction,
        "kl_estimate": config.kl_estimate,
    }


@torch.no_grad()
def _record(
    config: TrainingConfig, part: Batch, syntheses: list, terms: list, adversarial: Tensor | None, loss: Tensor
) -> dict[str, float]:
    """Numbers of one part: errors by subset and target (scored or not), KL by level of the fullest subset in nats."""
    record = {"loss": loss}
    for synthesis in syntheses:
        for modality, image in part.images.items():
            name = f"l1_{'+'.join(synthesis.observed)}_to_{modality}"
            record[name] = (synthesis.images[modality].float() - image).abs().mean()
    fullest = max(range(len(syntheses)), key=lambda i: len(syntheses[i].observed))
    kl = {f"kl_{level}": value.mean() for level, value in terms[fullest].kl.items()}
    record["kl_nats"] = torch.stack(list(kl.values())).sum()
    record.update(sorted(kl.items()))
    mixture = config.objective == "mmhvae"
    if len(config.model.modalities) > 2 or mixture:  # the subsets change with the step; a CSV needs fixed columns
        record = {k: v for k, v in record.items() if not k.startswith("l1_")}
    if mixture:
        shares = pass_shares(config, [s.rows for s in syntheses])
        record["l1"] = mean_error(syntheses, part.images, part.having(), shares)
    elif len(config.model.modalities) > 2:
        record["l1"] = torch.stack(
            [(s.images[m] - x).abs().mean() for s in syntheses for m, x in part.images.items()]
        ).mean()
    record["adversarial"] = loss.new_zeros(()) if adversarial is None else adversarial
    numbers = torch.stack([value.float() for value in record.values()]).tolist()  # a GPU is waited for once
    return dict(zip(record, numbers, strict=True))


def _apply(state: TrainingState, processes: Processes, batch: Batch, stage: str, folder: Path) -> float:
    """Average the gradients over the processes and step, unless the guard refuses. Returns the gradient norm."""
    parameters = [p for p in state.model.parameters() if p.grad is not None]
    processes.average_gradients(parameters)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    saved = {"images": batch.images, "sources": [list(s) for s in batch.sources]}
    check_finite({"gradient norm": norm}, saved, folder, stage, state.step)
    if state.guard.accepts(float(norm)):
        state.optimizer.step()
    return float(norm)


def _critic_step(
    state: TrainingState,
    batch: Batch,
    fakes: list[Fakes],
    processes: Processes,
    stage: str,
    folder: Path,
) -> float:
    """One step of the critics on this step's real and synthetic images; 0 before they start."""
    config = state.config
    if state.critic_optimizer is None or state.step < first_step(config, config.discriminator_from):
        return 0.0
    state.critic_optimizer.zero_grad(set_to_none=True)
    device = next(state.model.parameters()).device
    total = 0.0
    for part, fake in zip(batch.parts(config.accumulate), fakes, strict=True):
        share = len(part.positions) / len(batch.positions)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            judge = discriminator_by_row if config.objective == "mmhvae" else discriminator_loss
            loss = judge(state.critics, part.images, fake)
        made = {m: x.images if isinstance(x, SyntheticRows) else x for m, x in fake.items()}
        saved = {"images": part.images, "fake": made, "sources": [list(s) for s in part.sources]}
        check_finite({"discriminator loss": loss}, saved, folder, stage, state.step)
        (share * loss).backward()
        total += share * loss.item()
    processes.average_gradients(state.critics.parameters())
    state.critic_optimizer.step()
    return total
