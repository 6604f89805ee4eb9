"""Scoring a model on held-out patients: per slice, then per patient, then with an interval over patients."""

from __future__ import annotations

from mhvae_kit.evaluation.predictions import (
    Prediction,
    all_subsets,
    predictions,
    subset_name,
)
from mhvae_kit.evaluation.scoring import (
    CONSTANT,
    ORACLE,
    SCORES,
    evaluate,
    fan_mean,
    references,
)
from mhvae_kit.evaluation.tables import compare, format_table, per_patient, summary
from mhvae_kit.evaluation.texture import texture, texture_of

__all__ = [
    "CONSTANT",
    "ORACLE",
    "SCORES",
    "Prediction",
    "all_subsets",
    "compare",
    "evaluate",
    "fan_mean",
    "format_table",
    "per_patient",
    "predictions",
    "references",
    "subset_name",
    "summary",
    "texture",
    "texture_of",
]
