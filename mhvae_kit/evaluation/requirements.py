"""What a model that is worth shipping must reach on the phantom, as a table of numbers with their bounds."""

from __future__ import annotations

import pandas as pd

from mhvae_kit.errors import InputError, explain
from mhvae_kit.evaluation.predictions import subset_name
from mhvae_kit.evaluation.scoring import CONSTANT, ORACLE
from mhvae_kit.evaluation.tables import summary
from mhvae_kit.metrics import spectrum_distance_db

BELOW_ORACLE_DB = 1.5
ABOVE_CONSTANT_DB = 2.0
RECONSTRUCTION_DB = 30.0
SPECTRUM_DISTANCE_DB = 3.0
SNR_SHARE = 0.15

_SCORE = "psnr_fov_db"


def score_requirements(
    scores: pd.DataFrame, references: pd.DataFrame, *, source: str = "t2", target: str = "us"
) -> pd.DataFrame:
    """Hold a model's mean PSNR inside the fan against the oracle, a constant image and itself.

    Args:
        scores: From `evaluate` at temperature 0, with every subset of source and target, and both targets.
        references: From `references` on the same patients.
        source: The MR modality.
        target: The ultrasound modality, which the oracle predicts.
    Returns:
        A row per requirement: requirement, measured, bound (both in words with units), met (bool).
    Raises:
        InputError: A subset, a target or a reference is missing, or there are several temperatures.
    """
    mean = _means(scores)
    base = _means(references)
    both = subset_name((source, target))
    synthesis = _get(mean, source, target)
    to_oracle = _get(base, ORACLE, target) - synthesis
    to_constant = synthesis - _get(base, CONSTANT, target)
    rebuilt = min(_get(mean, both, m) for m in (source, target))
    gains = [_get(mean, both, m) - _get(mean, single, m) for m in (source, target) for single in (source, target)]
    rows = [
        _row(
            f"{source} to {target} comes near the oracle",
            f"{to_oracle:.2f} dB below it",
            f"at most {BELOW_ORACLE_DB} dB",
            to_oracle <= BELOW_ORACLE_DB,
        ),
        _row(
            f"{source} to {target} beats a constant image",
            f"{to_constant:.2f} dB above it",
            f"at least {ABOVE_CONSTANT_DB} dB",
            to_constant >= ABOVE_CONSTANT_DB,
        ),
        _row(
            "both inputs rebuild both images",
            f"{rebuilt:.2f} dB for the worse one",
            f"at least {RECONSTRUCTION_DB:.0f} dB",
            rebuilt >= RECONSTRUCTION_DB,
        ),
        _row(
            "both inputs are never worse than one",
            f"{min(gains):+.2f} dB for the smallest gain",
            "at least 0 dB",
            min(gains) >= 0,
        ),
    ]
    return pd.DataFrame(rows)


def speckle_requirements(texture: pd.DataFrame, spectra: dict, kind: str, plain: str) -> pd.DataFrame:
    """Hold sampled ultrasound's texture against the real one's.

    Args:
        texture: From `texture`, or several such tables concatenated: kind, envelope_snr.
        spectra: By kind, power spectra (N, K), with the real ones under "real".
        kind: The kind that is judged.
        plain: A kind without speckle that it must beat, such as a mean image.
    Returns:
        Rows as in `score_requirements`.
    Raises:
        InputError: A kind is missing.
    """
    missing = [k for k in ("real", kind, plain) if k not in spectra or k not in set(texture["kind"])]
    if missing:
        raise InputError(explain(f"there is no texture of {', '.join(missing)}", got=", ".join(spectra)))
    real = spectra["real"].mean(axis=0)
    distance, other = (float(spectrum_distance_db(spectra[k].mean(axis=0), real)) for k in (kind, plain))
    snr = texture.groupby("kind")["envelope_snr"].mean()
    rows = [
        _row(
            f"mean spectrum of {kind}",
            f"{distance:.1f} dB from the real one",
            f"at most {SPECTRUM_DISTANCE_DB:.0f} dB",
            distance <= SPECTRUM_DISTANCE_DB,
        ),
        _row(
            f"spectrum nearer than that of {plain}",
            f"{distance:.1f} dB against {other:.1f} dB",
            "less",
            distance < other,
        ),
        _row(
            f"envelope SNR of {kind}",
            f"{snr[kind]:.2f}, real {snr['real']:.2f}",
            f"within {SNR_SHARE:.0%}",
            abs(snr[kind] / snr["real"] - 1) <= SNR_SHARE,
        ),
    ]
    return pd.DataFrame(rows)


def _row(requirement: str, measured: str, bound: str, met: bool) -> dict[str, object]:
    return {"requirement": requirement, "measured": measured, "bound": bound, "met": bool(met)}


def _means(scores: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Mean over patients by observed subset and target."""
    table = summary(scores, n_boot=1)
    if table["temperature"].nunique() != 1:
        raise InputError(
            explain("scores of several temperatures are mixed", got=sorted(set(table["temperature"])), expected="one")
        )
    return dict(zip(zip(table["observed"], table["target"], strict=True), table[_SCORE], strict=True))


def _get(means: dict[tuple[str, str], float], observed: str, target: str) -> float:
    if (observed, target) not in means:
        known = ", ".join(f"{o} to {t}" for o, t in means)
        raise InputError(explain(f"there is no score of {observed} to {target}", got=known))
    return means[observed, target]
