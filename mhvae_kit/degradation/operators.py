"""Controlled defects of training images: each an operator with one dose from 0 (nothing) to 1 (as bad as it gets).

An operator works on one patient's volume (D, H, W) in [-1, 1] with its label and fan. It draws its parameters first,
from the dose and a generator, and returns them, so that a record holds all that was done; then it applies them. At dose
0 every operator returns the images as they are. Sizes are in millimetres, so that presets agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mhvae_kit.degradation import anatomical, appearance
from mhvae_kit.degradation.geometry import framed
from mhvae_kit.errors import InputError, explain

Parameters = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """One patient's synthetic slices before a defect.

    Args:
        images: (D, H, W) float32 in [-1, 1], -1 outside the fan.
        labels: (D, H, W) bool, the tumour.
        fov: (D, H, W) bool, the fan.
        spacing_mm: Pixel size.
    """

    images: np.ndarray
    labels: np.ndarray
    fov: np.ndarray
    spacing_mm: float


@dataclass(frozen=True)
class Operator:
    """A defect.

    Args:
        name: As in run ids and tables.
        title: As in figures.
        full_dose: What dose 1 is, in words with units.
        kind: "texture", "intensity", "geometry" or "content".
        draw: (generator, dose, scene) -> parameters, as JSON types or arrays of them.
        apply: (scene, parameters) -> images, not yet clipped or framed.
    """

    name: str
    title: str
    full_dose: str
    kind: str
    draw: Callable[[np.random.Generator, float, Scene], Parameters]
    apply: Callable[[Scene, Parameters], np.ndarray]


_OPERATORS = (
    Operator("blur", "blur", "Gaussian of 3 mm: no speckle left", "texture", appearance.draw_blur, appearance.blur),
    Operator(
        "excess-speckle",
        "excess speckle",
        "a second speckle pattern of 8 dB spread on top",
        "texture",
        appearance.draw_excess_speckle,
        appearance.excess_speckle,
    ),
    Operator(
        "speckle-size",
        "speckle of wrong size",
        "grain four times as wide",
        "texture",
        appearance.draw_speckle_size,
        appearance.speckle_size,
    ),
    Operator(
        "gain",
        "intensity shift",
        "grey levels off by 0.6 of a range of 2, up or down by patient",
        "intensity",
        appearance.draw_gain,
        appearance.gain,
    ),
    Operator(
        "attenuation",
        "wrong attenuation",
        "1.2 of a range of 2 between the top and the bottom of the fan, either way by patient",
        "intensity",
        appearance.draw_attenuation,
        appearance.attenuation,
    ),
    Operator(
        "quantisation",
        "quantisation",
        "two grey levels",
        "intensity",
        appearance.draw_quantisation,
        appearance.quantisation,
    ),
    Operator(
        "rigid",
        "rigid misplacement",
        "image 10 mm and 10 degrees off its label",
        "geometry",
        anatomical.draw_rigid,
        anatomical.displaced,
    ),
    Operator(
        "elastic",
        "elastic misplacement",
        "image off its label by a smooth field of 8 mm (root mean square over the slab)",
        "geometry",
        anatomical.draw_elastic,
        anatomical.elastic,
    ),
    Operator(
        "contrast-lost",
        "tumour contrast lost",
        "tumour at the mean level of its surroundings",
        "content",
        anatomical.draw_dose,
        anatomical.contrast_lost,
    ),
    Operator(
        "border-blurred",
        "tumour border blurred",
        "border smoothed over 6 mm",
        "content",
        anatomical.draw_dose,
        anatomical.border_blurred,
    ),
    Operator(
        "border-shifted",
        "tumour border shifted",
        "image pushed by 5 mm at the tumour's border, outwards or inwards by patient",
        "content",
        anatomical.draw_border_shift,
        anatomical.border_shifted,
    ),
    Operator(
        "hallucinated",
        "hallucinated echoes",
        "eight bright false masses a patient",
        "content",
        anatomical.draw_hallucinated,
        anatomical.hallucinated,
    ),
    Operator(
        "shadows-missing",
        "missing shadows",
        "what lies in a shadow as bright as the mean at its depth",
        "content",
        anatomical.draw_dose,
        anatomical.shadows_missing,
    ),
)
OPERATORS: dict[str, Operator] = {o.name: o for o in _OPERATORS}
"""By name."""


def degrade(name: str, dose: float, scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, Parameters]:
    """Apply a defect to one patient.

    Args:
        name: Of the operator.
        dose: From 0 to 1.
        scene: The patient; not modified.
        rng: Source of what the operator draws.
    Returns:
        The images (D, H, W) float32 in [-1, 1], -1 outside the fan; and the parameters that were drawn.
    Raises:
        InputError: Unknown operator, or a dose outside 0 to 1.
    """
    if name not in OPERATORS:
        raise InputError(explain("unknown defect", got=repr(name), expected="one of " + ", ".join(OPERATORS)))
    if isinstance(dose, bool) or not isinstance(dose, (int, float)) or not 0.0 <= dose <= 1.0:
        raise InputError(explain(f"the dose of {name} is not usable", got=repr(dose), expected="a number from 0 to 1"))
    operator = OPERATORS[name]
    parameters = operator.draw(rng, float(dose), scene)
    if dose == 0:
        return scene.images.copy(), parameters
    return framed(operator.apply(scene, parameters), scene.fov), parameters
