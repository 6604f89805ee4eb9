"""Experiments on single latent levels: redraw, swap or silence one level and measure what of the image moves.

What "all other levels fixed" means. The levels are a chain, z_L to z1, and every image is decoded from z1 alone. With
the finer *latents* imposed, a change of any level but z1 cannot reach an image: its effect is exactly 0. So what is
fixed here is the finer levels' *noise*: each answers the change above it as the model says, with the same draw as
before. The draws of all levels are independent inputs of the image then, and the variance over redraws of one level
is that level's total effect in the sense of Sobol': shares that add up to 1 where levels do not interact, else to more.

Sources: total effects: Homma and Saltelli, Reliab. Eng. Syst. Saf. 52, 1996. Units that say nothing: Burda et al.,
Importance weighted autoencoders, ICLR 2016.
"""

from __future__ import annotations

from mhvae_kit.levels.experiments import (
    condition_name,
    decode_levelwise,
    drop_experts,
    finer_than,
    kl_by_unit,
    redraw,
    swap,
    traverse,
)
from mhvae_kit.levels.measures import band_power, change_spectrum, spectral_centroid, towards
from mhvae_kit.levels.tables import ALL, dropped_table, kl_table, redraw_table
from mhvae_kit.levels.verdict import (
    LAYOUT_MM,
    TEXTURE_MM,
    level_summary,
    patient_levels,
    separation,
    verdict,
    verdict_parts,
)

__all__ = [
    "ALL",
    "LAYOUT_MM",
    "TEXTURE_MM",
    "band_power",
    "change_spectrum",
    "condition_name",
    "decode_levelwise",
    "drop_experts",
    "dropped_table",
    "finer_than",
    "kl_by_unit",
    "kl_table",
    "level_summary",
    "patient_levels",
    "redraw",
    "redraw_table",
    "separation",
    "spectral_centroid",
    "swap",
    "towards",
    "traverse",
    "verdict",
    "verdict_parts",
]
