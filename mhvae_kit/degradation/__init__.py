"""The degradation study: which defects of synthetic ultrasound hurt a segmentation network that was trained on it.

Light to import: what needs torch is imported by the functions that use it.
"""

from __future__ import annotations

from mhvae_kit.degradation.operators import OPERATORS, Operator, Scene, degrade
from mhvae_kit.degradation.plan import HYPOTHESES, NEGATIVE, TESTS, Condition, plan, plan_digest, plan_text, study_of

__all__ = [
    "HYPOTHESES",
    "NEGATIVE",
    "OPERATORS",
    "TESTS",
    "Condition",
    "Operator",
    "Scene",
    "degrade",
    "plan",
    "plan_digest",
    "plan_text",
    "study_of",
]
