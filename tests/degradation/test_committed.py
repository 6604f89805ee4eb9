"""The committed table of the study: of phantoms, of the plan as it stands, and quoted by README as it is."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from mhvae_kit.degradation.plan import BASELINE, TRIVIAL, UPPER_BOUND, plan, plan_digest, study_of

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "data_manifests" / "degradation_phantom_demo.csv"


@pytest.fixture(scope="module")
def cells() -> pd.DataFrame:
    return pd.read_csv(COMMITTED)


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_says_phantom_and_names_its_runs(cells):
    assert set(cells["data"]) == {"phantom-demo"}
    assert (cells["run"] == "demo-degradation-" + cells["key"]).all()
    assert (cells["n_patients"] == 10).all() and (cells["n_seeds"] == len(study_of("demo").seeds)).all()
    assert (cells["dice_low"] <= cells["dice_high"]).all()


def test_it_holds_every_cell_of_the_plan_as_it_stands(cells):
    assert list(cells["key"]) == [c.key for c in plan("demo")]
    assert set(cells["plan"]) == {plan_digest("demo")}


def test_readme_quotes_floor_ceiling_and_every_defect(cells, readme):
    named = cells.set_index("key")
    for key in (UPPER_BOUND, BASELINE, TRIVIAL):
        row = named.loc[key]
        assert f"| {row['title']} | {row['dice']:.3f} ({row['dice_low']:.3f} to {row['dice_high']:.3f}) |" in readme
    defects = cells[cells["group"] == "defect"]
    for row in defects.loc[defects.groupby("name")["dose"].idxmax()].itertuples():
        loss = f"{100 * row.loss:.1f} ({100 * row.loss_low:.1f} to {100 * row.loss_high:.1f})"
        assert f"| {row.title} | {loss} |" in readme
