"""Evaluation: rows and rules of the scores, references, patient means, intervals and paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from mhvae_kit import MHVAE, MHVAEConfig, evaluation, metrics
from mhvae_kit.data import load_phantom
from mhvae_kit.errors import InputError

SIZE, DEPTH = 32, 5
FIXED = "phantom-test"


class FakeDataset:
    """Four small patients; slice 0 has an empty fan, slice 1 of case "d" one too thin for SSIM."""

    modalities = ("us", "t2")

    def __init__(self, name: str = FIXED) -> None:
        self.name = name
        self.splits = {"train": ["a"], "test": ["b", "c", "d"], "empty": []}

    def case_ids(self, split: str | None = None) -> list[str]:
        return sorted(c for s in self.splits for c in self.splits[s]) if split is None else list(self.splits[split])

    def volume(self, case: str, kind: str) -> np.ndarray:
        fov = np.zeros((SIZE, SIZE, DEPTH), np.uint8)
        fov[4:28, 2:30, 1:] = 1
        if case == "d":
            fov[10:, :, 1] = 0
        if kind == "fov":
            return fov
        rng = np.random.default_rng([ord(case), *kind.encode()])
        steps = np.linspace(60, 200, DEPTH).astype(np.uint8)
        return (steps + rng.integers(0, 50, fov.shape, dtype=np.uint8)) * fov

    def oracle(self, case: str) -> np.ndarray:
        return self.volume(case, "us").astype(np.float32) / 255 * 2 - 1


class FakeModel(nn.Module):
    """Predicts every target as the mean of the observed images plus temperature times noise; 0.5 outside the fan."""

    def __init__(self, spoil: str | None = None, card: dict | None = None) -> None:
        super().__init__()
        self.config = SimpleNamespace(modalities=("us", "t2"))
        self.card, self.spoil, self.encoded, self.asked = card, spoil, 0, []

    def encode(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.encoded += 1
        assert not self.training and not torch.is_grad_enabled()
        assert all(x.dtype == torch.float32 and x.shape[1:] == (1, SIZE, SIZE) for x in images.values())
        return dict(images)

    def draw_noise(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        draws = {k: torch.randn(n, 1, SIZE // k, SIZE // k, generator=generator) for k in (2, 1)}
        return {f"z{k}": z for k, z in draws.items()}

    def decode(
        self,
        encoding: dict[str, Tensor],
        observed: Iterable[str],
        temperature: float | Mapping[str, float],
        targets: Iterable[str],
        noise: Mapping[str, Tensor] | None = None,
    ) -> SimpleNamespace:
        self.asked.append(tuple(observed))
        mean = torch.stack([encoding[m] for m in observed]).mean(0)
        tau = temperature.get("z1", 1.0) if isinstance(temperature, Mapping) else temperature
        image = mean if noise is None else mean + 0.1 * tau * noise["z1"]
        image = torch.where(mean == -1, torch.full_like(mean, 0.5), image.clamp(-1, 1))
        if self.spoil == "nan":
            image[-1, 0, 8, 8] = float("nan")
        return SimpleNamespace(images=dict.fromkeys(targets, image * 2 if self.spoil == "range" else image))


@pytest.fixture
def dataset() -> FakeDataset:
    return FakeDataset()


@pytest.fixture
def scores(dataset: FakeDataset) -> pd.DataFrame:
    return evaluation.evaluate(FakeModel(), dataset)


# --- evaluate ---


def test_every_slice_subset_and_target_has_one_row(scores):
    assert list(scores.columns) == ["data", "case", "slice", "observed", "target", "temperature", *evaluation.SCORES]
    counts = scores.groupby(["observed", "target"])["slice"].count()
    assert sorted(counts.index) == [(o, t) for o in ("t2", "t2+us", "us") for t in ("t2", "us")]
    assert (counts == 11).all()
    assert not scores.isna().any().any()


def test_slices_without_a_usable_fan_are_left_out_and_counted(scores):
    assert 0 not in set(scores["slice"])
    assert 1 not in set(scores.loc[scores["case"] == "d", "slice"])
    assert scores.attrs == {"data": FIXED, "skipped_empty_slices": 3, "skipped_thin_slices": 1}


def test_phantom_scores_say_so_in_every_row(scores):
    assert scores["data"].str.contains("phantom").all()
    assert evaluation.summary(scores)["data"].eq(FIXED).all()


def test_scores_are_those_of_the_metrics_inside_the_explicit_fan(scores, dataset):
    us, t2, fov = (np.moveaxis(dataset.volume("b", k), 2, 0)[2] for k in ("us", "t2", "fov"))
    truth, guess = us / 255 * 2 - 1, t2 / 255 * 2 - 1
    row = scores.query("case == 'b' and slice == 2 and observed == 't2' and target == 'us'").iloc[0]
    inside = {"data_range": 2, "mask": fov > 0}
    assert row["psnr_fov_db"] == pytest.approx(metrics.psnr(guess, truth, **inside)[0], rel=1e-5)
    assert row["ssim_fov"] == pytest.approx(metrics.ssim(guess, truth, **inside)[0], rel=1e-5)
    assert row["l1_fov"] == pytest.approx(metrics.mae(guess, truth, **inside)[0], rel=1e-5)
    # The fake model leaves 0.5 outside the fan; the full-frame columns are scored with the background put back.
    assert row["psnr_full_db"] == pytest.approx(metrics.psnr(guess, truth, data_range=2)[0], rel=1e-5)
    assert row["ssim_full"] == pytest.approx(metrics.ssim(guess, truth, data_range=2)[0], rel=1e-5)


def test_a_perfect_prediction_scores_infinity_and_is_summarised(scores):
    same = scores.query("observed == 'us' and target == 'us'")
    assert np.isposinf(same["psnr_fov_db"]).all() and same["ssim_fov"].to_numpy() == pytest.approx(1)
    row = evaluation.summary(same).iloc[0]
    assert np.isposinf(row[["psnr_fov_db", "psnr_fov_db_low", "psnr_fov_db_high"]].to_numpy(dtype=float)).all()


def test_each_batch_is_encoded_once_for_all_subsets(dataset):
    model = FakeModel()
    evaluation.evaluate(model, dataset, batch_size=16)
    assert model.encoded == 3 and len(model.asked) == 9


@pytest.mark.parametrize("temperature", [0.0, 0.7, {"z1": 0.3}])
def test_scores_do_not_depend_on_batch_size_or_on_which_cases_are_scored(dataset, temperature):
    one = evaluation.evaluate(FakeModel(), dataset, temperature=temperature, batch_size=1)
    many = evaluation.evaluate(FakeModel(), dataset, temperature=temperature, batch_size=16)
    keys = ["case", "slice", "observed", "target"]
    pd.testing.assert_frame_equal(one.sort_values(keys, ignore_index=True), many.sort_values(keys, ignore_index=True))
    alone = evaluation.evaluate(FakeModel(), dataset, temperature=temperature, cases=["c"])
    pd.testing.assert_frame_equal(alone, many[many["case"] == "c"].reset_index(drop=True), check_like=True)


def test_sampled_scores_repeat_for_a_seed_and_differ_between_seeds(dataset):
    options = {"temperature": 1.0, "observed": ["t2"], "targets": ["us"]}
    a, b, c = (evaluation.evaluate(FakeModel(), dataset, seed=s, **options) for s in (1, 1, 2))
    pd.testing.assert_frame_equal(a, b)
    assert (a["psnr_fov_db"] != c["psnr_fov_db"]).all()


def test_sampling_leaves_the_global_random_state_alone(dataset):
    before = torch.get_rng_state()
    evaluation.evaluate(FakeModel(), dataset, temperature=1.0)
    assert torch.equal(before, torch.get_rng_state())


def test_temperatures_by_level_are_written_out(dataset):
    table = evaluation.evaluate(FakeModel(), dataset, temperature={"z2": 0.5, "z1": 0.2}, observed=["t2"])
    assert set(table["temperature"]) == {"z1=0.2, z2=0.5"}


def test_subsets_may_be_names_or_tuples_in_any_order(dataset):
    table = evaluation.evaluate(FakeModel(), dataset, observed=[("us", "t2"), "t2"], targets=["us"])
    assert set(table["observed"]) == {"t2+us", "t2"} and set(table["target"]) == {"us"}


def test_the_model_is_given_back_in_the_mode_it_was_in(dataset):
    model = FakeModel().train()
    evaluation.evaluate(model, dataset, observed=["t2"])
    assert model.training


def test_predictions_carry_images_and_truth_for_figures(dataset):
    made = list(evaluation.predictions(FakeModel(), dataset, observed=["t2"], targets=["us"], slices=[2, 4]))
    assert [(p.case, p.slices, p.observed) for p in made] == [(c, (2, 4), ("t2",)) for c in "bcd"]
    assert made[0].images["us"].shape == made[0].targets["us"].shape == made[0].fov.shape == (2, SIZE, SIZE)


# --- what evaluate refuses ---


def test_cases_the_model_was_trained_on_are_refused(dataset):
    model = FakeModel(card={"training_cases": ["a", "c"]})
    with pytest.raises(InputError, match="trained on cases.*1 of 3: c"):
        evaluation.evaluate(model, dataset)
    assert set(evaluation.evaluate(model, dataset, cases=["b"])["case"]) == {"b"}
    assert len(evaluation.evaluate(model, dataset, split="train", allow_training_cases=True))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [("nan", "prediction of us from t2 holds NaN.*in b, slice 4"), ("range", "prediction lies outside")],
)
def test_unfit_predictions_are_refused(dataset, spoil, message):
    with pytest.raises(InputError, match=message):
        evaluation.evaluate(FakeModel(spoil=spoil), dataset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observed": ["flair"]}, "observed is not a list"),
        ({"observed": []}, "observed is not a list"),
        ({"observed": [()]}, "observed is not a list"),
        ({"observed": ["t2+us", ("us", "t2")]}, "observed is not a list"),
        ({"observed": ["t2+t2"]}, "names a modality twice"),
        ({"targets": ["flair"]}, "unknown targets"),
        ({"cases": ["a"]}, "a not in the test split of phantom-test"),
        ({"split": "empty"}, "no case to evaluate"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_unfit_arguments_are_refused(dataset, options, message):
    with pytest.raises(InputError, match=message):
        evaluation.evaluate(FakeModel(), dataset, **options)


def test_a_dataset_without_a_modality_of_the_model_is_refused(dataset):
    dataset.modalities = ("t2",)
    with pytest.raises(InputError, match="lacks modalities of the model.*us"):
        evaluation.evaluate(FakeModel(), dataset)


def test_a_dataset_without_any_fan_is_refused(dataset, monkeypatch):
    monkeypatch.setattr(FakeDataset, "volume", lambda self, case, kind: np.zeros((SIZE, SIZE, DEPTH), np.uint8))
    with pytest.raises(InputError, match="nothing to score"):
        evaluation.evaluate(FakeModel(), dataset)


# --- references ---


def test_references_are_the_constant_image_and_the_oracle(dataset):
    table = evaluation.references(dataset)
    assert list(table.columns) == list(evaluation.evaluate(FakeModel(), dataset).columns)
    found = sorted({(o, t) for o, t in zip(table["observed"], table["target"], strict=True)})
    assert found == [("constant image", "t2"), ("constant image", "us"), ("oracle", "us")]
    assert table.loc[table["observed"] == "oracle", "l1_fov"].to_numpy() == pytest.approx(0, abs=1e-6)


def test_the_constant_is_the_mean_of_the_training_fan(dataset):
    volume, fov = dataset.volume("a", "us"), dataset.volume("a", "fov") > 0
    mean = evaluation.fan_mean(dataset, "us")
    assert mean == pytest.approx(volume[fov].mean() / 255 * 2 - 1, abs=1e-6)
    computed = evaluation.references(dataset, targets=["us"], oracle_target=None)
    given = evaluation.references(dataset, targets=["us"], oracle_target=None, constants={"us": mean})
    pd.testing.assert_frame_equal(computed, given)


def test_without_training_cases_a_constant_must_be_given(dataset):
    dataset.splits["train"] = []
    with pytest.raises(InputError, match="no train case.*give the constants"):
        evaluation.references(dataset, targets=["us"])
    assert len(evaluation.references(dataset, targets=["us"], constants={"us": 0.0}))


@pytest.mark.parametrize("constants", [{}, {"us": 3.0}, {"us": float("nan")}])
def test_unusable_constants_are_refused(dataset, constants):
    with pytest.raises(InputError, match="no usable constant for us"):
        evaluation.references(dataset, targets=["us"], constants=constants)


# --- tables ---


def _table(values: Mapping[str, list[float]], observed: str = "t2") -> pd.DataFrame:
    """One row a slice, all scores equal to the given numbers."""
    rows = [
        {"data": FIXED, "case": c, "slice": i, "observed": observed, "target": "us", "temperature": 0.0}
        | dict.fromkeys(evaluation.SCORES, v)
        for c, numbers in values.items()
        for i, v in enumerate(numbers)
    ]
    return pd.DataFrame(rows)


def test_patients_count_alike_however_many_slices_they_have():
    table = _table({"b": [1.0], "c": [3.0, 4.0, 5.0]})
    patients = evaluation.per_patient(table)
    assert list(patients["psnr_fov_db"]) == [1.0, 4.0] and list(patients["n_slices"]) == [1, 3]
    row = evaluation.summary(table).iloc[0]
    assert row["psnr_fov_db"] == 2.5 and row["n_patients"] == 2 and row["n_slices"] == 4


def test_the_interval_is_a_bootstrap_over_patients():
    values = np.random.default_rng(0).normal(20, 2, 30)
    row = evaluation.summary(_table({f"p{i}": [v] for i, v in enumerate(values)})).iloc[0]
    half = 1.96 * values.std(ddof=0) / np.sqrt(30)
    assert row["psnr_fov_db_low"] == pytest.approx(values.mean() - half, abs=0.25 * half)
    assert row["psnr_fov_db_high"] == pytest.approx(values.mean() + half, abs=0.25 * half)


def test_intervals_repeat_and_do_not_depend_on_row_order(scores):
    shuffled = scores.sample(frac=1, random_state=0)
    keys = ["observed", "target"]
    first, second = (evaluation.summary(t).sort_values(keys, ignore_index=True) for t in (scores, shuffled))
    pd.testing.assert_frame_equal(first, second)


def test_the_seed_of_the_bootstrap_is_its_own():
    table = _table({f"p{i}": [v] for i, v in enumerate(np.random.default_rng(0).normal(20, 2, 30))})
    low = [evaluation.summary(table, seed=s)["psnr_fov_db_low"].iloc[0] for s in (0, 0, 1)]
    assert low[0] == low[1] != low[2]


def test_a_single_patient_has_no_interval():
    row = evaluation.summary(_table({"b": [1.0, 2.0]})).iloc[0]
    assert row["psnr_fov_db"] == 1.5 and np.isnan(row["psnr_fov_db_low"]) and np.isnan(row["psnr_fov_db_high"])


def test_a_missing_score_is_not_passed_over():
    assert np.isnan(evaluation.summary(_table({"b": [1.0, np.nan], "c": [2.0]}))["ssim_fov"].iloc[0])


def test_two_models_in_one_table_are_refused(scores):
    with pytest.raises(InputError, match="scored twice"):
        evaluation.summary(pd.concat([scores, scores]))


def test_a_paired_difference_is_narrower_than_either_interval():
    rng = np.random.default_rng(1)
    levels, gains = rng.normal(20, 3, 12), rng.normal(1, 0.1, 12)
    a = _table({f"p{i}": [v + g] * 2 for i, (v, g) in enumerate(zip(levels, gains, strict=True))})
    b = _table({f"p{i}": [v] * 2 for i, v in enumerate(levels)})
    row = evaluation.compare(a, b).iloc[0]
    assert row["psnr_fov_db"] == pytest.approx(gains.mean()) and row["n_patients"] == 12 and row["n_slices"] == 24
    assert 0.9 < row["psnr_fov_db_low"] < 1 < row["psnr_fov_db_high"] < 1.1 and row["data"] == FIXED
    opposite = evaluation.compare(b, a).iloc[0]
    assert opposite["psnr_fov_db"] == pytest.approx(-row["psnr_fov_db"])


def test_subsets_of_one_model_are_compared_by_target():
    one, both = _table({"b": [1.0], "c": [2.0]}), _table({"b": [2.0], "c": [4.0]}, observed="t2+us")
    assert evaluation.compare(both, one, by=("target",))["psnr_fov_db"].iloc[0] == 1.5


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (_table({"b": [1.0]}), "do not hold the same slices"),
        (_table({"b": [1.0], "c": [2.0]}, observed="us"), "do not hold the same slices"),
        (_table({"b": [1.0], "c": [2.0]}).assign(data="patients"), "different data"),
        (pd.concat([_table({"b": [1.0], "c": [2.0]})] * 2), "do not pair one to one"),
        (_table({}).reindex(columns=["data"]), "not a table of scores"),
    ],
)
def test_tables_that_do_not_pair_are_refused(other, message):
    with pytest.raises(InputError, match=message):
        evaluation.compare(_table({"b": [1.0], "c": [2.0]}), other)


def test_a_table_is_printed_with_mean_and_interval():
    text = evaluation.format_table(evaluation.summary(_table({"b": [22.0], "c": [24.0]})), scores=["psnr_fov_db"])
    assert text.iloc[0].to_dict() == {
        "data": FIXED,
        "observed": "t2",
        "target": "us",
        "temperature": "0",
        "patients": "2",
        "PSNR in fan (dB)": "23.0 [22.0, 24.0]",
    }
    single = evaluation.format_table(evaluation.summary(_table({"b": [22.0]})))
    assert single["SSIM in fan"].iloc[0] == "22.000 [one patient]"


def test_a_table_without_its_columns_is_refused():
    with pytest.raises(InputError, match="not a table of scores.*data"):
        evaluation.format_table(pd.DataFrame({"psnr_fov_db": [1.0]}))


# --- texture ---


def test_texture_of_noise_is_nearer_the_real_one_than_blur_is(dataset):
    table, spectra, frequency = evaluation.texture(
        FakeModel(), dataset, spacing_mm=1.0, dynamic_range_db=50.0, observed="t2", temperatures=(0.0, 1.0)
    )
    assert list(spectra) == ["real", "temperature 0", "temperature 1"] and frequency.shape == spectra["real"].shape[1:]
    assert table["kind"].value_counts().to_dict() == dict.fromkeys(spectra, 11)
    assert not table.isna().any().any() and (table["data"] == FIXED).all()
    spread = table.groupby("kind")["texture_std"].mean()
    assert spread["temperature 1"] > spread["temperature 0"]


# --- the kit's own model and phantom ---


@pytest.fixture(scope="module")
def phantom():
    return load_phantom(
        "smoke", cases=["phantom-train-000", "phantom-test-000", "phantom-test-001"], show_progress=False
    )


def test_an_mhvae_is_scored_on_the_phantom_beside_its_references(phantom):
    model = MHVAE(MHVAEConfig.preset("smoke"))
    scores = evaluation.evaluate(model, phantom, temperature=0.7, batch_size=5)
    again = evaluation.evaluate(model, phantom, temperature=0.7, batch_size=16)
    keys = ["case", "slice", "observed", "target"]
    first, second = (t.sort_values(keys)["psnr_fov_db"].to_numpy() for t in (scores, again))
    np.testing.assert_allclose(first, second, atol=1e-3)
    table = pd.concat([scores, evaluation.references(phantom, targets=["us"])])
    means = evaluation.summary(table).query("target == 'us'").set_index("observed")["psnr_fov_db"]
    assert means.notna().all() and means["constant image"] + 4 < means["oracle"]
    assert evaluation.summary(table)["data"].eq("phantom-smoke").all()


def test_a_phantom_of_another_size_than_the_model_is_refused(phantom):
    with pytest.raises(InputError, match="64"):
        evaluation.evaluate(MHVAE(MHVAEConfig.preset("demo")), phantom)
