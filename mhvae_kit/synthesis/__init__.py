"""Volumes in, volumes out: synthetic images as NIfTI beside the reader's own, slice by slice."""

from __future__ import annotations

from mhvae_kit.synthesis.cases import Case, find_cases, phantom_cases, synthesize_cases
from mhvae_kit.synthesis.volume import SynthesizedVolume, synthesize_volume

__all__ = ["Case", "SynthesizedVolume", "find_cases", "phantom_cases", "synthesize_cases", "synthesize_volume"]
