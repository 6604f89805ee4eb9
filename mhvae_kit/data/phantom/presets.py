"""Sizes, splits and physical settings of the phantom. Everything the generator assumes is a named number here."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mhvae_kit.errors import InputError, explain

VERSION = "v1"
"""Part of the cache folder's name: a change that changes any byte of any image must change it."""

ROOT_SEED = 20230723
MODALITIES = ("t2", "cet1", "flair", "us")
LABELS = ("tumour", "fov")
KINDS = MODALITIES + LABELS
SPLITS = ("train", "validation", "test", "ood")


@dataclass(frozen=True, kw_only=True)
class PhantomPreset:
    """Geometry and number of patients of one preset.

    Attributes:
        name: "smoke", "demo" or "paper"; "demo_large" is "demo" with nine times the training patients; "demo_ood" and
            "paper_ood" are cohorts of ood patients alone, as many as "demo" has for training.
        size_px: Height and width of a slice. All presets look at the same 96 mm x 96 mm field.
        n_slices: Number of slices of a slab.
        spacing_mm: Size of the cubic voxels.
        n_cases: Patients per split.
    """

    name: str
    size_px: int
    n_slices: int
    spacing_mm: float
    n_cases: dict[str, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, D): depth along the beam, lateral, elevation."""
        return (self.size_px, self.size_px, self.n_slices)


PRESETS = {
    p.name: p
    for p in (
        PhantomPreset(
            name="smoke",
            size_px=64,
            n_slices=12,
            spacing_mm=1.5,
            n_cases={"train": 6, "validation": 2, "test": 2, "ood": 2},
        ),
        PhantomPreset(
            name="demo",
            size_px=96,
            n_slices=24,
            spacing_mm=1.0,
            n_cases={"train": 56, "validation": 6, "test": 10, "ood": 6},
        ),
        PhantomPreset(
            name="demo_large",
            size_px=96,
            n_slices=24,
            spacing_mm=1.0,
            n_cases={"train": 504, "validation": 6, "test": 10, "ood": 6},
        ),
        PhantomPreset(
            name="demo_ood",
            size_px=96,
            n_slices=24,
            spacing_mm=1.0,
            n_cases={"train": 0, "validation": 0, "test": 0, "ood": 56},
        ),
        PhantomPreset(
            name="paper_ood",
            size_px=192,
            n_slices=48,
            spacing_mm=0.5,
            n_cases={"train": 0, "validation": 0, "test": 0, "ood": 56},
        ),
        PhantomPreset(
            name="paper",
            size_px=192,
            n_slices=48,
            spacing_mm=0.5,
            n_cases={"train": 56, "validation": 6, "test": 10, "ood": 6},
        ),
    )
}


def get_preset(name: str) -> PhantomPreset:
    """The preset of that name.

    Raises:
        InputError: If there is none.
    """
    if name not in PRESETS:
        raise InputError(explain("unknown phantom preset", got=repr(name), expected=" or ".join(map(repr, PRESETS))))
    return PRESETS[name]


def case_table(preset: PhantomPreset) -> dict[str, str]:
    """Case id -> split, in order, for every patient of a preset."""
    return {f"phantom-{split}-{i:03d}": split for split in SPLITS for i in range(preset.n_cases[split])}


def case_seed(case: str) -> int:
    """Seed of a patient: a function of its split and index alone, so the order of generation cannot matter.

    The preset is left out on purpose: phantom-test-003 is the same patient at every resolution.
    """
    _, split, index = case.split("-")
    return int(np.random.SeedSequence([ROOT_SEED, SPLITS.index(split), int(index)]).generate_state(1)[0])


@dataclass(frozen=True, kw_only=True)
class MRSettings:
    """Signal of each tissue (1 = cerebrospinal fluid in T2), and what spoils the image.

    Attributes:
        t2, cet1, flair: Signal by tissue class. Tumour entries are means, each patient is drawn around them.
        noise: Standard deviation of the Gaussian noise in both channels, before the magnitude (Rician noise).
        bias: Standard deviation of the logarithm of the bias field.
        texture: Relative standard deviation of the signal within a tissue.
        heterogeneity: Standard deviation of the signal within a tumour.
        blur_mm: Standard deviation of the MR point-spread function.
    """

    t2: dict[str, float]
    cet1: dict[str, float]
    flair: dict[str, float]
    noise: float = 0.014
    bias: float = 0.06
    texture: float = 0.025
    heterogeneity: float = 0.05
    blur_mm: float = 0.45


# fmt: off
MR = MRSettings(
    t2={"grey": 0.50, "white": 0.34, "csf": 1.00, "ventricle": 1.00, "falx": 0.12, "dura": 0.12, "bone": 0.05,
        "oedema": 0.60, "tumour": 0.73, "rim": 0.70, "cyst": 0.97, "calcification": 0.10},
    cet1={"grey": 0.46, "white": 0.60, "csf": 0.16, "ventricle": 0.14, "falx": 0.90, "dura": 0.90, "bone": 0.06,
          "oedema": 0.42, "tumour": 0.50, "rim": 1.00, "cyst": 0.20, "calcification": 0.15},
    flair={"grey": 0.60, "white": 0.45, "csf": 0.10, "ventricle": 0.07, "falx": 0.20, "dura": 0.20, "bone": 0.04,
           "oedema": 1.00, "tumour": 0.78, "rim": 0.82, "cyst": 0.24, "calcification": 0.10},
)
MR_OOD = replace(
    MR,
    t2=MR.t2 | {"grey": 0.58, "white": 0.46, "oedema": 0.68, "tumour": 0.76, "rim": 0.74, "dura": 0.2, "falx": 0.2},
    cet1=MR.cet1 | {"grey": 0.52, "white": 0.58, "csf": 0.24, "rim": 0.90},
    flair=MR.flair | {"grey": 0.66, "white": 0.56, "csf": 0.16, "oedema": 0.92},
    noise=0.04, bias=0.16, texture=0.03, blur_mm=0.9,
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class USSettings:
    """The ultrasound machine and the acoustic properties of the tissues.

    Lengths that follow the point-spread function are in pixels of the preset, so that speckle stays resolved by the
    displayed grid at every resolution; see `ultrasound.point_spread`.

    Attributes:
        echo_db: Mean backscatter of each tissue in dB relative to white matter.
        impedance: Acoustic impedance in MRayl.
        attenuation_db_mm: One-way attenuation in dB per mm at the probe's frequency.
        n_looks: Steered looks averaged after envelope detection.
        look_spacing: Lateral carrier between neighbouring looks, in 1 / (standard deviation of the lateral
            point-spread function): 2 makes neighbouring looks nearly independent.
        steering_deg: Largest steering angle; acts on specular echoes.
        axial_fwhm_px, lateral_fwhm_px, elevation_fwhm_px: Width of the amplitude point-spread function at the focus.
        lateral_growth: Added lateral width per mm of distance to the focus, relative to the width at the focus.
        focus_mm: Depth of the focus.
        heterogeneity_db: Standard deviation of the echo within a tumour; bright in T2 = bright here.
        specular_gain: Amplitude of a specular echo per relative impedance step; 1 = white matter's diffuse echo.
        directivity: Power of the cosine between the beam and the normal of an interface.
        noise_db: Electronic noise at the probe, relative to white matter; the gain compensation lifts it with depth.
        compensated_db_mm: One-way attenuation the time-gain compensation assumes.
        max_gain_db: Largest gain of the compensation.
        dynamic_range_db: Range shown after log compression.
        reference_db: Level of white matter's echo below the brightest displayed value, in dB.
    """

    echo_db: dict[str, float]
    impedance: dict[str, float]
    attenuation_db_mm: dict[str, float]
    n_looks: int = 4
    look_spacing: float = 1.2
    steering_deg: float = 9.0
    axial_fwhm_px: float = 1.7
    lateral_fwhm_px: float = 2.3
    elevation_fwhm_px: float = 2.5
    lateral_growth: float = 0.008
    focus_mm: float = 35.0
    heterogeneity_db: float = 1.5
    specular_gain: float = 22.0
    directivity: float = 2.0
    noise_db: float = -44.0
    compensated_db_mm: float = 0.215
    max_gain_db: float = 60.0
    dynamic_range_db: float = 40.0
    reference_db: float = 22.0


# fmt: off
US = USSettings(
    echo_db={"grey": -4.0, "white": 0.0, "csf": 9.0, "ventricle": -24.0, "falx": 12.0, "dura": 12.0, "bone": 8.0,
             "oedema": 3.0, "tumour": 7.0, "rim": 8.0, "cyst": -22.0, "calcification": 16.0},
    impedance={"grey": 1.60, "white": 1.63, "csf": 1.53, "ventricle": 1.53, "falx": 1.80, "dura": 1.80, "bone": 2.40,
               "oedema": 1.61, "tumour": 1.66, "rim": 1.70, "cyst": 1.53, "calcification": 2.40},
    attenuation_db_mm={"grey": 0.21, "white": 0.25, "csf": 0.10, "ventricle": 0.02, "falx": 0.55, "dura": 0.35,
                       "bone": 1.00, "oedema": 0.23, "tumour": 0.30, "rim": 0.32, "cyst": 0.03,
                       "calcification": 2.50},
)
US_OOD = replace(
    US, axial_fwhm_px=2.4, lateral_fwhm_px=3.2, noise_db=-36.0, compensated_db_mm=0.17, dynamic_range_db=50.0,
    reference_db=27.0, n_looks=3,
)
# fmt: on


def mr_settings(split: str) -> MRSettings:
    """MR settings of a split: the out-of-distribution split has another contrast, resolution, noise and bias field."""
    return MR_OOD if split == "ood" else MR


def us_settings(split: str) -> USSettings:
    """Ultrasound settings of a split."""
    return US_OOD if split == "ood" else US
