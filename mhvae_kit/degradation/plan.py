"""The plan of the degradation study, fixed before any cell is run: hypotheses, conditions, doses, seeds and tests.

Light to import, as the Snakefile reads it. Its digest is kept by every cell and by the notebook, so that a plan that
was changed after the fact shows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mhvae_kit.degradation import anatomical, appearance
from mhvae_kit.degradation.operators import OPERATORS
from mhvae_kit.errors import InputError, explain
from mhvae_kit.table1 import ROWS

Group = Literal["defect", "route"]

BASELINE = "synthetic"
"""The clean synthetic images that every defect is put on: one sample of the model from T2 at `Study.temperature`."""
UPPER_BOUND, TRIVIAL = "real", "t2-as-us"
AGES = (0.05, 0.2, 0.5, 1.0)
ERRORS_MM = (1, 2, 4, 8)
TABLE1_ROWS = tuple(name for name, row in ROWS.items() if row.kind != "references")
HIGHEST_TEMPERATURE = 2.0
POINTS = 0.05
"""The loss of Dice that counts: five points."""

SECONDS_PER_STEP = 0.043
SECONDS_PER_CELL = 15.0
PATIENT_SPECIFIC_SHARE = 0.25
"""Steps of a network for one patient, relative to those of a network for all."""

HYPOTHESES: tuple[tuple[str, str], ...] = (
    ("H1", "At full dose, defects of place and content (rigid, elastic, contrast lost, border blurred or shifted) each "
     "lower Dice by at least five points."),
    ("H2", "Blur, speckle of wrong size and quantisation at half dose each lower Dice by less than five points."),
    ("H3", "Over all defects, the error of the tumour's contrast ranks the loss of Dice better than PSNR does."),
    ("H4", "The synthetic route lies between T2 taken as ultrasound and real ultrasound, apart from both."),
    ("H5", "Labels propagated with a registration error of 4 mm cost more Dice than training on synthetic images."),
)  # fmt: skip
NEGATIVE = (
    "No metric foresees Dice if the 95 % interval of its Spearman correlation, resampled over defects, holds 0 for all "
    "of them. A hypothesis counts as refuted where its interval over patients lies wholly on the other side, and as "
    "undecided where it holds the limit."
)
TESTS = (
    "Unit: the test patient, mean over seeds. Intervals: 95 % bootstrap over patients. Differences from the clean "
    "synthetic images: paired sign flips, Holm's correction over the conditions. Metrics: Spearman's rho between "
    "degraded training images and Dice, over all cells with defects as resampled clusters, and within each defect; a "
    "mixed model of Dice on each metric with the defect as random intercept. LPIPS where its weights are at hand."
)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Sizes of the study at one preset.

    Attributes:
        phantom: Cohort with training and test patients.
        ood_phantom: Cohort of patients with MR alone and other contrast.
        n_train, n_test: How many patients; None for all.
        doses: Of every operator, besides 0.
        seeds: Of the segmentation training.
        steps: Of one segmentation training.
        model, model_without_gan: What makes the synthetic images: a shipped model, a model or run folder, or
            "table1:" and a row of Table 1 at that preset.
        temperature: Of the clean synthetic images.
        sweeps: Virtual sweeps a patient of the patient-specific route.
        ages: Whether the route over checkpoint age is part of it; it needs a training of its own.
        rows: Whether the rows of Table 1 are part of it; they must be trained.
        only: Conditions that are run; None for all.
    """

    phantom: str
    ood_phantom: str
    n_train: int | None = None
    n_test: int | None = None
    doses: tuple[float, ...] = (0.5, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 600
    model: str = "demo-gan"
    model_without_gan: str = "demo"
    temperature: float = 0.7
    sweeps: int = 4
    ages: bool = True
    rows: bool = True
    only: tuple[str, ...] | None = None


STUDIES: dict[str, Study] = {
    "smoke": Study(
        phantom="demo",
        ood_phantom="demo",
        n_train=4,
        n_test=2,
        doses=(1.0,),
        seeds=(0, 1),
        steps=4,
        sweeps=1,
        ages=False,
        rows=False,
        only=("real", "t2-as-us", "synthetic", "blur", "rigid", "labels-affine-4mm"),
    ),
    "demo": Study(phantom="demo", ood_phantom="demo_ood"),
    # No weights of that size are shipped; those of its Table 1 are taken.
    "paper": Study(
        phantom="paper",
        ood_phantom="paper_ood",
        model="table1:mhvae-gan",
        model_without_gan="table1:mhvae",
        doses=(0.1, 0.25, 0.5, 0.75, 1.0),
        seeds=(0, 1, 2, 3, 4),
        steps=4000,
        sweeps=16,
    ),
}


@dataclass(frozen=True)
class Condition:
    """One set of training images, that is one cell of the study.

    Args:
        name: Of the route or the defect.
        dose: From 0 to 1; None for a route.
        group: "defect" or "route".
        title: As in figures.
        needs: A row of Table 1 whose model makes the images, "training" for checkpoint ages, or None.
    """

    name: str
    dose: float | None
    group: Group
    title: str
    needs: str | None = None

    @property
    def key(self) -> str:
        """As in run ids: the name, and the dose in hundredths."""
        return self.name if self.dose is None else f"{self.name}-{round(100 * self.dose):03d}"


def study_of(preset: str) -> Study:
    """The study at a preset.

    Raises:
        InputError: The preset is unknown.
    """
    if preset not in STUDIES:
        raise InputError(explain("unknown preset", got=repr(preset), expected="one of " + ", ".join(STUDIES)))
    return STUDIES[preset]


def row_of(model: str) -> str | None:
    """The row of Table 1 that a model is; None for any other."""
    return model.removeprefix("table1:") if model.startswith("table1:") else None


def routes(study: Study) -> list[Condition]:
    """Ways to training images for segmentation that people use, with their floor and ceiling."""

    def route(name: str, title: str, needs: str | None = None) -> Condition:
        return Condition(name, None, "route", title, needs)

    needs = row_of(study.model)
    found = [
        route(UPPER_BOUND, "real ultrasound, true labels"),
        route(TRIVIAL, "T2 taken as ultrasound"),
        route(BASELINE, f"synthetic from T2, τ = {study.temperature:g}", needs),
        route("synthetic-tau-100", "synthetic from T2, τ = 1", needs),
        route("synthetic-t2-us", "synthetic from T2 and ultrasound", needs),
        route("mr-cohort", "synthetic from an MR-only cohort", needs),
        route("patient-specific", "synthetic, one network a patient", needs),
    ]
    for kind, words in (("affine", "affine"), ("deformed", "affine and deformation")):
        found += [route(f"labels-{kind}-{mm}mm", f"real, labels off by {mm} mm ({words})") for mm in ERRORS_MM]
    if study.rows:
        found += [route(f"table1-{name}", f"synthetic by {ROWS[name].title}", name) for name in TABLE1_ROWS]
    return found


def defects(study: Study) -> list[Condition]:
    """Every defect at every dose; dose 0 is `BASELINE`, except of checkpoint age, which has its own."""
    needs = row_of(study.model)
    titles = {n: o.title for n, o in OPERATORS.items()}
    titles |= {"temperature-low": "temperature too low", "temperature-high": "temperature too high"}
    found = [Condition(n, d, "defect", title, needs) for n, title in titles.items() for d in study.doses]
    found += [Condition("gan-off", 1.0, "defect", "no adversarial term", row_of(study.model_without_gan))]
    if study.ages:
        found += [Condition("age", round(1.0 - a, 2), "defect", "young checkpoint", "training") for a in AGES]
    return found


def plan(preset: str, only: str | Iterable[str] | None = None) -> list[Condition]:
    """All conditions of the study at a preset, routes first.

    Args:
        preset: smoke, demo or paper.
        only: Names to keep, as a list or with commas between them; `BASELINE` stays, as doses start from it.
    Raises:
        InputError: An unknown preset or name.
    """
    study = study_of(preset)
    every = routes(study) + defects(study)
    known = list(dict.fromkeys(c.name for c in every))
    kept = set(known if study.only is None else study.only)
    if only:
        asked = [n.strip() for n in only.split(",") if n.strip()] if isinstance(only, str) else list(only)
        strange = [n for n in asked if n not in known]
        if strange:
            raise InputError(
                explain("unknown conditions", got=", ".join(strange), expected="some of " + ", ".join(known))
            )
        kept = {*asked, BASELINE}
    return [c for c in every if c.name in kept]


def find_condition(preset: str, name: str, dose: float | None = None) -> Condition:
    """A condition of the plan by its name and dose.

    Raises:
        InputError: There is none; for a known name the message lists its doses.
    """
    study = study_of(preset)
    every = routes(study) + defects(study)
    named = [c for c in every if c.name == name]
    if not named:
        known = ", ".join(dict.fromkeys(c.name for c in every))
        raise InputError(explain("unknown condition", got=repr(name), expected=f"one of {known}"))
    for condition in named:
        if condition.dose == dose or (
            dose is not None and condition.dose is not None and abs(condition.dose - dose) < 1e-6
        ):
            return condition
    expected = "no dose" if named[0].dose is None else "dose " + ", ".join(f"{c.dose:g}" for c in named)
    raise InputError(explain(f"{name} has no such dose in the plan of {preset}", got=dose, expected=expected))


def find_key(preset: str, key: str) -> Condition:
    """A condition by its key, as in run ids."""
    study = study_of(preset)
    for condition in routes(study) + defects(study):
        if condition.key == key:
            return condition
    raise InputError(explain("unknown cell of the degradation study", got=repr(key), expected="a key of the plan"))


def plan_digest(preset: str) -> str:
    """SHA-256 of all that the plan fixes: hypotheses, tests, sizes, conditions and the full dose of each operator."""
    from mhvae_kit.segmentation import SegmentationConfig  # needs torch, which a look at the plan does not

    fixed: dict[str, Any] = {
        "hypotheses": HYPOTHESES,
        "negative": NEGATIVE,
        "tests": TESTS,
        "study": asdict(study_of(preset)),
        "conditions": [asdict(c) for c in plan(preset)],
        "full_doses": {name: o.full_dose for name, o in OPERATORS.items()},
        "numbers": {n: v for m in (anatomical, appearance) for n, v in vars(m).items() if n.isupper()},
        "highest_temperature": HIGHEST_TEMPERATURE,
        "patient_specific_share": PATIENT_SPECIFIC_SHARE,
        "segmentation": asdict(SegmentationConfig()),
    }
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def estimated_seconds(condition: Condition, preset: str) -> float:
    """About how long a cell takes on one core, from its trainings; see docs/decisions/0015 for the measurement."""
    study = study_of(preset)
    size = {"smoke": 96, "demo": 96, "paper": 192}[preset]
    step = SECONDS_PER_STEP * (size / 96) ** 2
    trainings = len(study.seeds) * (
        PATIENT_SPECIFIC_SHARE * (study.n_test or 10) if condition.name == "patient-specific" else 1
    )
    return SECONDS_PER_CELL + trainings * study.steps * step


def plan_text(preset: str, only: str | Iterable[str] | None = None, cores: int = 2) -> str:
    """The plan in words, with an estimate of its time on some cores."""
    study, conditions = study_of(preset), plan(preset, only)
    seconds = sum(estimated_seconds(c, preset) for c in conditions)
    lines = [f"degradation study on phantom data, preset {preset}, plan {plan_digest(preset)[:12]}"]
    lines += [f"{label}: {text}" for label, text in HYPOTHESES]
    lines += [f"negative result: {NEGATIVE}", f"tests: {TESTS}"]
    for group in ("route", "defect"):
        names = dict.fromkeys(c.name for c in conditions if c.group == group)
        doses = {n: [f"{c.dose:g}" for c in conditions if c.name == n and c.dose is not None] for n in names}
        told = [n + (f" ({' '.join(doses[n])})" if doses[n] else "") for n in names]
        lines.append(f"{group}s: {', '.join(told) or 'none'}")
    lines.append(
        f"{len(conditions)} cells x {len(study.seeds)} seeds of {study.steps} steps: "
        f"about {seconds / 60 / cores:.0f} min on {cores} cores"
    )
    return "\n".join(lines)
