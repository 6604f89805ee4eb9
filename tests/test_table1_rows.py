"""The rows of Table 1: how each is trained, scored, measured and kept, with methods and data small enough for tests."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from toy_method import ENTRIES

from mhvae_kit.baselines import registry
from mhvae_kit.errors import InputError, MissingError, RunError
from mhvae_kit.evaluation import SCORES, evaluate
from mhvae_kit.evaluation.extras import extra_scores
from mhvae_kit.evaluation.scoring import score_images
from mhvae_kit.runs import read_results, run_folder, run_status, set_status
from mhvae_kit.table1 import BUDGETS, REFERENCES, ROWS, TRAINING_ORDER, Row, find_row, row_folder
from mhvae_kit.table1.cost import cost_of
from mhvae_kit.table1.predictions import model_predictions, reference_predictions
from mhvae_kit.table1.run import one_line, read_table, run_row
from mhvae_kit.table1.scores import example_slices, per_patient, read_examples, score
from mhvae_kit.table1.train import check_trained, load_row, training_config

SIDE, DEPTH = 32, 3
SPLITS = {"train": 3, "validation": 1, "test": 4}
SIZE = {"image_size": (SIDE, SIDE)}
VAE = {**SIZE, "levels": 3, "base_channels": 2, "max_channels": 4, "discriminator_channels": 2}
TINY_ROWS = {
    "toy": Row("toy", "Toy", "method", None, SIZE),
    "toy-noise": Row("toy-noise", "Noisy toy", "method", 0.5, SIZE),
    "mhvae": dataclasses.replace(ROWS["mhvae"], settings={**VAE, "gan": False}),
    "mhvae-gan": dataclasses.replace(ROWS["mhvae-gan"], settings={**VAE, "gan": True}),
}


class TinyData:
    """Eight patients of smooth noise within a disc."""

    name, modalities, spacing_mm, digest, shape = "phantom-tiny", ("t2", "us"), 1.5, "0" * 64, (SIDE, SIDE, DEPTH)

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        row, column = np.mgrid[:SIDE, :SIDE] - SIDE / 2
        self.fan = np.repeat((row**2 + column**2 < 15**2)[..., None], DEPTH, 2)
        self.volumes = {}
        for case in self.case_ids():
            t2 = rng.integers(60, 200, (SIDE, SIDE, DEPTH))
            us = np.clip(255 - t2 + rng.integers(-20, 20, t2.shape), 1, 255)
            tumour = np.zeros(t2.shape, np.uint8)
            tumour[12:14, 12 : 14 + SPLITS["test"], 1] = 1
            for kind, volume in {"t2": t2 * self.fan, "us": us * self.fan, "fov": self.fan, "tumour": tumour}.items():
                self.volumes[case, kind] = volume.astype(np.uint8)

    def case_ids(self, split: str | None = None) -> list[str]:
        return [f"{s}-{i}" for s, n in SPLITS.items() if split in (None, s) for i in range(n)]

    def volume(self, case: str, kind: str) -> np.ndarray:
        return self.volumes[case, kind]

    def oracle(self, case: str) -> np.ndarray:
        return (self.volumes[case, "us"] / 127.5 - 1).astype(np.float32)


@pytest.fixture(scope="module")
def data() -> TinyData:
    return TinyData()


def quick_extras(images, targets, fov, *, target, **_):
    """In place of the perceptual and texture scores, which take longest: one for both targets, one for us alone."""
    scores = {"swd_fov": np.abs(images - targets).mean((1, 2))}
    return scores | ({"envelope_snr_log_ratio": np.ones(len(images))} if target == "us" else {})


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """Toy methods, VAEs of a few channels under the names of the table, and quick scores."""
    with pytest.MonkeyPatch.context() as patched:
        for name, entry in ENTRIES.items():
            patched.setitem(registry.METHODS, name, entry)
        for name, row in TINY_ROWS.items():
            patched.setitem(ROWS, name, row)
        patched.setitem(BUDGETS, "smoke", {"steps": 5, "batch_size": 2})
        patched.setattr("mhvae_kit.table1.scores.extra_scores", quick_extras)
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """Make a row once for all tests of this module: name -> run folder."""
    root, folders = tmp_path_factory.mktemp("runs"), {}

    def make(row: str) -> Path:
        if row not in folders:
            source = {"source": make("mhvae-gan")} if row == "mhvae" else {}
            folders[row] = run_row(row, "smoke", root=root, dataset=data, n_samples=3, **source)
        return folders[row]

    return make


def snapshot(folder: Path) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_the_rows_stand_in_the_order_of_the_table():
    names = [name for name in ROWS if not name.startswith("toy")]
    assert names == ["pix2pix", "spade", "mvae", "resvit", "mhvae", "mhvae-gan", "flow", "references"]
    assert all(row.name == name for name, row in ROWS.items())


def test_a_row_is_trained_after_what_it_builds_on():
    assert set(TRAINING_ORDER) == {name for name in ROWS if not name.startswith("toy")}
    for name in TRAINING_ORDER:
        after = find_row(name).after
        assert after is None or TRAINING_ORDER.index(after) < TRAINING_ORDER.index(name)


@pytest.mark.parametrize("preset", ["smoke", "demo", "paper"])
def test_every_row_has_the_same_slice_exposures(preset):
    budget = BUDGETS[preset]
    for row in ROWS.values():
        if row.kind == "references":
            continue
        config = training_config(row, preset, seed=3, **budget)
        assert (config.steps, config.batch_size, config.seed) == (budget["steps"], budget["batch_size"], 3)


def test_a_row_leaves_what_it_promises(made, data):
    folder = made("toy")
    assert folder == row_folder("toy", "smoke", folder.parent) and run_status(folder) == "done"
    names = {path.name for path in folder.iterdir()}
    assert {"training", "scores.csv", "patients.csv", "examples", "cost.json", "results.json"} <= names
    assert not list(folder.rglob(".tmp-*"))
    results = read_results(folder)
    extra = results["extra"]
    assert results["notebook"] == "table1" and results["dataset"]["name"] == "phantom-tiny"
    assert extra["network_mode"] == "eval" and extra["slice_exposures"] == 10
    assert extra["test_cases"] == data.case_ids("test") and extra["n_training_cases"] == 3
    assert extra["modes"] == [{"mode": "deterministic", "temperature": 0.0, "n_samples": 0}]
    assert set(results["metrics"]["toy"]["deterministic"]) == {"t2_to_us", "us_to_t2"}


def test_scores_are_those_of_evaluate(made, data):
    folder = made("toy")
    mine = pd.read_csv(folder / "scores.csv")
    assert list(mine)[:9] == ["data", "row", "observed", "target", "mode", "temperature", "n_samples", "case", "slice"]
    assert len(mine) == 2 * SPLITS["test"] * DEPTH and set(mine["row"]) == {"toy"}
    kept = evaluate(load_row(folder, "toy"), data, observed=["t2"], targets=["us"]).sort_values(["case", "slice"])
    same = mine[mine["target"] == "us"].sort_values(["case", "slice"])
    for name in SCORES:
        np.testing.assert_allclose(same[name], kept[name], rtol=1e-6)


def test_perceptual_and_texture_scores_are_those_of_evaluation(data, monkeypatch):
    monkeypatch.setattr("mhvae_kit.table1.scores.extra_scores", extra_scores)
    shown = [s for s in reference_predictions(data) if s.row == "copy"][:2]
    table = pd.concat([score(s, data) for s in shown], ignore_index=True)
    for s in shown:
        ((target, images),) = s.prediction.images.items()
        truth, fov = s.prediction.targets[target], s.prediction.fov
        expected = extra_scores(images, truth, fov, target=target, spacing_mm=1.5)
        own = table[table["target"] == target]
        assert ("envelope_snr" in expected) == (target == "us") and set(expected) <= set(table)
        for name, values in expected.items():
            np.testing.assert_array_equal(own[name], values)
    patients = per_patient(table)
    assert len(patients) == 2 and patients["envelope_snr"].isna().tolist() == (patients["target"] == "t2").tolist()


def test_patients_are_means_over_their_slices(made):
    folder = made("toy")
    scores, patients = pd.read_csv(folder / "scores.csv"), pd.read_csv(folder / "patients.csv")
    assert len(patients) == 2 * SPLITS["test"] and set(patients["n_slices"]) == {DEPTH}
    one = patients.iloc[0]
    own = scores[(scores["case"] == one["case"]) & (scores["target"] == one["target"])]
    assert one["ssim_fov"] == pytest.approx(own["ssim_fov"].mean()) and one["data"] == "phantom-tiny"
    told = read_results(folder)["metrics"]["toy"]["deterministic"][f"{one['observed']}_to_{one['target']}"]
    assert told["ssim_fov"] == pytest.approx(patients[patients["target"] == one["target"]]["ssim_fov"].mean())


def test_a_done_row_is_neither_trained_nor_scored_again(made, data):
    folder = made("toy")
    before = snapshot(folder)
    assert run_row("toy", "smoke", root=folder.parent, n_samples=3) == folder
    assert snapshot(folder) == before


def test_a_row_that_was_killed_after_training_is_only_scored(made, data, tmp_path):
    import shutil

    folder = tmp_path / "smoke-table1-toy"
    shutil.copytree(made("toy"), folder)
    for name in ("results.json", "scores.csv"):
        (folder / name).unlink()
    set_status(folder, "killed")
    before = snapshot(folder / "training")
    run_row("toy", "smoke", root=tmp_path, dataset=data, n_samples=3)
    assert snapshot(folder / "training") == before
    assert (folder / "scores.csv").read_text() == (made("toy") / "scores.csv").read_text()


def test_a_stochastic_row_is_shown_in_three_modes(made):
    scores = pd.read_csv(made("toy-noise") / "scores.csv")
    modes = scores[["mode", "temperature", "n_samples"]].drop_duplicates().to_numpy().tolist()
    assert modes == [["mean path", 0.0, 0], ["one sample", 0.5, 1], ["mean of K", 0.5, 3]]
    assert read_results(made("toy-noise"))["extra"]["noise_seeds"] == [0, 1, 2]
    means = scores.groupby("mode")["psnr_fov_db"].mean()
    assert means["one sample"] < means["mean of K"]


def test_the_mean_of_k_is_the_mean_of_k_samples(made, data):
    model = load_row(made("toy-noise"), "toy-noise")
    options = {"observed": ["t2"], "targets": ["us"], "temperature": 0.5, "cases": ["test-1"]}
    from mhvae_kit.evaluation import predictions

    samples = [next(predictions(model, data, seed=seed, **options)) for seed in (0, 1, 2)]
    mean = sum(s.images["us"] for s in samples) / 3
    expected = score_images(mean, samples[0].targets["us"], samples[0].fov)["psnr_fov_db"]
    scores = pd.read_csv(made("toy-noise") / "scores.csv").query("case == 'test-1' and target == 'us'")
    np.testing.assert_allclose(scores.query("mode == 'mean of K'")["psnr_fov_db"], expected, rtol=1e-5)
    one = score_images(samples[0].images["us"], samples[0].targets["us"], samples[0].fov)["psnr_fov_db"]
    np.testing.assert_allclose(scores.query("mode == 'one sample'")["psnr_fov_db"], one, rtol=1e-5)


def test_mhvae_is_mhvae_gan_without_its_last_part(made):
    whole, branch = made("mhvae-gan") / "training", made("mhvae") / "training"
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (whole, branch))
    assert {name for name in new if new[name] != old[name]} == {"gan"} and old["steps"] == new["steps"] == 5
    first = [pd.read_csv(folder / "metrics.csv").query("step <= 4")["loss"].tolist() for folder in (whole, branch)]
    assert first[0] == first[1] and len(first[0]) == 2
    weights = [load_file(folder / "model" / "weights.safetensors") for folder in (whole, branch)]
    assert any(not torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    extra = read_results(made("mhvae"))["extra"]
    assert extra["continues"] == "smoke-table1-mhvae-gan" and extra["cost"]["shared_seconds"] > 0
    assert extra["cost"]["training_seconds"] > extra["cost"]["shared_seconds"]


def test_a_vae_row_is_scored_in_every_direction(made):
    scores = pd.read_csv(made("mhvae") / "scores.csv")
    directions = set(map(tuple, scores[["observed", "target"]].drop_duplicates().to_numpy().tolist()))
    assert directions == {(o, t) for o in ("t2", "us", "t2+us") for t in ("t2", "us")}
    sampled = scores[scores["mode"] != "mean path"]
    assert set(zip(sampled["observed"], sampled["target"], strict=True)) == {("t2", "us"), ("us", "t2")}
    assert len(scores) == (6 + 2 * 2) * SPLITS["test"] * DEPTH


def test_references_are_what_they_say(made, data):
    scores = pd.read_csv(made("references") / "scores.csv").set_index(["row", "observed", "target", "case", "slice"])
    assert set(scores.index.get_level_values("row")) == set(REFERENCES)
    fan, place = data.fan[..., 0], ("test-2", 1)
    us, t2 = (data.volume("test-2", m)[..., 1] / 127.5 - 1 for m in ("us", "t2"))
    assert scores.loc[("copy", "t2", "us", *place), "l1_fov"] == pytest.approx(np.abs(us - t2)[fan].mean(), rel=1e-5)
    values = [data.volume(case, "us")[data.fan] / 127.5 - 1 for case in data.case_ids("train")]
    constant = np.concatenate(values).mean()
    expected = np.abs(us - constant)[fan].mean()
    assert scores.loc[("constant", "constant", "us", *place), "l1_fov"] == pytest.approx(expected, rel=1e-5)
    assert scores.loc[("oracle", "oracle", "us", *place), "l1_fov"] == pytest.approx(0, abs=1e-6)
    extra = read_results(made("references"))["extra"]
    assert extra["training"] is None and extra["cost"]["training_seconds"] == 0


def test_every_row_shows_the_same_slices(made, data):
    expected = [
        ("test-0", 1),
        ("test-1", 1),
        ("test-2", 1),
    ]  # the slice with the tumour, of cases spread over the split
    assert example_slices(data) == expected
    for row in ("toy", "toy-noise", "mhvae", "references"):
        slices, shown = read_examples(made(row))
        assert slices == expected
        assert all(entry["images"].shape == (3, SIDE, SIDE) for entry in shown)
        assert all(entry["images"].dtype == np.uint8 for entry in shown)
    assert {(e["observed"], e["target"]) for e in read_examples(made("mhvae"))[1]} == {("t2", "us"), ("us", "t2")}
    copied = next(e for e in read_examples(made("references"))[1] if e["row"] == "copy" and e["target"] == "us")
    np.testing.assert_array_equal(copied["images"][1], data.volume("test-1", "t2")[..., 1])


def test_shown_slices_are_background_outside_the_fan(made, data):
    for entry in read_examples(made("toy"))[1]:
        assert not entry["images"][:, ~data.fan[..., 0]].any() and entry["images"][:, data.fan[..., 0]].any()


def test_cost_by_hand(made):
    cost = json.loads((made("toy") / "cost.json").read_text())
    weights = (2 * 9 + 2) + 4 + (2 + 1)  # convolution, batch norm, convolution
    assert cost["parameters"] == 2 * weights
    assert cost["macs"] == SIDE * SIDE * (2 * 9 + 2)
    assert cost["threads"] == torch.get_num_threads()
    assert cost["ms_per_slice_range"][0] <= cost["ms_per_slice"] <= cost["ms_per_slice_range"][1]
    assert cost["training_seconds"] == read_results(made("toy") / "training")["seconds"]


def test_cost_counts_attention_and_leaves_the_mode_alone():
    class Attending(torch.nn.Module):
        config = SimpleNamespace(image_size=(8, 8))

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def encode(self, images):
            return images["t2"].flatten(1).reshape(1, 1, 8, 8)

        def decode(self, x, **_):
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    model = Attending().train()
    assert cost_of(model)["macs"] == 2 * 8 * 8 * 8 and model.training


def test_one_line_says_phantom_and_scores(made):
    line = one_line(made("toy"))
    assert line.startswith("phantom-tiny: toy t2 to us ") and "dB, SSIM" in line and "\n" not in line
    assert "oracle t2 to us" not in line


def test_an_unknown_row_or_preset_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="no such row; got 'cyclegan'; expected one of pix2pix, spade"):
        run_row("cyclegan", "smoke", root=tmp_path)
    with pytest.raises(InputError, match="unknown preset; got 'huge'"):
        run_row("toy", "huge", root=tmp_path)
    with pytest.raises(InputError, match="n_samples must be a whole number"):
        run_row("toy", "smoke", root=tmp_path, n_samples=0)
    assert not list(tmp_path.iterdir())


def test_a_done_row_with_other_settings_is_refused(made):
    with pytest.raises(InputError, match="finished run with other settings; got seed=1; expected seed=0; .*--run-id"):
        run_row("toy", "smoke", root=made("toy").parent, seed=1, n_samples=3)


def test_a_row_that_another_process_makes_is_refused(tmp_path):
    run_folder(tmp_path, "table1", "smoke-table1-toy")  # status: running, this process
    with pytest.raises(RunError, match="row toy is being made in another process"):
        run_row("toy", "smoke", root=tmp_path)


def test_mhvae_needs_mhvae_gan(data, tmp_path):
    with pytest.raises(
        MissingError, match="row mhvae-gan is not trained: there is no checkpoint in .*mhvae table1 mhvae-gan"
    ):
        run_row("mhvae", "smoke", root=tmp_path, dataset=data)
    assert run_status(tmp_path / "smoke-table1-mhvae") == "failed"


def test_a_half_trained_row_is_refused_by_name(made, tmp_path):
    import shutil

    folder = tmp_path / "half"
    shutil.copytree(made("toy"), folder)
    (folder / "training" / "results.json").unlink()
    with pytest.raises(
        MissingError, match="row toy in .*half is half trained; got 5 steps; train it with `mhvae table1 toy`"
    ):
        load_row(folder, "toy")
    with pytest.raises(MissingError, match="row toy is not trained"):
        check_trained(tmp_path / "nowhere", "toy")
    with pytest.raises(InputError, match="row references has no model"):
        load_row(folder, "references")


def test_mhvae_does_not_continue_another_training(made, data, tmp_path):
    with pytest.raises(
        InputError, match="row mhvae cannot continue smoke-table1-mhvae-gan.*got steps=5.*expected steps=6"
    ):
        run_row("mhvae", "smoke", root=tmp_path, dataset=data, steps=6, source=made("mhvae-gan"))


def test_a_test_patient_that_was_in_training_is_refused(made, data):
    model = load_row(made("toy"), "toy")
    model.card["training_cases"].append("test-3")
    with pytest.raises(InputError, match="trained on cases it is to be scored on; got 1 of 4: test-3"):
        list(model_predictions("toy", model, data, temperature=None, n_samples=1, seed=0))


def test_predictions_that_are_not_finite_are_refused(made, data):
    model = load_row(made("toy"), "toy")
    model.generators["t2_to_us"][3].bias.data[:] = float("nan")
    with pytest.raises(InputError, match="prediction of us from t2 holds NaN or infinity"):
        list(model_predictions("toy", model, data, temperature=None, n_samples=1, seed=0))


def test_a_failed_row_says_why(data, tmp_path, monkeypatch):
    from mhvae_kit.table1 import run

    def broken(*_, **__):
        raise InputError("no scores today.")

    monkeypatch.setattr(run, "score", broken)
    with pytest.raises(InputError, match="no scores today"):
        run_row("references", "smoke", root=tmp_path, dataset=data)
    status = json.loads((tmp_path / "smoke-table1-references" / "status.json").read_text())
    assert (status["status"], status["message"]) == ("failed", "no scores today.")


def test_the_table_is_all_rows_or_none(made, monkeypatch):
    rows = {name: ROWS[name] for name in ("toy", "references", "mhvae")}
    for name in ("toy", "references"):
        made(name)
    monkeypatch.setattr("mhvae_kit.table1.run.ROWS", {**rows, "spade": ROWS["spade"]})
    root = made("mhvae").parent
    with pytest.raises(MissingError, match="rows of Table 1 are not done: spade; snakemake --cores 2 table1"):
        read_table(root, "smoke")
    monkeypatch.setattr("mhvae_kit.table1.run.ROWS", rows)
    table = read_table(root, "smoke", "patients.csv")
    assert list(dict.fromkeys(table["row"])) == ["toy", "copy", "constant", "oracle", "mhvae"]
    assert set(table["data"]) == {"phantom-tiny"}
