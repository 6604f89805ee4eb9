"""Scoring a model on held-out patients: per slice, then per patient, then with an interval over patients."""

from __future__ import annotations

from mhvae_kit.evaluation.authors import (
    AUTHORS_SCORES,
    authors_scores,
    authors_summary,
    evaluate_authors,
    stored_as_8_bit,
)
from mhvae_kit.evaluation.extras import METRICS, check_one_protocol, extra_scores, patient_means
from mhvae_kit.evaluation.generalisation import generalisation, generalisation_summary, generalisation_text
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
from mhvae_kit.evaluation.statistics import best_and_tied, compare_with, holm, sign_flip_p
from mhvae_kit.evaluation.subsets import gain_sentences, input_gains, mean_gains
from mhvae_kit.evaluation.table1 import Table1, assemble, published_scores
from mhvae_kit.evaluation.tables import compare, format_table, per_patient, summary
from mhvae_kit.evaluation.texture import texture, texture_of

__all__ = [
    "AUTHORS_SCORES",
    "CONSTANT",
    "METRICS",
    "ORACLE",
    "SCORES",
    "Prediction",
    "Table1",
    "all_subsets",
    "assemble",
    "authors_scores",
    "authors_summary",
    "best_and_tied",
    "check_one_protocol",
    "compare",
    "compare_with",
    "evaluate",
    "evaluate_authors",
    "extra_scores",
    "fan_mean",
    "format_table",
    "gain_sentences",
    "generalisation",
    "generalisation_summary",
    "generalisation_text",
    "holm",
    "input_gains",
    "mean_gains",
    "patient_means",
    "per_patient",
    "predictions",
    "published_scores",
    "references",
    "sign_flip_p",
    "stored_as_8_bit",
    "subset_name",
    "summary",
    "texture",
    "texture_of",
]
