"""The tables about patients' data: their schema, their counts, and that rules in tables are rules in code."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from mhvae_kit.data.patient_manifests import FileRow, RuleRow, SeriesRow, SplitRow, read_rows
from mhvae_kit.errors import DataError, MissingError
from mhvae_kit.preparation.sources import BRATS, REMIND

FOLDER = Path(__file__).resolve().parents[2] / "data_manifests"


@pytest.fixture(scope="module")
def series():
    return read_rows(FOLDER / "remind_cases.csv", SeriesRow)


@pytest.fixture(scope="module")
def split():
    return read_rows(FOLDER / "remind_split_mhvae.csv", SplitRow)


def test_no_case_has_two_series_for_one_role_and_no_series_two_places(series):
    assert max(Counter((row.case, row.role) for row in series).values()) == 1
    assert len({row.series_uid for row in series}) == len(series)


def test_roles_are_counted_as_the_collection_says(series):
    """104 pre-dura ultrasound series are those of the collection; 17 3-D FLAIR before surgery."""
    counts = Counter(row.role for row in series)
    assert counts == {"us": 104, "t2": 71, "cet1": 105, "flair": 17, "tumour": 103}


def test_every_series_fits_the_rule_of_its_role(series):
    for row in series:
        modality, pattern = REMIND[row.role]
        assert row.modality == modality and re.fullmatch(pattern, row.description), row


def test_mr_is_not_from_the_study_of_the_ultrasound(series):
    studies = {row.case: row.study_uid for row in series if row.role == "us"}
    assert not [row for row in series if row.role != "us" and row.study_uid == studies.get(row.case)]


def test_the_split_is_56_and_10_and_says_its_doubt(split):
    assert Counter(row.split for row in split) == {"train": 56, "test": 10}
    assert [row.case for row in split if row.doubt] == ["ReMIND-095", "ReMIND-096"]
    assert all(row.released_split == "validation" for row in split if row.doubt)


def test_the_split_is_exactly_the_cases_with_ultrasound_and_t2(series, split):
    paired = {r.case for r in series if r.role == "us"} & {r.case for r in series if r.role == "t2"}
    assert {row.case for row in split} == paired


@pytest.mark.parametrize("name", ["remind", "brats", "upenn_gbm"])
def test_a_collection_names_licence_citation_and_access(name):
    rows = read_rows(FOLDER / f"{name}.csv", RuleRow)
    assert {row.collection for row in rows} == {name} and all(row.licence and row.citation for row in rows)


def test_rules_in_tables_are_rules_in_code():
    assert {r.role: r.pattern for r in read_rows(FOLDER / "remind.csv", RuleRow)} == {
        role: pattern for role, (_, pattern) in REMIND.items()
    }
    names = [r.pattern for n in ("brats", "upenn_gbm") for r in read_rows(FOLDER / f"{n}.csv", RuleRow)]
    assert sorted(names) == sorted(pattern.format(name) for pattern, roles in BRATS for name in roles.values())


@pytest.mark.parametrize("preset", ["smoke", "demo", "paper"])
def test_the_phantoms_tables_keep_the_same_rules(preset):
    assert read_rows(FOLDER / f"phantom_{preset}.csv", FileRow)


def write(path: Path, row: str) -> Path:
    path.write_text(f"case,split,file,sha256,shape,spacing,seed\n{row}\n")
    return path


@pytest.mark.parametrize(
    ("row", "column"),
    [
        (f"a,train,../b.nii,{'0' * 64},2x2x2,1.0,0", "file"),
        (f"a,train,/b.nii,{'0' * 64},2x2x2,1.0,0", "file"),
        (f"a,train,c:/b.nii,{'0' * 64},2x2x2,1.0,0", "file"),
        ("a,train,b.nii,abc,2x2x2,1.0,0", "sha256"),
        (f"a,holdout,b.nii,{'0' * 64},2x2x2,1.0,0", "split"),
        (f"a,train,b.nii,{'0' * 64},2x2,1.0,0", "shape"),
        (f"a,train,b.nii,{'0' * 64},2x2x2,-1,0", "spacing"),
    ],
)
def test_a_wrong_row_is_named_by_line_and_column(tmp_path, row, column):
    with pytest.raises(DataError, match=rf"line 2 of .*table\.csv is wrong in column {column}"):
        read_rows(write(tmp_path / "table.csv", row), FileRow)


def test_an_unknown_column_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("case,split,file,sha256,shape,spacing,seed,extra\n")
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text() + f"a,train,b,{'0' * 64},1x1x1,1,0,x\n")
    with pytest.raises(DataError, match="column extra"):
        read_rows(tmp_path / "t.csv", FileRow)


def test_a_missing_table(tmp_path):
    with pytest.raises(MissingError, match="table is not there"):
        read_rows(tmp_path / "none.csv", FileRow)
