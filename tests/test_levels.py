"""Experiments on levels: what is fixed, who speaks, how fine a change is, and what the verdict says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhvae_kit import MHVAE, MHVAEConfig, levels
from mhvae_kit.errors import InputError
from mhvae_kit.gaussian import Gaussian, kl_divergence

SIZE, DEPTH = 16, 4
CONFIG = MHVAEConfig(image_size=(SIZE, SIZE), levels=3, base_channels=4, max_channels=4, decoder_blocks=1, expansion=1)
NAMES = CONFIG.level_names


class TinyDataset:
    """Two test patients of random texture under a fan; slice 0 has no fan."""

    modalities = ("us", "t2")
    name = "phantom-test"

    def case_ids(self, split: str | None = None) -> list[str]:
        return ["a", "b"]

    def volume(self, case: str, kind: str) -> np.ndarray:
        fov = np.zeros((SIZE, SIZE, DEPTH), np.uint8)
        fov[1:15, 1:15, 1:] = 1
        if kind == "fov":
            return fov
        rng = np.random.default_rng([ord(case), *kind.encode()])
        return rng.integers(1, 255, fov.shape, dtype=np.uint8) * fov


@pytest.fixture(scope="module")
def model() -> MHVAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MHVAE(CONFIG).eval()


@pytest.fixture(scope="module")
def encodings(model) -> list:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return [
            model.encode({m: torch.rand(2, 1, SIZE, SIZE, generator=generator) * 2 - 1 for m in ("us", "t2")})
            for _ in range(2)
        ]


@pytest.fixture
def noise(model) -> dict[str, torch.Tensor]:
    return model.draw_noise(2, generator())


def generator(seed: int = 2) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


# --- Redrawing ---


def test_with_finer_latents_imposed_only_the_finest_level_moves_the_image(model, encodings, noise):
    before = model.decode(encodings[0], targets=["us"], noise=noise).images["us"]
    options = {"target": "us", "noise": noise, "generator": generator(), "impose_finer": True}
    for level in NAMES:
        made = levels.redraw(model, encodings[0], [level], 3, **options)
        assert made.shape == (3, 2, 1, SIZE, SIZE)
        assert torch.allclose(made, before.expand_as(made), atol=1e-6) == (level != "z1")


def test_with_finer_noise_fixed_every_level_moves_the_image(model, encodings, noise):
    for level in NAMES:
        made = levels.redraw(model, encodings[0], [level], 3, target="us", noise=noise, generator=generator())
        assert made.std(0).max() > 1e-4, level


def test_a_redraw_is_the_decode_with_that_level_s_noise_replaced(model, encodings, noise):
    made = levels.redraw(model, encodings[0], ["z2"], 2, target="t2", noise=noise, generator=generator())
    fresh = model.draw_noise(4, generator(), only=["z2"])["z2"]
    for i in range(2):
        own = {**noise, "z2": fresh[2 * i : 2 * i + 2]}
        torch.testing.assert_close(made[i], model.decode(encodings[0], targets=["t2"], noise=own).images["t2"])


def test_at_temperature_zero_a_redraw_changes_nothing(model, encodings, noise):
    options = {"target": "us", "noise": noise, "generator": generator(), "temperature": 0.0}
    made = levels.redraw(model, encodings[0], NAMES, 3, **options)
    torch.testing.assert_close(made[0], made[2])


def test_redraws_that_make_no_sense_are_refused(model, encodings, noise):
    options = {"target": "us", "noise": noise, "generator": generator()}
    for which, n in ((["z9"], 2), ([], 2), (["z1"], 0)):
        with pytest.raises(InputError, match="nothing to redraw"):
            levels.redraw(model, encodings[0], which, n, **options)
    lacking = {k: z for k, z in noise.items() if k != "z2"}
    with pytest.raises(InputError, match="noise lacks levels; got z2"):
        levels.redraw(model, encodings[0], ["z1"], 2, **{**options, "noise": lacking})


# --- Who speaks where ---


def test_the_same_subset_at_every_level_is_plain_decode(model, encodings, noise):
    for subset in ((), ("t2",), ("us", "t2")):
        made = levels.decode_levelwise(model, encodings[0], dict.fromkeys(NAMES, subset), noise=noise)
        plain = model.decode(encodings[0], subset, noise=noise)
        torch.testing.assert_close(made.images, plain.images)
        torch.testing.assert_close(made.kl, plain.kl)
        assert set(made.observed) == set(subset)


def test_a_level_whose_experts_are_dropped_follows_its_prior(model, encodings, noise):
    made = levels.drop_experts(model, encodings[0], ["z2"], noise=noise, observed=("t2",))
    assert made.kl["z2"].abs().max() == 0 and made.experts["z2"] == {}
    assert made.kl["z3"].min() > 0 and made.kl["z1"].min() > 0 and list(made.experts["z1"]) == ["t2"]
    expected = made.prior["z2"].sample(noise["z2"])
    torch.testing.assert_close(made.latents["z2"], expected)
    above = model.decode(encodings[0], ("t2",), noise=noise).latents["z3"]
    torch.testing.assert_close(made.latents["z3"], above)


def test_dropping_all_experts_leaves_the_prior_alone(model, encodings, noise):
    made = levels.drop_experts(model, encodings[0], NAMES, noise=noise).images
    torch.testing.assert_close(made, model.decode(encodings[0], (), noise=noise).images)


def test_one_modality_can_be_silent_at_one_level(model, encodings, noise):
    made = levels.decode_levelwise(model, encodings[0], {"z1": ("us",)}, noise=noise)
    assert [sorted(made.experts[k]) for k in NAMES] == [["t2", "us"], ["t2", "us"], ["us"]]


def test_levels_and_noise_that_are_unknown_are_refused(model, encodings, noise):
    with pytest.raises(InputError, match="unknown latent level"):
        levels.drop_experts(model, encodings[0], ["z9"], noise=noise)
    with pytest.raises(InputError, match="noise lacks levels"):
        levels.decode_levelwise(model, encodings[0], {}, noise={})
    levels.decode_levelwise(model, encodings[0], {}, noise={}, temperature=0.0)


def test_a_swap_at_the_finest_level_gives_the_other_patient(model, encodings, noise):
    first, second = encodings
    options = {"target": "us", "noise": noise}
    theirs = model.decode(second, targets=["us"], noise=noise).images["us"]
    torch.testing.assert_close(levels.swap(model, first, second, "z1", **options), theirs)


def test_a_swap_equals_swapping_all_coarser_levels_too(model, encodings, noise):
    first, second = encodings
    z = model.decode(second, noise=noise).latents
    all_coarser = model.decode(first, targets=["us"], noise=noise, levels={"z3": z["z3"], "z2": z["z2"]}).images["us"]
    torch.testing.assert_close(levels.swap(model, first, second, "z2", target="us", noise=noise), all_coarser)


def test_below_a_swap_the_patient_corrects_or_nobody_does(model, encodings, noise):
    first, second = encodings
    options = {"target": "us", "noise": noise}
    corrected = levels.swap(model, first, second, "z3", **options)
    alone = levels.swap(model, first, second, "z3", finer="prior", **options)
    assert not torch.allclose(corrected, alone)
    # Without the patient's own images nothing of the patient is left in it.
    torch.testing.assert_close(alone, levels.swap(model, second, second, "z3", finer="prior", **options))
    with pytest.raises(InputError, match="finer levels"):
        levels.swap(model, first, second, "z3", finer="both", **options)


def test_a_traversal_passes_through_the_image_and_moves_one_unit(model, encodings, noise):
    options = {"target": "us", "noise": noise}
    made = levels.traverse(model, encodings[0], "z2", 1, (-2.0, 0.0, 2.0), **options)
    before = model.decode(encodings[0], temperature=0.0, targets=["us"])
    torch.testing.assert_close(made[1], before.images["us"])
    z = before.latents["z2"].clone()
    z[:, 1] += 2 * before.prior["z2"].std[:, 1]
    expected = model.decode(encodings[0], temperature=0.0, targets=["us"], levels={"z2": z}).images["us"]
    torch.testing.assert_close(made[2], expected)
    with pytest.raises(InputError, match="no such unit"):
        levels.traverse(model, encodings[0], "z2", 99, (0.0,), **options)


def test_the_kl_of_a_level_is_the_sum_over_its_units(model, encodings, noise):
    made = model.decode(encodings[0], noise=noise)
    for level in NAMES:
        units = levels.kl_by_unit(made.posterior[level], made.prior[level])
        assert units.shape == (2, CONFIG.latent_shape(level)[0])
        torch.testing.assert_close(units.sum(1), made.kl[level])
    by_hand = Gaussian(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))
    torch.testing.assert_close(
        levels.kl_by_unit(by_hand, Gaussian.standard((1, 2), by_hand.mean)), torch.tensor([[0.5, 0]])
    )
    assert kl_divergence(by_hand, Gaussian.standard((1, 2), by_hand.mean)) == 0.5


# --- How fine a change is ---


def stripes(period_mm: float, size: int = 64, spacing_mm: float = 1.0) -> np.ndarray:
    """Redraws of a pattern of one period in several phases, (n, H, W)."""
    x = np.arange(size) * spacing_mm
    phases = np.arange(8) / 8
    rows = np.sin(2 * np.pi * (x / period_mm + phases[:, None]))
    return np.broadcast_to(rows[:, None, :], (8, size, size)).copy()


@pytest.mark.parametrize(("period_mm", "spacing_mm"), [(8.0, 1.0), (4.0, 1.0), (4.0, 0.5)])
def test_stripes_have_the_centroid_of_their_period(period_mm, spacing_mm):
    mask = np.ones((64, 64), bool)
    f, power = levels.change_spectrum(stripes(period_mm, spacing_mm=spacing_mm), mask, spacing_mm)
    assert levels.spectral_centroid(f, power) == pytest.approx(1 / period_mm, rel=0.05)


def test_white_noise_has_two_thirds_of_the_highest_frequency_and_its_variance():
    images = np.random.default_rng(0).normal(0, 0.3, (6, 64, 64))
    f, power = levels.change_spectrum(images, np.ones((64, 64), bool), 1.0)
    assert levels.spectral_centroid(f, power) == pytest.approx(2 / 3 * 0.5, rel=0.03)
    # Unbiased although only six redraws give the mean: the density of white noise is its variance.
    assert power.mean() == pytest.approx(0.09, rel=0.05)


def test_no_change_has_no_power_and_no_centroid():
    f, power = levels.change_spectrum(np.ones((3, 16, 16)) * 0.2, np.ones((16, 16), bool), 1.0)
    assert len(f) == len(power) and not power.any()
    assert np.isnan(levels.spectral_centroid(f, power))


def test_only_changes_inside_the_mask_count():
    images = np.zeros((2, 32, 32))
    images[1, :4] = 1.0
    mask = np.zeros((32, 32), bool)
    mask[8:30, 2:30] = True
    assert not levels.change_spectrum(images, mask, 1.0)[1].any()


def test_one_redraw_shows_no_change():
    with pytest.raises(InputError, match="needs redraws"):
        levels.change_spectrum(np.zeros((1, 16, 16)), np.ones((16, 16), bool), 1.0)


@settings(max_examples=30)
@given(st.lists(st.floats(0.01, 10), min_size=5, max_size=5), st.floats(0.01, 100))
def test_the_centroid_lies_among_the_frequencies_and_ignores_the_scale(power, factor):
    f = np.linspace(0.1, 0.5, 5)
    centroid = levels.spectral_centroid(f, np.array(power))
    assert f[0] <= centroid <= f[-1]
    np.testing.assert_allclose(levels.spectral_centroid(f, factor * np.array(power)), centroid)
    halves = levels.band_power(f, np.array(power), high=0.3) + levels.band_power(f, np.array(power), low=0.3)
    np.testing.assert_allclose(halves, levels.band_power(f, np.array(power)))


def test_the_way_from_one_image_to_another():
    start, end, mask = np.zeros((4, 4)), np.ones((4, 4)), np.ones((4, 4), bool)
    images = np.stack([start, end, 0.25 * end, np.full((4, 4), 0.5)])
    np.testing.assert_allclose(levels.towards(images, start, end, mask), [0, 1, 0.25, 0.5])
    with pytest.raises(InputError, match="same image"):
        levels.towards(images, start, start, mask)


# --- Over patients ---


@pytest.fixture(scope="module")
def redraws(model) -> tuple[pd.DataFrame, np.ndarray]:
    conditions = [(("t2",), "us"), ((), "us")]
    return levels.redraw_table(model, TinyDataset(), conditions, spacing_mm=2.0, slices=[1, 2], n_draws=3)


def test_the_table_has_a_row_for_each_level_of_each_slice(redraws):
    table, frequency = redraws
    assert len(table) == 2 * 2 * 2 * (len(NAMES) + 1)
    assert set(table["condition"]) == {"us given t2", "us given nothing"} and set(table["level"]) == {*NAMES, "all"}
    assert all(p.shape == frequency.shape for p in table["power"]) and (table["std"] > 0).all()


def test_a_slice_s_rows_do_not_depend_on_the_other_slices(model, redraws):
    alone, _ = levels.redraw_table(
        model, TinyDataset(), [(("t2",), "us")], spacing_mm=2.0, cases=["b"], slices=[2], n_draws=3
    )
    table, _ = redraws
    same = table[(table["case"] == "b") & (table["slice"] == 2) & (table["condition"] == "us given t2")]
    np.testing.assert_allclose(alone["std"], same["std"], rtol=1e-4)


def test_shares_add_up_to_one_in_each_patient(redraws):
    patients = levels.patient_levels(*redraws)
    for name in ("share", "layout_share", "texture_share"):
        sums = patients.groupby(["condition", "case"])[name].sum()
        np.testing.assert_allclose(sums, 1.0)
    summary = levels.level_summary(patients)
    assert list(summary["level"][:3]) == list(NAMES) and (summary["n_patients"] == 2).all()
    assert ((summary["share_low"] <= summary["share"]) & (summary["share"] <= summary["share_high"])).all()


def test_training_cases_and_slices_without_a_fan_are_refused(model):
    model.card = {"training_cases": ["a"]}
    try:
        with pytest.raises(InputError, match="trained on"):
            levels.kl_table(model, TinyDataset(), [("t2",)])
    finally:
        model.card = {}
    with pytest.raises(InputError, match="no slice is left"):
        levels.kl_table(model, TinyDataset(), [("t2",)], slices=[0])


def test_the_kl_table_holds_every_unit_of_every_level(model, encodings):
    table = levels.kl_table(model, TinyDataset(), [("t2",), ("us", "t2")], slices=[1])
    units = table.groupby(["case", "observed", "level"]).size().unstack("level").iloc[0]
    assert {k: units[k] for k in NAMES} == {k: CONFIG.latent_shape(k)[0] for k in NAMES}
    assert set(table["observed"]) == {"t2", "t2+us"} and (table["kl_nats"] >= 0).all()
    assert set(table.loc[table["level"] == "z1", "n_dims"]) == {SIZE * SIZE}


def test_dropping_nothing_and_dropping_all_bound_the_table(model):
    table = levels.dropped_table(model, TinyDataset(), [(("us",), "us")], slices=[1])
    assert len(table) == 2 * (1 + 2 * len(NAMES))
    one = table[table["case"] == "a"].set_index(["dropped", "level"])["psnr_fov_db"]
    assert one["this level", "z1"] == pytest.approx(one["this and finer", "z1"])
    assert one["this and finer", "z3"] != pytest.approx(one["nothing", "none"])


# --- The verdict ---


def patients_of(centroids: list[float], texture: list[float], layout: list[float], shares: list[float]) -> pd.DataFrame:
    """Two equal patients with the given numbers for z3, z2, z1."""
    table = pd.DataFrame({"level": ["z3", "z2", "z1"], "std": np.sqrt(shares), "share": shares})
    table = table.assign(centroid_per_mm=centroids, texture_share=texture, layout_share=layout, interaction=1.0)
    return pd.concat([table.assign(condition="us given t2", case=c) for c in ("a", "b")], ignore_index=True)


def test_the_story_is_confirmed_where_the_numbers_tell_it():
    patients = patients_of([0.05, 0.1, 0.3], [0.0, 0.1, 0.9], [0.8, 0.2, 0.0], [0.3, 0.3, 0.4])
    row = levels.separation(patients).iloc[0]
    assert row["rank_correlation"] == pytest.approx(1.0) and row["reversed"] == "" and row["inert"] == ""
    text = levels.verdict(row)
    assert "every finer level changes finer things (rank correlation 1.00)" in text
    assert "z1 is the texture: it makes 90% of the changes under 6 mm (z1 leads in 2 of 2 patients)" in text
    assert "z3 is the layout: it makes 80%" in text and "Next to nothing" not in text


def test_the_story_is_denied_where_they_do_not():
    patients = patients_of([0.1, 0.3, 0.05], [0.1, 0.5, 0.4], [0.3, 0.3, 0.4], [0.005, 0.5, 0.495])
    row = levels.separation(patients).iloc[0]
    assert row["rank_correlation"] == pytest.approx(-0.5) and row["reversed"] == "z2>z1"
    text = levels.verdict(row)
    assert "the order of the levels does not show (rank correlation -0.50; z1 changes coarser things than z2)" in text
    assert "z1 is not the texture: it makes 40% of the changes under 6 mm, while z2 makes 50%" in text
    assert "z3 is not the layout" in text and "comes from z3" in text


def test_a_largest_part_that_is_no_majority_is_said_to_be_one():
    patients = patients_of([0.1, 0.05, 0.3], [0.3, 0.3, 0.4], [0.4, 0.3, 0.3], [0.3, 0.3, 0.4])
    text = levels.verdict(levels.separation(patients).iloc[0])
    assert "only in part (rank correlation 0.50; z2 changes coarser things than z3)" in text
    assert "z1 is the largest part of the texture" in text and "z3 is the largest part of the layout" in text


def test_nothing_drawn_is_no_verdict_on_a_level():
    nan = [np.nan] * 3
    text = levels.verdict(levels.separation(patients_of([np.nan] * 3, nan, nan, [0.0, 0.0, 0.0])).iloc[0])
    assert "Nothing is drawn in the texture" in text and "does not show" in text


def test_tables_of_something_else_are_refused():
    with pytest.raises(InputError, match="not a table of redraws"):
        levels.patient_levels(pd.DataFrame({"level": ["z1"]}), np.array([0.1]))
