"""The commands on volumes, from the command line to the files; and scores of patients of another kind."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from test_evaluation import FakeDataset, FakeModel

from mhvae_kit import MHVAE, MHVAEConfig, cli, save_model
from mhvae_kit.commands_volumes import parse_inputs
from mhvae_kit.data import load_phantom
from mhvae_kit.errors import InputError
from mhvae_kit.evaluation import generalisation, generalisation_summary, generalisation_text, predictions


@pytest.fixture(scope="module")
def model() -> MHVAE:
    torch.manual_seed(0)
    return MHVAE(MHVAEConfig.smoke()).eval()


@pytest.fixture
def call(model, tmp_path, capsys):
    """`mhvae synthesize` with a small saved model: exit code, what was printed, and what was told as an error."""
    save_model(model, tmp_path / "model")

    def synthesize(*arguments: object) -> tuple[int, str, str]:
        given = ["synthesize", "--model", tmp_path / "model", "--output", tmp_path / "out", *arguments]
        with pytest.raises(SystemExit) as ended:
            cli.app([str(a) for a in given], prog_name="mhvae")
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return synthesize


def test_phantom_patients_without_ultrasound_get_it_with_their_labels(call, model, tmp_path):
    code, out, _ = call("--phantom", "smoke", "--split", "ood", "--target", "us")
    assert code == 0 and "neighbouring slices differ" in out and "2 of 2 patients, 0 of them were there" in out
    data = load_phantom("smoke", splits=["ood"])
    case = data.case_ids("ood")[0]
    made = nib.load(tmp_path / "out" / case / "us.nii.gz")
    np.testing.assert_allclose(made.affine, data.affine(case), atol=1e-5)
    fan = data.volume(case, "fov") > 0
    label = np.asarray(nib.load(tmp_path / "out" / case / "tumour.nii.gz").dataobj)
    assert np.array_equal(label, data.volume(case, "tumour") * fan)
    # What is written is what is scored: the same images as the evaluation's, but for rounding to 8 bit.
    grey = np.asarray(made.dataobj).astype(float) / 127.5 - 1
    for p in predictions(model, data, split="ood", cases=[case], observed=["t2"], targets=["us"]):
        written = np.moveaxis(grey[:, :, list(p.slices)], 2, 0)
        assert np.abs(written - p.images["us"])[p.fov].max() <= 0.01
    again = call("--phantom", "smoke", "--split", "ood", "--target", "us")[1]
    assert "2 of 2 patients, 2 of them were there already" in again


def test_one_patient_is_given_by_file_and_modality(call, tmp_path):
    data = load_phantom("smoke", splits=["ood"])
    file = data.path(data.case_ids("ood")[0], "t2")
    code, out, _ = call("--input", f"{file}:t2", "--temperature", 0.7, "--samples", 2, "--share", "coarse")
    names = ["synthesis.json", "us.nii.gz", "us_sample-1.nii.gz", "us_sample-2.nii.gz", "us_std.nii.gz"]
    assert code == 0 and sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    assert "us (one sample)" in out and "t2 (given)" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "say what to synthesise from; expected one of --input, --cases and --phantom"),
        (["--input", "t2.nii.gz"], "--input was not understood; got 't2.nii.gz'"),
        (["--input", "absent.nii.gz:t2"], "absent.nii.gz is not there"),
        (["--cases", "absent"], "absent is not there; expected a folder of patients"),
        (["--input", "a:t2", "--axes", "0,1"], "axes are not usable"),
        (["--input", "a:t2", "--device", "tpu"], "this device is not there"),
    ],
)
def test_a_command_that_cannot_run_says_why(call, arguments, sentence):
    code, out, err = call(*arguments)
    assert code == 2 and sentence in err and not out and "Traceback" not in err


def test_inputs_are_a_file_and_a_modality():
    assert str(parse_inputs(["a:b.nii:t2"])["t2"]) == "a:b.nii"
    with pytest.raises(InputError, match="t2 was given twice"):
        parse_inputs(["a.nii:t2", "b.nii:t2"])


# --- Patients of another kind ---


class Shifted(FakeDataset):
    """A split "ood" whose ultrasound is brighter, and an oracle that is off by a known amount."""

    def __init__(self) -> None:
        super().__init__()
        self.splits = {"train": ["a"], "test": ["b", "c"], "ood": ["e", "f"]}

    def volume(self, case: str, kind: str) -> np.ndarray:
        made = super().volume(case, kind)
        brighter = made + np.where(made > 0, 5, 0) if kind == "us" and case in "ef" else made
        return brighter.astype(np.uint8)

    def oracle(self, case: str) -> np.ndarray:
        return np.clip(self.volume(case, "us").astype(np.float32) / 127.5 - 1 - 0.02, -1, 1)


@pytest.fixture
def table() -> pd.DataFrame:
    return generalisation(FakeModel(), Shifted())


def test_scores_are_held_against_what_is_possible_on_the_same_patients(table):
    assert list(table["split"]) == ["test", "test", "ood", "ood"] and set(table["observed"]) == {"t2"}
    oracle_db = 20 * np.log10(2 / 0.02)
    np.testing.assert_allclose(table["behind_db"], oracle_db - table["psnr_fov_db"], atol=0.02)
    assert (table["gain_db"] < table["psnr_fov_db"]).all() and table["gain_db"].notna().all()


def test_the_change_is_that_of_the_means_with_an_interval_that_holds_it(table):
    rows = generalisation_summary(table, n_boot=200).set_index("split")
    assert list(rows.index) == ["test", "ood", "test -> ood"] and list(rows["n_patients"]) == [2, 2, 4]
    for measure in ("psnr_fov_db", "gain_db", "behind_db"):
        change = rows.loc["test -> ood"]
        assert change[measure] == pytest.approx(rows.loc["ood", measure] - rows.loc["test", measure])
        assert change[f"{measure}_low"] <= change[measure] <= change[f"{measure}_high"]
    assert rows.loc["test -> ood", "psnr_fov_db"] < 0


def test_the_printed_table_names_the_data_and_leaves_out_what_is_not_known(table):
    text = generalisation_text(generalisation_summary(table.assign(behind_db=np.nan), n_boot=50))
    assert set(text["data"]) == {"phantom-test"} and set(text["behind oracle (dB)"]) == {"-"}
    assert text["PSNR in fan (dB)"].str.match(r"-?\d+\.\d\d \(-?\d+\.\d\d to -?\d+\.\d\d\)").all()


def test_a_table_without_rows_is_refused(table):
    with pytest.raises(InputError, match="nothing to summarise"):
        generalisation_summary(table.iloc[:0])


def test_the_comparison_of_splits_is_printed_and_written(monkeypatch, tmp_path, capsys):
    asked = {}

    def fake(preset: str, splits: list[str]) -> Shifted:
        asked.update(preset=preset, splits=splits)
        return Shifted()

    monkeypatch.setattr("mhvae_kit.commands_volumes.load_phantom", fake)
    monkeypatch.setattr("mhvae_kit.commands_volumes.find_model", lambda _: FakeModel())
    cli.app(["generalise", "--preset", "smoke", "--output", str(tmp_path / "g.csv")], standalone_mode=False)
    assert asked == {"preset": "smoke", "splits": ["ood", "test", "train"]}
    out = capsys.readouterr().out
    assert "test -> ood" in out and "behind oracle (dB)" in out and "phantom" in out
    assert len(pd.read_csv(tmp_path / "g.csv")) == 4 and len(pd.read_csv(tmp_path / "g_summary.csv")) == 3
