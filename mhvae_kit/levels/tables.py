"""The experiments over the slices of held-out patients, as tables."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mhvae_kit.config import Level, Modality
from mhvae_kit.errors import InputError, explain
from mhvae_kit.evaluation.predictions import (
    Dataset,
    Temperature,
    check_cases,
    check_modalities,
    check_unseen,
    inference,
    read_case,
    scored_slices,
    slice_noise,
    subset_name,
)
from mhvae_kit.levels.experiments import condition_name, drop_experts, finer_than, kl_by_unit, redraw
from mhvae_kit.levels.measures import change_spectrum, spectral_centroid
from mhvae_kit.metrics import psnr
from mhvae_kit.networks.mhvae import MHVAE, Subset

Condition = tuple[Subset, Modality]
ALL = "all"


def _slices(
    model: MHVAE, dataset: Dataset, split: str | None, cases: Iterable[str] | None, slices: Iterable[int] | None
) -> Iterator[tuple[str, int, dict[Modality, Tensor], np.ndarray]]:
    """Case, slice, its images (1, 1, H, W) and its fan (H, W) of every slice that is wanted and can be scored."""
    names = check_modalities(model, dataset)
    chosen = check_cases(dataset, split, cases)
    check_unseen(model, chosen)
    only = None if slices is None else {int(k) for k in slices}
    count = 0
    for case in chosen:
        images, fov = read_case(dataset, case, names)
        for k in scored_slices(fov)[0]:
            if only is None or int(k) in only:
                count += 1
                yield case, int(k), {m: torch.from_numpy(x[k])[None, None] for m, x in images.items()}, fov[k]
    if not count:
        raise InputError(explain("no slice is left", got=f"slices {slices}", expected="slices that the fan fills"))


def slice_generator(seed: int, case: str, index: int) -> torch.Generator:
    """The source of a slice's redraws: its own, so that results do not depend on which slices are looked at."""
    entropy = np.random.SeedSequence([int(seed), zlib.crc32(case.encode()), int(index), 1])
    return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]))


def redraw_table(
    model: MHVAE,
    dataset: Dataset,
    conditions: Iterable[Condition],
    *,
    spacing_mm: float | tuple[float, float],
    split: str | None = "test",
    cases: Iterable[str] | None = None,
    slices: Iterable[int] | None = None,
    n_draws: int = 8,
    temperature: Temperature = 1.0,
    seed: int = 0,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Redraw each level alone, on held-out slices, and measure the change inside the fan.

    Args:
        model: The model.
        dataset: The data set.
        conditions: (observed subset, target) pairs; () observes nothing.
        spacing_mm: Pixel size.
        split, cases, slices: Which slices.
        n_draws: Redraws of each level of each slice, at least 2.
        temperature, seed: Of the draws.
    Returns:
        A row per condition, case, slice and level ("all": every level redrawn): data, condition, observed, target,
        case, slice, level, std (root mean variance inside the fan), centroid_per_mm, and power, the spectrum (K,) as
        an array; then the frequencies (K,) in cycles/mm.
    """
    rows, frequency, names = [], np.empty(0), model.config.level_names
    conditions = [(tuple(observed), target) for observed, target in conditions]
    for case, k, images, fov in _slices(model, dataset, split, cases, slices):
        with inference(model) as device:
            encoding = model.encode({m: x.to(device) for m, x in images.items()})
            noise = {z: x.to(device) for z, x in slice_noise(model, seed, case, [k]).items()}
            for observed, target in conditions:
                keys = {"data": dataset.name, "condition": condition_name(observed, target)}
                keys |= {"observed": subset_name(observed), "target": target, "case": case, "slice": k}
                generator = slice_generator(seed, case, k)
                options = {"target": target, "noise": noise, "generator": generator, "observed": observed}
                for level in (*names, ALL):
                    which = names if level == ALL else (level,)
                    made = redraw(model, encoding, which, n_draws, temperature=temperature, **options)
                    made = made[:, 0, 0].double().cpu().numpy()
                    frequency, power = change_spectrum(made, fov, spacing_mm)
                    std = float(np.sqrt(made.var(0, ddof=1)[fov].mean()))
                    rows.append({**keys, "level": level, "std": std, "power": power})
    table = pd.DataFrame(rows)
    table["centroid_per_mm"] = spectral_centroid(frequency, np.stack(table["power"]))
    return table, frequency


def dropped_table(
    model: MHVAE,
    dataset: Dataset,
    conditions: Iterable[Condition],
    *,
    split: str | None = "test",
    cases: Iterable[str] | None = None,
    slices: Iterable[int] | None = None,
    temperature: Temperature = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """PSNR inside the fan with the experts of one level dropped, and with those of a level and all finer ones.

    Returns:
        A row per condition, case, slice, level and `dropped` ("this level", "this and finer"; level "none": all
        speak): psnr_fov_db.
    """
    rows, names = [], model.config.level_names
    cuts = [("none", "nothing", ())]
    cuts += [(level, "this level", (level,)) for level in names]
    cuts += [(level, "this and finer", (level, *finer_than(model, level))) for level in names]
    for case, k, images, fov in _slices(model, dataset, split, cases, slices):
        with inference(model) as device:
            encoding = model.encode({m: x.to(device) for m, x in images.items()})
            noise = {z: x.to(device) for z, x in slice_noise(model, seed, case, [k]).items()}
            for observed, target in conditions:
                keys = {"data": dataset.name, "condition": condition_name(observed, target), "case": case, "slice": k}
                options = {"noise": noise, "observed": tuple(observed), "temperature": temperature}
                for level, dropped, silent in cuts:
                    image = drop_experts(model, encoding, silent, targets=[target], **options).images[target]
                    score = psnr(image.float().cpu(), images[target], data_range=2.0, mask=fov)[0]
                    rows.append({**keys, "level": level, "dropped": dropped, "psnr_fov_db": score})
    return pd.DataFrame(rows)


def kl_table(
    model: MHVAE,
    dataset: Dataset,
    subsets: Iterable[Subset],
    *,
    split: str | None = "test",
    cases: Iterable[str] | None = None,
    slices: Iterable[int] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """KL(posterior || prior) of every unit, by observed subset and patient: the mean over slices, at temperature 1.

    Returns:
        A row per case, observed subset, level and unit: kl_nats (per image), n_dims (pixels of the unit). The KL of a
        level is the sum over its units.
    """
    subsets = [tuple(s) for s in subsets]
    parts: dict[tuple[str, str, Level], list[np.ndarray]] = {}
    for case, k, images, _ in _slices(model, dataset, split, cases, slices):
        with inference(model) as device:
            encoding = model.encode({m: x.to(device) for m, x in images.items()})
            noise = {z: x.to(device) for z, x in slice_noise(model, seed, case, [k]).items()}
            for subset in subsets:
                made = model.decode(encoding, subset, targets=(), noise=noise)
                for level in model.config.level_names:
                    nats = kl_by_unit(made.posterior[level], made.prior[level])[0].double().cpu().numpy()
                    parts.setdefault((case, subset_name(subset), level), []).append(nats)
    tables = []
    for (case, observed, level), nats in parts.items():
        n_units, *grid = model.config.latent_shape(level)
        keys: dict[str, Any] = {"data": dataset.name, "case": case, "observed": observed, "level": level}
        units = {"unit": np.arange(n_units), "n_dims": int(np.prod(grid)), "kl_nats": np.mean(nats, axis=0)}
        tables.append(pd.DataFrame(units).assign(**keys))
    return pd.concat(tables, ignore_index=True)[["data", "case", "observed", "level", "unit", "n_dims", "kl_nats"]]
