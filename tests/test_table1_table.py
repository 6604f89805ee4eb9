"""Table 1: means, marks and notes, the paper's numbers kept apart, every written form, and what is refused."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mhvae_kit import evaluation
from mhvae_kit.errors import DataError, InputError, MissingError
from mhvae_kit.evaluation import table1_text as text
from mhvae_kit.evaluation.extras import KEYS
from mhvae_kit.table1 import REFERENCES, ROWS

CASES = [f"phantom-test-{i:03d}" for i in range(10)]
DATA = "phantom demo"


def frame(row: str, gap: float, mode: str = "mean path", **changes) -> pd.DataFrame:
    """Ten patients who differ by far more than the methods; the methods differ by `gap` and a little noise."""
    patient = np.random.default_rng(0).normal(0, 2, 10)
    noise = np.random.default_rng([1, *row.encode()]).normal(0, 0.02, 10)
    columns = {
        "row": row,
        "observed": "t2",
        "target": "us",
        "mode": mode,
        "temperature": 0.0,
        "n_samples": 1,
        "case": CASES,
        "psnr_fov_db": 22 + patient + gap + noise,
        "swd_fov": 0.3 + 0.01 * patient - 0.1 * gap + 0.01 * noise,
        "envelope_snr": 2.5 + noise,
    }
    return pd.DataFrame({**columns, **changes})


@pytest.fixture
def patients() -> dict[str, pd.DataFrame]:
    """MHVAE and "near" cannot be told apart; Pix2Pix is worse, the sampled flow better."""
    near = frame("near", 0.0)
    near["psnr_fov_db"] += np.tile([0.05, -0.051], 5)
    return {
        "Pix2Pix": frame("Pix2Pix", -1.0, "deterministic"),
        "MHVAE": frame("MHVAE", 0.0),
        "near": near,
    }


@pytest.fixture
def references() -> dict[str, pd.DataFrame]:
    return {
        "constant image": frame(
            "constant image", -3.0, "deterministic", observed="constant image", envelope_snr=np.inf
        ),
        "oracle": frame("oracle", 5.0, "deterministic", observed="oracle"),
    }


def assemble(patients: dict[str, pd.DataFrame], **options) -> evaluation.Table1:
    default = {"data": DATA, "observed": "t2", "target": "us", "n_boot": 200, "lpips_reason": "no weights here"}
    return evaluation.assemble(patients, **{**default, **options})


def cell(table: evaluation.Table1, row: str, metric: str) -> pd.Series:
    part = table.cells[(table.cells["row"] == row) & (table.cells["metric"] == metric)]
    assert len(part) == 1
    return part.iloc[0]


# --- What is in the cells ---


def test_means_intervals_and_tests_are_those_of_the_patients(patients):
    table = assemble(patients)
    made = cell(table, "Pix2Pix", "psnr_fov_db")
    values = patients["Pix2Pix"]["psnr_fov_db"].to_numpy()
    assert made["mean"] == pytest.approx(values.mean()) and made["n_patients"] == 10
    assert (made["low"], made["high"]) == evaluation.tables.bootstrap_interval(values, n_boot=200)
    gaps = values - patients["MHVAE"]["psnr_fov_db"].to_numpy()
    assert made["difference"] == pytest.approx(gaps.mean()) == pytest.approx(-1, abs=0.05)
    assert made["p"] == evaluation.sign_flip_p(gaps) == 2 / 1024 and made["p_holm"] == 4 / 1024


def test_patients_are_paired_by_case_and_not_by_their_order(patients):
    expected = assemble(patients).cells
    shuffled = {row: frame.sample(frac=1, random_state=1) for row, frame in patients.items()}
    pd.testing.assert_frame_equal(assemble(shuffled).cells, expected)


def test_best_tied_and_different_methods_are_marked(patients):
    patients["MHVAE"]["psnr_fov_db"] += 0.03
    table = assemble(patients)
    marks = {row: cell(table, row, "psnr_fov_db")[["best", "tied", "differs"]].tolist() for row in patients}
    assert marks == {"Pix2Pix": [False, False, True], "MHVAE": [True, False, False], "near": [False, True, False]}


def test_where_less_is_better_the_least_is_best(patients):
    patients["low"] = frame("low", 0.0, swd_fov=0.01)
    best = assemble(patients).cells.query("metric == 'swd_fov' and best")["row"].tolist()
    assert best == ["low"]


def test_descriptions_of_the_speckle_are_not_ranked(patients):
    made = assemble(patients).cells.query("metric == 'envelope_snr'")
    assert len(made) == 3 and not made[["best", "tied", "differs"]].to_numpy().any() and made["p"].isna().all()


def test_references_are_never_ranked_or_tested(patients, references):
    table = assemble(patients, references=references)
    made = table.cells.query("block == 'reference'")
    assert set(made["row"]) == {"constant image", "oracle"}
    assert not made[["best", "tied", "differs"]].to_numpy().any() and made["p"].isna().all()
    methods = table.cells.query("block == 'method'").reset_index(drop=True)
    pd.testing.assert_frame_equal(methods, assemble(patients).cells.reset_index(drop=True))


def test_references_stand_in_the_table_under_any_title(patients, references):
    table = assemble(patients, references={f"The {name}": frame for name, frame in references.items()})
    assert set(table.cells.query("block == 'reference'")["row"]) == {"The constant image", "The oracle"}


def test_a_table_takes_one_mode_of_stochastic_methods_and_all_deterministic_ones(patients):
    samples = [frame("MHVAE", -0.5, "one sample", temperature=t) for t in (0.7, 1.0)]
    means = frame("MHVAE", 0.2, "mean of K", temperature=1.0, n_samples=8)
    both = {**patients, "MHVAE": pd.concat([patients["MHVAE"], *samples, means])}
    made = assemble(both, mode="one sample", temperature=0.7)
    assert made.cells.groupby("row", sort=False)["mode"].first().to_dict() == {
        "Pix2Pix": "deterministic",
        "MHVAE": "one sample, τ = 0.7",
    }
    assert "Without this direction and mode: near." in made.notes
    assert cell(assemble(both, mode="mean of K"), "MHVAE", "swd_fov")["mode"] == "mean of 8, τ = 1"
    assert cell(assemble(both), "MHVAE", "psnr_fov_db")["mode"] == "mean path"


def test_other_directions_are_passed_over(patients):
    other = {row: pd.concat([one, one.assign(observed="us", target="t2")]) for row, one in patients.items()}
    pd.testing.assert_frame_equal(assemble(other).cells, assemble(patients).cells)


def test_reconstruction_is_named(patients):
    same = {row: one.assign(observed="t2+us") for row, one in patients.items()}
    assert assemble(same, observed="t2+us").title == "t2+us → us (reconstruction), mean path, phantom demo, 10 patients"
    assert assemble(patients).title == "t2 → us (synthesis), mean path, phantom demo, 10 patients"


def test_few_patients_are_said_to_prove_nothing(patients):
    few = {row: one.iloc[:2] for row, one in patients.items()}
    table = assemble(few)
    assert not table.cells["differs"].any()
    assert any("With 2 patients no corrected p value can be below 1" in note for note in table.notes)
    assert not any("no corrected p value" in note for note in assemble(patients).notes)


def test_a_single_patient_has_no_interval(patients):
    alone = assemble({row: one.iloc[:1] for row, one in patients.items()})
    assert "[one patient]" in text.to_markdown(alone)


def test_missing_lpips_is_a_column_of_na_with_its_reason_once(patients):
    table = assemble(patients)
    markdown = text.to_markdown(table)
    assert markdown.count("| n/a") == 3 and markdown.count("no weights here") == 1
    scored = assemble({row: one.assign(lpips_fov=0.2) for row, one in patients.items()})
    assert "n/a" not in text.to_markdown(scored) and not any("LPIPS" in note for note in scored.notes)


def test_a_method_without_a_score_shows_na_and_takes_no_part(patients):
    patients["near"]["swd_fov"] = np.nan
    table = assemble(patients)
    assert set(table.cells.query("metric == 'swd_fov'")["row"]) == {"Pix2Pix", "MHVAE"}
    assert "| n/a | n/a |" in text.to_markdown(table)


# --- The paper's numbers ---


def test_the_published_numbers_are_those_of_the_paper():
    table = evaluation.published_scores()
    values = table.set_index(["row", "observed", "target", "metric"])["value"]
    assert values["MHVAE", "t2", "us", "psnr"] == 21.87 and values["MHVAE + GAN", "t2", "us", "lpips"] == 19.0
    assert values["ResViT", "t2", "us", "ssim"] == 75.2 and values["MHVAE", "us", "us", "psnr"] == 33.15
    assert (table["source"].str.contains("Dorent")).all() and not table.duplicated(
        ["row", "observed", "target", "metric"]
    ).any()
    rows = {"Pix2Pix", "SPADE", "MVAE", "ResViT", "MHVAE", "MHVAE + GAN"}
    assert set(table.query("target == 'us' and observed == 't2'")["row"]) == rows
    # Not found in the paper's accessible text, so not invented: the other direction.
    assert not len(table.query("observed == 'us' and target == 't2'"))


def test_published_numbers_stand_in_their_own_columns_and_change_nothing(patients, tmp_path):
    table, without = assemble(patients, published=evaluation.published_scores()), assemble(patients)
    pd.testing.assert_frame_equal(table.cells, without.cells)
    lines = text.to_markdown(table).splitlines()
    assert lines[2].count("ReMIND, published") == 3
    mhvae = next(line for line in lines if line.startswith("| MHVAE |"))
    assert mhvae.endswith("| 21.87 | 74.9 | 24.2 |")
    text.to_csv(table, tmp_path / "table.csv")
    made = pd.read_csv(tmp_path / "table.csv")
    theirs = made[made["block"] == "published"]
    assert set(theirs["data"]) == {"ReMIND, published"} and len(theirs) == 18
    assert theirs["mean"].isna().all() and made.loc[made["block"] != "published", "published"].isna().all()
    assert not set(theirs["metric"]) & set(made.loc[made["block"] != "published", "metric"])
    assert theirs["source"].notna().all()


def test_published_numbers_of_another_direction_are_not_shown(patients):
    other = {row: one.assign(observed="us", target="t2") for row, one in patients.items()}
    table = assemble(other, observed="us", target="t2", published=evaluation.published_scores())
    assert table.published.empty and "published |" not in text.to_markdown(table)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, MissingError, "is not there"),
        ("row,value\nMHVAE,3\n", DataError, "lacks columns"),
        ("row,observed,target,metric,value,unit,source,note\nMHVAE,t2,us,psnr,high,dB,paper,\n", DataError, "number"),
        ("row,observed,target,metric,value,unit,source,note\nMHVAE,t2,us,psnr,20,dB,,\n", DataError, "source"),
    ],
)
def test_unfit_files_of_published_numbers_are_refused(tmp_path, content, error, message):
    path = tmp_path / "published.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=message):
        evaluation.published_scores(path)


# --- Written forms ---


@pytest.fixture
def table(patients, references) -> evaluation.Table1:
    rough = {**patients, "a_b & <c> 5%|": frame("a_b & <c> 5%|", -2.0)}
    descriptions = {"parameters_#": {"MHVAE": "10.1 M", "Pix2Pix": "2 × 29.2 M {both}"}}
    return assemble(rough, references=references, published=evaluation.published_scores(), descriptions=descriptions)


def test_every_form_says_phantom(table, tmp_path):
    text.to_csv(table, tmp_path / "table.csv")
    text.patients_to_csv(table, tmp_path / "patients.csv")
    assert DATA in text.to_markdown(table) and DATA in text.to_latex(table) and DATA in text.to_styler(table).to_html()
    cells, values = pd.read_csv(tmp_path / "table.csv"), pd.read_csv(tmp_path / "patients.csv")
    assert (cells.loc[cells["block"] != "published", "data"] == DATA).all() and (values["data"] == DATA).all()
    assert len(values) == 6 * 10 and set(CASES) == set(values["case"])


def test_the_record_names_the_run_of_every_cell_and_has_none_twice(patients, references, tmp_path):
    means = {**patients, "MHVAE": frame("MHVAE", 0.2, "mean of K", temperature=1.0, n_samples=8)}
    runs = {row: f"demo-table1-{row}" for row in ("Pix2Pix", "MHVAE", "near")}
    runs |= dict.fromkeys(references, "demo-table1-references")
    tables = [assemble(patients, references=references), assemble(means, mode="mean of K", references=references)]
    text.record_csv(tables, runs, tmp_path / "all.csv")
    made = pd.read_csv(tmp_path / "all.csv")
    assert (made["run"] == made["row"].map(runs)).all() and (made["data"] == DATA).all()
    assert not made.duplicated(["row", "observed", "target", "mode", "metric"]).any()
    assert len(made.query("row == 'Pix2Pix' and metric == 'psnr_fov_db'")) == 1
    assert set(made.query("row == 'MHVAE'")["mode"]) == {"mean path", "mean of 8, τ = 1"}


def test_a_record_without_a_run_or_of_mixed_data_is_refused(patients, tmp_path):
    table = assemble(patients)
    with pytest.raises(InputError, match=r"no run is named for MHVAE, near"):
        text.record_csv([table], {"Pix2Pix": "a"}, tmp_path / "all.csv")
    with pytest.raises(InputError, match="not of the same data"):
        text.record_csv([table, assemble(patients, data="phantom smoke")], dict.fromkeys(patients, "a"), tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_markdown_has_as_many_cells_in_every_line(table):
    lines = [line for line in text.to_markdown(table).splitlines() if line.startswith("|")]
    assert len({len(re.split(r"(?<!\\)\|", line)) for line in lines}) == 1 and len(lines) == 2 + 4 + 1 + 2
    assert "∞ [∞, ∞]" in lines[-2]


def test_html_is_well_formed_and_escaped(table):
    html = text.to_styler(table).to_html()
    body = html[html.index("<table") :].replace("&nbsp;", " ")
    tree = ElementTree.fromstring(body)
    assert "a_b & <c> 5%|" in {element.text for element in tree.iter("th")}
    assert html == text.to_styler(table).to_html()
    notes = ElementTree.fromstring(text.notes_to_html(table))
    assert [item.text for item in notes] == list(table.notes)


def test_bold_marks_the_best_in_every_form(table):
    best = table.cells[table.cells["best"]]
    assert set(best["metric"]) == {"psnr_fov_db", "swd_fov"}
    assert text.to_latex(table).count("\\textbf{") == 2
    assert text.to_markdown(table).count("| **") == 2
    html = text.to_styler(table).to_html()
    style = html[html.index("#T_table1_row") : html.index("</style>")]
    assert style[: style.index("{")].count("#T_table1_row") == 2


def test_latex_is_balanced_and_escaped(table):
    made = text.to_latex(table)
    assert made.isascii()
    body = made[made.index("\\begin{table}") :]
    plain = re.sub(r"\\[{}&%#$_]", "", body)
    assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0 and "#" not in plain and "_" not in plain
    assert re.findall(r"\\begin\{(\w+)\}", body) == ["table", "tabular"]
    assert re.findall(r"\\end\{(\w+)\}", body) == ["tabular", "table"]
    width = len(re.search(r"\\begin\{tabular\}\{(l+)\}", body).group(1))
    rows = [line for line in body.splitlines() if line.endswith("\\\\") and "multicolumn" not in line]
    assert len(rows) == 1 + 4 + 2
    assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {width}
    assert "a\\_b \\& \\textless{}c\\textgreater{} 5\\%\\textbar{}" in made
    assert "\\multicolumn{" + str(width) + "}{l}{\\emph{references, not ranked}}" in made
    assert all(f"\\{rule}" in made for rule in ("toprule", "midrule", "bottomrule"))


@pytest.mark.parametrize("character", list("\\{}&%$#_~^<>|→τ≈≥≤×±∞†−"))
def test_every_special_character_has_its_latex(character):
    made = text.latex(f"a{character}b")
    assert made.isascii() and made != f"a{character}b"
    assert made.startswith(("a\\", "a$"))


def test_a_choice_of_columns_is_shown_and_unknown_ones_refused(table):
    titles, _ = text.grid(table, ["swd_fov"])
    assert titles[:3] == ["mode", "parameters_#", "patch distance in fan (SWD)"]
    assert all("published" in title for title in titles[3:])
    with pytest.raises(InputError, match="the table has no ssim; got psnr_fov_db"):
        text.grid(table, ["ssim"])


# --- From slices to patients ---


def slices(**changes) -> pd.DataFrame:
    rows = pd.DataFrame({"slice": [0, 1, 0, 1], "case": ["a", "a", "b", "b"], "psnr_fov_db": [1.0, 3.0, 5.0, 9.0]})
    keys = {"row": "MHVAE", "observed": "t2", "target": "us", "mode": "mean path", "temperature": 0.0, "n_samples": 1}
    return rows.assign(**keys, swd_fov=[0.1, 0.3, np.inf, 0.1], lpips_fov=np.nan).assign(**changes)


def test_slices_are_averaged_within_a_patient():
    made = evaluation.patient_means(slices())
    assert list(made.columns) == [*KEYS, "n_slices", "psnr_fov_db", "swd_fov"]
    assert made["psnr_fov_db"].tolist() == [2.0, 7.0] and made["n_slices"].tolist() == [2, 2]
    assert made["swd_fov"].tolist() == [pytest.approx(0.2), np.inf]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"psnr_fov_db": [1.0, np.nan, 2.0, 3.0]},
            "there is NaN in the scores per slice; got psnr_fov_db of MHVAE, t2 to us, a",
        ),
        ({"slice": [0, 0, 0, 1]}, "a slice is scored twice"),
        ({"psnr_fov_db": np.nan, "swd_fov": np.nan}, "there is no score in the scores per slice"),
        ({"ssim_authors2025": 0.8}, "two protocols are mixed"),
    ],
)
def test_unfit_slices_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        evaluation.patient_means(slices(**change))


def test_missing_keys_are_named():
    with pytest.raises(InputError, match="no column mode, n_samples"):
        evaluation.patient_means(slices().drop(columns=["mode", "n_samples"]))


# --- What assemble refuses ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": " "}, "the data have no name"),
        ({"mode": "best of K"}, "unknown mode"),
        ({"observed": "flair"}, "no score of any method from flair to us"),
        ({"against": "VAE"}, "no score of VAE from t2 to us.*against=None"),
    ],
)
def test_unfit_options_are_refused(patients, options, message):
    with pytest.raises(InputError, match=message):
        assemble(patients, **options)


def test_methods_of_different_patients_are_refused(patients, references):
    patients["near"] = patients["near"].iloc[1:]
    with pytest.raises(InputError, match="Pix2Pix and near were not scored on the same patients.*phantom-test-000"):
        assemble(patients)
    references["oracle"]["case"] = [c.replace("test", "ood") for c in CASES]
    with pytest.raises(InputError, match="Pix2Pix and oracle were not scored on the same patients"):
        assemble({k: v for k, v in patients.items() if k != "near"}, references=references)


def test_several_temperatures_in_one_table_are_refused(patients):
    samples = [frame("MHVAE", 0.0, "one sample", temperature=t) for t in (0.7, 1.0)]
    with pytest.raises(InputError, match="a patient more than once.*one sample, τ = 0.7; one sample, τ = 1"):
        assemble({"MHVAE": pd.concat(samples)}, mode="one sample")


def test_nan_unknown_modes_and_other_protocols_are_refused(patients):
    with pytest.raises(InputError, match="there is NaN in the scores of MHVAE.*psnr_fov_db of MHVAE"):
        broken = patients["MHVAE"].assign(psnr_fov_db=[np.nan, *range(9)])
        assemble({**patients, "MHVAE": broken})
    with pytest.raises(InputError, match="unknown mode; got best of 3"):
        assemble({**patients, "MHVAE": patients["MHVAE"].assign(mode="best of 3")})
    with pytest.raises(InputError, match="two protocols are mixed"):
        assemble({**patients, "MHVAE": patients["MHVAE"].assign(psnr_authors2025_db=20.0)})


def test_phantom_scores_cannot_pass_for_others(patients):
    named = {row: one.assign(data="phantom-demo") for row, one in patients.items()}
    assert assemble(named).data == DATA
    with pytest.raises(InputError, match="phantom scores must say phantom; got the name 'ReMIND'"):
        assemble(named, data="ReMIND")
    named["near"]["data"] = "ReMIND"
    with pytest.raises(InputError, match="different data are mixed; got ReMIND, phantom-demo"):
        assemble(named)


def test_the_table_module_offers_what_others_call():
    from mhvae_kit.evaluation import table1

    assert table1.extra_scores is evaluation.extra_scores and table1.patient_means is evaluation.patient_means
    assert (Path(__file__).resolve().parents[1] / "data_manifests" / table1.PUBLISHED_FILE).is_file()


# --- The committed table ---

COMMITTED = Path(__file__).resolve().parents[1] / "data_manifests" / "table1_phantom_demo.csv"


def test_the_committed_table_says_phantom_and_names_its_runs():
    cells = pd.read_csv(COMMITTED)
    assert set(cells["data"]) == {"phantom-demo"} and cells["run"].str.startswith("demo-table1-").all()
    titles = {row.title for row in ROWS.values() if row.kind != "references"} | set(REFERENCES.values())
    assert set(cells.query("observed == 't2' and metric == 'psnr_fov_db'")["row"]) == titles
    assert (cells["n_patients"] == 10).all() and (cells["low"] <= cells["high"]).all()


def test_readme_quotes_the_committed_table():
    cells = pd.read_csv(COMMITTED).query("observed == 't2' and target == 'us' and metric == 'psnr_fov_db'")
    cells = cells[cells["mode"].isin(["mean path", "deterministic"])]
    readme = (COMMITTED.parents[1] / "README.md").read_text(encoding="utf-8")
    for row, mean, low, high in cells[["row", "mean", "low", "high"]].itertuples(index=False):
        assert f"| {row} | {mean:.2f} ({low:.2f} to {high:.2f}) |" in readme
