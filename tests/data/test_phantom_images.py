"""Is the phantom a fair stand-in: speckle statistics, contrasts, geometry, and the out-of-distribution split."""

from __future__ import annotations

import numpy as np
import pytest

from mhvae_kit.data.phantom import fairness, load_phantom
from mhvae_kit.data.phantom.atlas import load_atlas
from mhvae_kit.data.phantom.fields import Grid, smooth_field
from mhvae_kit.data.phantom.generate import make_images, make_oracle, make_patient
from mhvae_kit.data.phantom.presets import PRESETS, case_seed, case_table, get_preset


@pytest.fixture(scope="module")
def patient(phantom):
    return make_patient("phantom-test-000", get_preset("smoke"), load_atlas(phantom.root.parent))


@pytest.mark.parametrize("preset", ["smoke", "demo"])
def test_one_look_of_developed_speckle_is_rayleigh(preset):
    snr = fairness.speckle_envelope_snr(preset, n_draws=2)
    assert abs(snr["one_look"] - 1.91) < 0.15
    assert snr["compounded"] > 1.3 * snr["one_look"]


def test_t2_contrast_falls_from_fluid_to_white_matter(phantom):
    levels = fairness.t2_contrasts(phantom)["t2"]
    assert levels["csf"] > levels["tumour"] > levels["grey"] > levels["white"]
    assert np.diff(levels[["csf", "tumour", "grey", "white"]]).max() < -20


def test_ultrasound_shows_the_known_contrasts(phantom):
    levels = fairness.t2_contrasts(phantom)["us"]
    brain = max(levels["grey"], levels["white"])
    assert levels["csf"] > brain + 30 and levels["falx"] > brain + 30  # sulci and falx are bright
    assert levels["tumour"] > brain + 15
    assert levels["ventricle"] < brain - 20 and levels["cyst"] < brain - 10  # fluid spaces are dark


def test_the_oracle_scores_as_in_the_paper_and_beats_a_constant(phantom):
    scores = fairness.oracle_scores(phantom)
    assert scores["oracle_psnr_db"].between(21, 25).all()
    assert (scores["gap_db"] > 4).all()


def test_the_oracle_is_the_mean_of_other_draws(phantom, patient):
    few = make_oracle(patient, 2)
    fov = phantom.volume(patient.case, "fov") > 0
    many = phantom.oracle(patient.case)
    assert many.dtype == np.float32 and (many[~fov] == -1).all() and (many[fov] > -1).any()
    assert np.abs(many).max() <= 1
    assert 0.05 < np.abs(few - many)[fov].mean() < 0.3


def test_another_draw_changes_only_the_speckle(phantom, patient):
    other = make_images(patient)
    assert np.array_equal(other["us"], phantom.volume(patient.case, "us"))
    one, two = make_oracle(patient, 1), make_oracle(patient, 1)
    assert np.array_equal(one, two)  # the stream starts anew each time


def test_images_fill_the_fan_and_nothing_else(phantom):
    for case in phantom.case_ids():
        fov = phantom.volume(case, "fov") > 0
        assert 0.3 < fov.mean() < 0.8
        for modality in phantom.modalities:
            image = phantom.volume(case, modality)
            assert image.dtype == np.uint8 and np.array_equal(image > 0, fov)
        tumour = phantom.volume(case, "tumour") > 0
        assert tumour.any() and not (tumour & ~fov).any()


def test_the_probe_touches_the_brain_in_every_preset():
    atlas = None
    for name in ("smoke", "demo"):
        preset = get_preset(name)
        atlas = atlas or load_atlas(load_phantom("smoke", show_progress=False).root.parent)
        patient = make_patient("phantom-train-003", preset, atlas)
        middle = np.array(preset.shape) // 2
        bone = patient.maps["bone"][:, middle[1], middle[2]]
        depth = patient.grid.depth_mm
        assert bone[depth > 3][0] < 0.05 and bone[(depth > 3) & (depth < 60)].mean() < 0.1


def test_a_patient_is_the_same_at_every_resolution(phantom, patient):
    demo = make_patient(patient.case, get_preset("demo"), load_atlas(phantom.root.parent))
    assert demo.seed == patient.seed
    assert demo.parameters["tumour"]["radius_mm"] == patient.parameters["tumour"]["radius_mm"]
    volumes = [p.label.sum() * p.grid.spacing_mm**3 / (p.grid.shape[2] * p.grid.spacing_mm) for p in (demo, patient)]
    assert 0.7 < volumes[0] / volumes[1] < 1.4


def test_tissue_shares_add_up(patient):
    total = sum(patient.maps.values())
    assert np.abs(total - 1).max() < 1e-4
    assert min(share.min() for share in patient.maps.values()) >= -1e-6


def test_the_affine_is_oblique_and_has_the_spacing(phantom):
    for case in phantom.case_ids("test"):
        axes = phantom.affine(case)[:3, :3]
        np.testing.assert_allclose(axes.T @ axes, phantom.spacing_mm**2 * np.eye(3), atol=1e-4)
        assert np.linalg.det(axes) > 0
        assert (np.abs(axes).max(axis=0) < 0.9999 * phantom.spacing_mm).any()


def test_the_out_of_distribution_split_differs(phantom):
    fair = fairness.t2_contrasts(phantom, phantom.case_ids("train"))["t2"]
    other = fairness.t2_contrasts(phantom, phantom.case_ids("ood"))["t2"]
    assert other["white"] - fair["white"] > 15  # another contrast

    def roughness(case):
        image = phantom.volume(case, "t2").astype(float)
        inside = phantom.volume(case, "fov")[1:-1] > 0
        return np.median(np.abs(np.diff(image, n=2, axis=0))[inside])

    assert np.mean([roughness(c) for c in phantom.case_ids("ood")]) > 1.3 * np.mean(
        [roughness(c) for c in phantom.case_ids("train")]
    )


def test_smooth_fields_have_unit_variance_and_the_same_structure_at_every_resolution():
    fields = [
        smooth_field(np.random.default_rng(1), Grid(p.shape, p.spacing_mm), 8.0)
        for p in (PRESETS["smoke"], PRESETS["demo"])
    ]
    for field in fields:
        assert abs(field.mean()) < 0.3 and 0.7 < field.std() < 1.3
    # 3 voxels of 1 mm are 2 voxels of 1.5 mm: every third and every second row lie at the same depth.
    assert np.corrcoef(fields[0][::2, 32, 6], fields[1][::3, 48, 12])[0, 1] > 0.9


def test_seeds_differ_between_patients():
    seeds = [case_seed(case) for case in case_table(get_preset("demo"))]
    assert len(set(seeds)) == len(seeds) == 78


def test_the_atlas_holds_the_known_structures(phantom):
    atlas = load_atlas(phantom.root.parent)

    def at(name, *mni):
        return int(getattr(atlas, name)[tuple(np.round(np.array(mni) - atlas.origin_mm).astype(int))])

    assert at("ventricle", 9, 5, 19) > 200 and at("ventricle", 25, -45, 10) > 150 and at("ventricle", 25, -20, 35) == 0
    assert at("white", 25, -20, 35) > 200
    assert at("falx", 0, 20, 50) > 200 and at("falx", 20, 20, 50) == 0
    assert at("hull", 0, 0, 30) < 128 < at("hull", 0, 0, 90)


def test_the_large_cohort_holds_the_demo_patients_and_more_for_training():
    small, large = case_table(get_preset("demo")), case_table(get_preset("demo_large"))
    assert small.items() <= large.items()
    assert {large[case] for case in large.keys() - small.keys()} == {"train"}
    same = ("size_px", "n_slices", "spacing_mm")
    assert all(getattr(PRESETS["demo"], k) == getattr(PRESETS["demo_large"], k) for k in same)
