"""Is the phantom a fair stand-in? Speckle statistics, MR contrast and the score of an oracle, each with its target."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from mhvae_kit.errors import InputError, explain

from .anatomy import TISSUES
from .atlas import load_atlas
from .dataset import PhantomDataset
from .fields import Grid
from .generate import N_ORACLE_DRAWS, make_oracle, make_patient
from .presets import get_preset, us_settings
from .tumour import TUMOUR_TISSUES
from .ultrasound import Fan, Scan, make_scan, speckle_envelopes

RAYLEIGH_SNR = float(np.sqrt(np.pi / (4 - np.pi)))
"""Mean over standard deviation of a Rayleigh envelope: 1.913."""


def speckle_envelope_snr(preset: str = "demo", n_draws: int = 4, seed: int = 0) -> dict[str, float]:
    """Envelope statistics of fully developed phantom speckle in a homogeneous medium, before log compression.

    Args:
        preset: Geometry, hence width of the point-spread function.
        n_draws: Independent volumes of speckle.
        seed: Seed of the scatterers.
    Returns:
        "one_look": mean / standard deviation of one look (target 1.91 ± 0.15, the Rayleigh value is 1.913);
        "compounded": the same after averaging the looks; "look_correlation": correlation of neighbouring looks;
        "rayleigh": the theoretical value.
    """
    scan = _homogeneous(preset)
    rng = np.random.default_rng(seed)
    with threadpool_limits(limits=1):
        looks = np.stack([speckle_envelopes(rng, scan) for _ in range(n_draws)], axis=1)
    looks = looks[:, :, 8:-8, 8:-8]  # away from the borders, where the point-spread function is cut
    single, compound = looks[0], looks.mean(axis=0)
    return {
        "one_look": float(single.mean() / single.std()),
        "compounded": float(compound.mean() / compound.std()),
        "look_correlation": float(np.corrcoef(looks[0].ravel(), looks[1].ravel())[0, 1]),
        "rayleigh": RAYLEIGH_SNR,
    }


def _homogeneous(preset: str) -> Scan:
    """A scan of uniform white matter without attenuation, interfaces or electronic noise."""
    geometry = get_preset(preset)
    grid = Grid(geometry.shape, geometry.spacing_mm)
    maps = {tissue: np.zeros(grid.shape, dtype=np.float32) for tissue in (*TISSUES, *TUMOUR_TISSUES)}
    maps["white"] += 1
    settings = us_settings("train")
    settings = replace(
        settings,
        attenuation_db_mm=dict.fromkeys(settings.attenuation_db_mm, 0.0),
        compensated_db_mm=0.0,
        noise_db=-200.0,
    )
    nothing = np.zeros(grid.shape, dtype=np.float32)
    return make_scan(maps, 0.0, nothing, 0.0, Fan(30.0, 85.0), grid, settings)


def t2_contrasts(dataset: PhantomDataset, cases: Iterable[str] | None = None) -> pd.DataFrame:
    """Mean displayed level (1..255) of pure voxels of each tissue in the phantom images.

    Args:
        dataset: The phantom.
        cases: Which patients; None for up to 8 of the training split (or of all, if it is not loaded).
    Returns:
        Index "csf", "tumour", "grey", "white", then the others; columns n_voxels, t2, cet1, flair, us (NaN
        for a tissue without a pure voxel). The target is a
        falling "t2" over the first four rows.
    """
    atlas, preset = load_atlas(dataset.root.parent), get_preset(dataset.preset)
    sums: dict[str, np.ndarray] = {}
    for case in _cases(dataset, cases, 8):
        patient = make_patient(case, preset, atlas)
        for tissue, share in patient.maps.items():
            pure = (share > 0.9) & (dataset.volume(case, "fov") > 0)
            values = [int(pure.sum()), *(dataset.volume(case, m)[pure].sum(dtype=float) for m in dataset.modalities)]
            sums[tissue] = sums.get(tissue, 0) + np.array(values, dtype=float)
    order = ["csf", "tumour", "grey", "white", *(t for t in sums if t not in ("csf", "tumour", "grey", "white"))]
    table = pd.DataFrame([sums[t] for t in order], index=order, columns=["n_voxels", *dataset.modalities])
    table[list(dataset.modalities)] = table[list(dataset.modalities)].div(table["n_voxels"].replace(0, np.nan), axis=0)
    return table.astype({"n_voxels": int}).rename_axis("tissue")


def constant_level(dataset: PhantomDataset, modality: str = "us", split: str = "train") -> float:
    """The best constant prediction: mean of the modality inside the fan over a split, in [-1, 1]."""
    total, count = 0.0, 0
    for case in dataset.case_ids(split):
        inside = dataset.volume(case, "fov") > 0
        total += float(dataset.volume(case, modality)[inside].sum(dtype=np.int64))
        count += int(inside.sum())
    if not count:
        raise InputError(explain(f"no case of split {split!r} is loaded", mend="load that split of the dataset first"))
    return total / count / 127.5 - 1.0


def oracle_scores(
    dataset: PhantomDataset, cases: Iterable[str] | None = None, draws: int = N_ORACLE_DRAWS, split: str = "test"
) -> pd.DataFrame:
    """PSNR inside the fan of the oracle and of a constant image against the phantom ultrasound, one row a patient.

    The oracle is the mean over `draws` speckle draws of the same patient, none of them the stored one. Targets: 21 to
    25 dB for the oracle, and a constant image at least 4 dB less.

    Args:
        dataset: The phantom, with its training split loaded (the constant is its mean).
        cases: Which patients; None for all of `split`.
        draws: Speckle draws of the oracle; 64 reads the kept file, another number is made afresh.
        split: Where the patients are taken from.
    Returns:
        Columns case, oracle_psnr_db, constant_psnr_db, gap_db; data range 2.
    """
    constant = constant_level(dataset)
    atlas, preset = load_atlas(dataset.root.parent), get_preset(dataset.preset)
    rows = []
    for case in dataset.case_ids(split) if cases is None else cases:
        inside = dataset.volume(case, "fov") > 0
        real = dataset.volume(case, "us")[inside].astype(np.float64) / 127.5 - 1.0
        if draws == N_ORACLE_DRAWS:
            oracle = dataset.oracle(case)
        else:
            oracle = make_oracle(make_patient(case, preset, atlas), draws)
        score = _psnr_db(oracle[inside], real)
        flat = _psnr_db(constant, real)
        rows.append({"case": case, "oracle_psnr_db": score, "constant_psnr_db": flat, "gap_db": score - flat})
    return pd.DataFrame(rows)


def _psnr_db(prediction: np.ndarray | float, real: np.ndarray) -> float:
    return float(10 * np.log10(4.0 / np.mean((real - prediction) ** 2)))


def _cases(dataset: PhantomDataset, cases: Iterable[str] | None, limit: int) -> list[str]:
    if cases is not None:
        return list(cases)
    return (dataset.case_ids("train") or dataset.case_ids())[:limit]
