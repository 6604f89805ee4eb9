"""Figures of the kit. Every function returns a `matplotlib.figure.Figure` and never touches pyplot, so figures can be
made in any thread; `show` displays one with alternative text, `save` writes PNG and CSV.

`data` is a required keyword of every figure: what the images or numbers are of. It stands in the title, so the word
phantom is on every figure of phantom data.
"""

from __future__ import annotations

from mhvae_kit.figures.curves import (
    envelope_histogram,
    score_intervals,
    spectrum_plot,
)
from mhvae_kit.figures.degradation import dose_response, metric_forest, metric_scatter, route_intervals, size_cliff
from mhvae_kit.figures.degradation_sheet import DefectRow, DoseCell, surgeon_sheet
from mhvae_kit.figures.divergence import kl_estimates
from mhvae_kit.figures.experts import (
    Factors,
    level_factors,
    product_ellipses,
    product_panels,
    product_table,
    rule_curves,
)
from mhvae_kit.figures.images import SynthesisRow, case_grid, level_strip, synthesis_grid
from mhvae_kit.figures.output import png_bytes, save, show
from mhvae_kit.figures.registration import RegistrationRow, registration_grid
from mhvae_kit.figures.style import MODALITY_COLOURS, level_colours, modality_colour, new_figure
from mhvae_kit.figures.training_curves import loss_curves

__all__ = [
    "MODALITY_COLOURS",
    "DefectRow",
    "DoseCell",
    "Factors",
    "RegistrationRow",
    "SynthesisRow",
    "case_grid",
    "dose_response",
    "envelope_histogram",
    "kl_estimates",
    "level_colours",
    "level_factors",
    "level_strip",
    "loss_curves",
    "metric_forest",
    "metric_scatter",
    "modality_colour",
    "new_figure",
    "png_bytes",
    "product_ellipses",
    "product_panels",
    "product_table",
    "registration_grid",
    "route_intervals",
    "rule_curves",
    "save",
    "score_intervals",
    "show",
    "size_cliff",
    "spectrum_plot",
    "surgeon_sheet",
    "synthesis_grid",
]
