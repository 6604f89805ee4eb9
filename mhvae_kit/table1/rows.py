"""Which rows Table 1 has, in its order, what each is made of, and the budget that all of them share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mhvae_kit.errors import InputError, explain
from mhvae_kit.runs import default_root

MODALITIES = ("t2", "us")
Kind = Literal["method", "vae", "branch", "references"]


@dataclass(frozen=True)
class Row:
    """One row, that is one run.

    Args:
        name: As in run ids and in the column "row".
        title: As in the table.
        kind: "method" (a compared method of `baselines.registry` of that name), "vae" (`training.train`), "branch"
            (the training of `after`, continued without its adversarial term), or "references" (nothing is trained).
        temperature: Of the samples of a stochastic row: 0.7 is what the authors' code samples at, 1 is a flow's own
            noise; None for a row without randomness.
        settings: What its training's config has besides preset, seed and budget.
        after: Row that must be trained before.
    """

    name: str
    title: str
    kind: Kind
    temperature: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    after: str | None = None


_ROWS = (
    Row("pix2pix", "Pix2Pix", "method"),
    Row("spade", "SPADE", "method"),
    Row("mvae", "MVAE", "vae", 0.7, {"architecture": "mvae", "gan": False}),
    Row("resvit", "ResViT", "method"),
    Row("mhvae", "MHVAE", "branch", 0.7, {"gan": False}, after="mhvae-gan"),
    Row("mhvae-gan", "MHVAE + GAN", "vae", 0.7, {"gan": True}),
    Row("flow", "Rectified flow", "method", 1.0),
    Row("references", "References", "references"),
)
ROWS: dict[str, Row] = {row.name: row for row in _ROWS}
"""By name, in the order of the table."""

TRAINING_ORDER: tuple[str, ...] = tuple(sorted(ROWS, key=lambda name: ROWS[name].after is not None))
"""An order in which every row finds what it builds on."""

REFERENCES: dict[str, str] = {"copy": "Copy of the input", "constant": "Constant image", "oracle": "Oracle"}
"""Lines that the row "references" adds to the column "row", with their titles; the oracle exists on the phantom."""

BUDGETS: dict[str, dict[str, int]] = {
    "smoke": {"steps": 10, "batch_size": 4},
    "demo": {"steps": 600, "batch_size": 4},
    "paper": {"steps": 56_000, "batch_size": 16},
}
"""Steps and slices a step, the same for every row: their product is the number of slice exposures."""

SAMPLES = 5
"""How many samples the mean of K is of."""


def find_row(name: str) -> Row:
    """A row by its name.

    Raises:
        InputError: There is no such row.
    """
    if name not in ROWS:
        raise InputError(explain("Table 1 has no such row", got=repr(name), expected="one of " + ", ".join(ROWS)))
    return ROWS[name]


def budget_of(preset: str) -> dict[str, int]:
    """Steps and slices a step at a preset.

    Raises:
        InputError: The preset is unknown.
    """
    if preset not in BUDGETS:
        raise InputError(explain("unknown preset", got=repr(preset), expected="one of " + ", ".join(BUDGETS)))
    return dict(BUDGETS[preset])


def row_folder(row: str, preset: str, root: str | Path | None = None) -> Path:
    """Where the run of a row is or would be: "<preset>-table1-<row>" below `root` (None = `default_root()`)."""
    folder = Path(root if root is not None else default_root()).expanduser().resolve()
    budget_of(preset)
    return folder / f"{preset}-table1-{find_row(row).name}"
