"""Single levels of one batch: redraw, swap, drop the experts of, or move one level, and decode."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from mhvae_kit.config import Level, Modality
from mhvae_kit.errors import InputError, explain
from mhvae_kit.evaluation.predictions import Temperature, subset_name
from mhvae_kit.gaussian import Gaussian, kl_divergence
from mhvae_kit.networks.mhvae import MHVAE, Encoding, Subset, Synthesis

Finer = Literal["observed", "prior"]


def condition_name(observed: Iterable[Modality], target: Modality) -> str:
    """What is made from what, in words: "us given t2", "us given nothing"."""
    return f"{target} given {subset_name(observed) or 'nothing'}"


def finer_than(model: MHVAE, level: Level) -> tuple[Level, ...]:
    """The levels below a level, coarse to fine: ("z2", "z1") for "z3"."""
    model.config.latent_shape(level)
    names = model.config.level_names
    return names[names.index(level) + 1 :]


def redraw(
    model: MHVAE,
    encoding: Encoding,
    levels: Iterable[Level],
    n: int,
    *,
    target: Modality,
    noise: Mapping[Level, Tensor],
    generator: torch.Generator,
    observed: Subset | None = None,
    temperature: Temperature = 1.0,
    impose_finer: bool = False,
) -> Tensor:
    """Draw some levels anew, n times, with the noise of all others fixed.

    Args:
        model: The model.
        encoding: Of B images.
        levels: What to redraw: one level, or all of them for the whole spread.
        n: Number of redraws.
        target: The image to decode.
        noise: The noise that stays, for every level, (B, ...) or (1, ...).
        generator: Source of the new draws.
        observed: As in `MHVAE.decode`.
        temperature: As in `MHVAE.decode`.
        impose_finer: Keep the finer levels' latents instead of their noise; then only z1 can change anything.
    Returns:
        (n, B, 1, H, W) in [-1, 1].
    """
    levels, names = tuple(levels), model.config.level_names
    unknown = [level for level in levels if level not in names]
    if unknown or not levels or n < 1:
        raise InputError(explain("nothing to redraw", got=f"levels {levels}, n={n}", expected=f"some of {names}"))
    _need_noise(model, noise, temperature)
    subset = encoding.modalities if observed is None else tuple(observed)
    device = next(iter(noise.values())).device if noise else None
    fixed = {k: _tile(z, n) for k, z in noise.items()}
    imposed = {}
    if impose_finer:
        finest = max(levels, key=names.index)
        before = model.decode(encoding, subset, temperature, targets=(), noise=noise).latents
        imposed = {k: _tile(before[k], n) for k in finer_than(model, finest)}
    fresh = model.draw_noise(n * encoding.batch_size, generator, device=device, only=levels)
    options = {"targets": [target], "noise": {**fixed, **fresh}, "levels": imposed}
    made = model.decode_subsets(encoding, [subset] * n, temperature, **options)
    return torch.stack([one.images[target] for one in made])


def _tile(x: Tensor, n: int) -> Tensor:
    """The batch n times: rows 0 ... B-1, then 0 ... B-1 again; a batch of one is broadcast by the model itself."""
    return x if len(x) == 1 else x.repeat(n, *[1] * (x.ndim - 1))


def decode_levelwise(
    model: MHVAE,
    encoding: Encoding,
    speaking: Mapping[Level, Subset],
    *,
    noise: Mapping[Level, Tensor],
    temperature: Temperature = 1.0,
    targets: Iterable[Modality] | None = None,
    levels: Mapping[Level, Tensor] | None = None,
) -> Synthesis:
    """`MHVAE.decode` with another observed subset at each level; () leaves a level to its prior.

    Args:
        model: The model.
        encoding: Of B images.
        speaking: By level, whose experts take part there; a level that is not named hears every encoded modality.
        noise: The noise of every level, so that what is drawn does not depend on who speaks.
        temperature, targets, levels: As in `MHVAE.decode`.
    Returns:
        As `MHVAE.decode`; prior, posterior and experts of each level are those with the modalities speaking there.
    """
    for level in speaking:
        model.config.latent_shape(level)
    _need_noise(model, noise, temperature)
    imposed = dict(levels or {})
    prior, posterior, experts = {}, {}, {}
    made = None
    # One pass for each run of levels with the same subset; what is decided above is imposed on the next pass.
    for subset, run in groupby(model.config.level_names, key=lambda k: tuple(speaking.get(k, encoding.modalities))):
        run = list(run)
        wanted = targets if run[-1] == "z1" else ()
        made = model.decode(encoding, subset, temperature, wanted, noise=noise, levels=imposed)
        for level in run:
            imposed[level] = made.latents[level]
            prior[level], posterior[level] = made.prior[level], made.posterior[level]
            experts[level] = made.experts[level]
    heard = tuple(m for m in encoding.modalities if any(m in found for found in experts.values()))
    return dataclasses.replace(made, prior=prior, posterior=posterior, experts=experts, observed=heard)


def drop_experts(
    model: MHVAE,
    encoding: Encoding,
    levels: Iterable[Level],
    *,
    noise: Mapping[Level, Tensor],
    observed: Subset | None = None,
    temperature: Temperature = 1.0,
    targets: Iterable[Modality] | None = None,
    given: Mapping[Level, Tensor] | None = None,
) -> Synthesis:
    """Drop all experts of some levels and let the prior speak there; the other levels hear `observed`.

    `given` are latents to impose; all else is as in `decode_levelwise`.
    """
    subset = encoding.modalities if observed is None else tuple(observed)
    silent = set(levels)
    for level in silent:
        model.config.latent_shape(level)
    speaking = {level: () if level in silent else subset for level in model.config.level_names}
    options = {"noise": noise, "temperature": temperature, "targets": targets, "levels": given}
    return decode_levelwise(model, encoding, speaking, **options)


def swap(
    model: MHVAE,
    encoding: Encoding,
    other: Encoding,
    level: Level,
    *,
    target: Modality,
    noise: Mapping[Level, Tensor],
    observed: Subset | None = None,
    temperature: Temperature = 1.0,
    finer: Finer = "observed",
) -> Tensor:
    """Decode a patient with one level taken from another patient; both see the same noise.

    As the levels are a chain, this is also what becomes of the image when all coarser levels are swapped too.

    Args:
        model, target, noise, observed, temperature: As in `redraw`.
        encoding: Whose images speak below the level.
        other: Whose latent is put in.
        level: The level that is swapped.
        finer: Who speaks at the finer levels: the patient's own "observed" images, or nobody, the "prior".
    Returns:
        (B, 1, H, W).
    """
    if finer not in ("observed", "prior"):
        raise InputError(explain("unknown choice for the finer levels", got=repr(finer), expected="observed or prior"))
    foreign = model.decode(other, observed, temperature, targets=(), noise=noise).latents[level]
    silent = finer_than(model, level) if finer == "prior" else ()
    options = {"noise": noise, "observed": observed, "temperature": temperature, "targets": [target]}
    return drop_experts(model, encoding, silent, given={level: foreign}, **options).images[target]


def traverse(
    model: MHVAE,
    encoding: Encoding,
    level: Level,
    unit: int,
    steps: Sequence[float],
    *,
    target: Modality,
    noise: Mapping[Level, Tensor],
    observed: Subset | None = None,
    temperature: Temperature = 0.0,
    finer: Finer = "observed",
) -> Tensor:
    """Move one unit of a level (a channel of its map, or an entry of the coarsest vector) and decode.

    Args:
        steps: Offsets in standard deviations of the prior, which are taken where the unit is, pixel by pixel.
        model, encoding, level, target, noise, observed, temperature, finer: As in `swap`.
    Returns:
        (len(steps), B, 1, H, W).
    """
    size = model.config.latent_shape(level)[0]
    if not 0 <= unit < size:
        raise InputError(explain(f"{level} has no such unit", got=unit, expected=f"0 to {size - 1}"))
    before = model.decode(encoding, observed, temperature, targets=(), noise=noise)
    silent = finer_than(model, level) if finer == "prior" else ()
    options = {"noise": noise, "observed": observed, "temperature": temperature, "targets": [target]}
    made = []
    for step in steps:
        z = before.latents[level].clone()
        z[:, unit] += step * before.prior[level].std[:, unit]
        made.append(drop_experts(model, encoding, silent, given={level: z}, **options).images[target])
    return torch.stack(made)


def kl_by_unit(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) of each unit, in nats summed over its pixels: (B, C) of Gaussians (B, C, H, W) or (B, C)."""
    units = q.mean.shape[:2]
    flat = [Gaussian(g.mean.reshape(units.numel(), -1), g.log_std.reshape(units.numel(), -1)) for g in (q, p)]
    return kl_divergence(*flat).unflatten(0, units)


def _need_noise(model: MHVAE, noise: Mapping[Level, Tensor], temperature: Temperature) -> None:
    """Refuse noise that lacks a level: several passes would each draw their own."""
    lacking = [level for level in model.config.level_names if level not in noise]
    if lacking and temperature != 0:
        raise InputError(explain("noise lacks levels", got=", ".join(lacking), mend="use model.draw_noise(n)"))
