"""Volumes in, volumes out: the same grid, masks, samples, batches, axes, resuming, and what is refused."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhvae_kit import MHVAE, MHVAEConfig
from mhvae_kit.data.nifti import LazyVolume, eight_bit
from mhvae_kit.data.nifti_out import SliceWriter
from mhvae_kit.errors import DataError, InputError, MissingError, RunError
from mhvae_kit.synthesis import find_cases, synthesize_cases, synthesize_volume
from mhvae_kit.synthesis.planes import Flicker, Intensities, PlaneFit, UpperTail

OBLIQUE = np.array([[0.1, 0.5, 0, 3], [0.6, -0.1, 0.2, -4], [0, 0.1, 2, 9], [0, 0, 0, 1.0]])
SHAPE = (20, 24, 5)


@pytest.fixture(scope="module")
def model() -> MHVAE:
    torch.manual_seed(0)
    config = MHVAEConfig(image_size=(16, 24), levels=4, base_channels=4, max_channels=8, decoder_blocks=1)
    return MHVAE(config).eval()


@pytest.fixture
def volume() -> np.ndarray:
    """Values of a scanner, background 0, one slice of background alone."""
    array = np.zeros(SHAPE, np.int16)
    array[3:18, 2:22, 1:] = np.random.default_rng(0).integers(50, 900, (15, 20, 4))
    return array


@pytest.fixture
def nifti(tmp_path):
    """Write a volume as NIfTI and return its path."""

    def write(name: str, array: np.ndarray, affine: np.ndarray = OBLIQUE, ending: str = ".nii.gz") -> Path:
        path = tmp_path / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), path)
        return path

    return write


@pytest.fixture
def run(model, tmp_path, nifti, volume):
    """Synthesise ultrasound from the volume, quietly."""

    def synthesize(name: str = "out", inputs=None, **options):
        inputs = inputs or {"t2": nifti("case", volume)}
        return synthesize_volume(model, inputs, output=tmp_path / name, show_progress=False, **options)

    return synthesize


def values(result, name: str = "us") -> np.ndarray:
    return np.asarray(nib.load(result.path(name)).dataobj)


# --- The grid ---


def test_the_result_lies_on_the_grid_of_the_input(run):
    result = run()
    image = nib.load(result.path("us"))
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-6)
    assert image.shape == SHAPE and image.get_data_dtype() == np.uint8 and image.header.get_xyzt_units()[0] == "mm"
    assert values(result).std() > 5, "a flat image would prove nothing"


def test_codes_and_forms_of_the_affine_are_kept(run, tmp_path, volume):
    image = nib.Nifti1Image(volume, None)
    image.header.set_zooms((0.6, 0.5, 2.0))
    image.set_qform(np.diag([0.6, 0.5, 2, 1]), code=1)
    image.set_sform(OBLIQUE, code=4)
    nib.save(image, tmp_path / "forms.nii.gz")
    written = nib.load(run(inputs={"t2": tmp_path / "forms.nii.gz"}).path("us"))
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (1, 4)
    np.testing.assert_allclose(written.affine, OBLIQUE, atol=1e-6)
    np.testing.assert_allclose(written.get_qform(), np.diag([0.6, 0.5, 2, 1]), atol=1e-6)


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_axes_say_what_a_slice_is(run, nifti, volume, axes):
    plain = run("plain", seed=3, temperature=0.5)
    turned = volume.transpose(np.argsort(axes))
    moved = run("turned", {"t2": nifti("turned", turned)}, axes=axes, seed=3, temperature=0.5, case="case")
    assert values(moved).shape == turned.shape
    assert np.array_equal(values(moved).transpose(axes), values(plain))


def test_slices_of_the_models_pixel_size_are_not_resampled(run):
    assert run("a", spacing_mm=None).record["grid"] == "16 x 24 about the centre"
    # Pixels of 0.608 and 0.52 mm; at 0.4 mm the field has 30 x 31 of them.
    assert "resampled 20 x 24 to 30 x 31 and back" in run("b", spacing_mm=0.4).record["grid"]


def test_what_lies_outside_the_models_frame_stays_background(run, volume):
    result = run()
    assert not values(result)[:2].any() and not values(result)[18:].any() and values(result)[2:18, :, 1:].any()
    outside = (volume > 0)[:2].sum() + (volume > 0)[18:].sum()
    assert result.record["outside_frame"] == round(outside / (volume > 0).sum(), 4)


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
@settings(max_examples=60)
def test_without_resampling_the_way_back_undoes_the_way_there(shape, size):
    fit = PlaneFit.between(shape, (1.0, 1.0), size, None)
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0)) - 0.5
    there = fit.to_model(image)
    again = fit.back(there)
    assert there.shape[2:] == size and again.shape == image.shape
    assert torch.equal(again[fit.reached()], image[fit.reached()])
    assert int(fit.reached().sum()) == min(shape[0], size[0]) * min(shape[1], size[1])


def test_resampling_moves_nothing_and_does_not_darken_the_border():
    fit = PlaneFit.between((64, 48), (0.5, 0.5), (32, 24), 1.0)
    rows = torch.linspace(-0.9, 0.9, 64)[:, None].expand(64, 48)
    image = rows.clone()
    image[:10] = -1
    there = fit.to_model(image[None, None])
    assert (there[..., :5, :] == -1).all() and float(there[0, 0, 5, 3]) > -0.7  # the ramp's value, unmixed with -1
    back = fit.back(there)[0, 0]
    torch.testing.assert_close(back[12:62], rows[12:62], atol=0.02, rtol=0)


def test_a_slice_too_small_for_a_pixel_is_refused():
    with pytest.raises(InputError, match="20 x 24 pixels of 0.001 x 0.001 mm.*check the units"):
        PlaneFit.between((20, 24), (0.001, 0.001), (16, 24), 1.0)


# --- Samples ---


def test_the_mean_and_deviation_are_those_of_the_samples(run):
    result = run(temperature=0.8, samples=4)
    drawn = np.stack([values(result, f"us_sample-{n}") for n in (1, 2, 3, 4)]).astype(float)
    assert np.abs(drawn.mean(0) - values(result)).max() <= 1.01  # each is rounded to grey levels
    np.testing.assert_allclose(values(result, "us_std"), drawn.std(0, ddof=1), atol=0.8)
    assert drawn.std(0).max() > 3 and nib.load(result.path("us_std")).get_data_dtype() == np.float32


def test_draws_depend_on_the_seed_and_not_on_the_batch(run):
    one, many = run("1", temperature=0.8, batch_size=1), run("5", temperature=0.8, batch_size=5)
    difference = np.abs(values(one).astype(int) - values(many))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    assert np.abs(values(run("s", temperature=0.8, seed=1)).astype(int) - values(one)).max() > 10


def test_equal_commands_write_equal_bytes(run):
    first, second = run("a", temperature=0.8, samples=2), run("b", temperature=0.8, samples=2)
    for name in ("us", "us_std", "us_sample-2"):
        assert first.path(name).read_bytes() == second.path(name).read_bytes()


def test_slices_that_share_their_noise_differ_less(run, nifti, volume):
    volume[:, :, 1:] = volume[:, :, 1:2]  # equal slices, so that all flicker is the noise's
    inputs = {"t2": nifti("equal", volume)}
    options = {"temperature": {"z2": 0.0, "z1": 0.0}, "samples": 2}  # the coarse levels keep 1
    key = "us (one sample)"
    apart = run("apart", inputs, **options)
    assert run("coarse", inputs, share="coarse", **options).flicker[key] < 0.01 < 1 < apart.flicker[key]
    samples = [values(apart, f"us_sample-{n}").astype(int) for n in (1, 2)]
    assert np.abs(samples[0] - samples[1]).max() > 5


def test_flicker_is_the_mean_difference_inside_both_masks():
    flicker = Flicker()
    planes, inside = np.array([[[1.0, 9.0]], [[4.0, 0.0]], [[4.0, 5.0]]]), np.array([[[1, 1]], [[1, 0]], [[1, 1]]]) > 0
    flicker.add(planes[:2], inside[:2])
    flicker.add(planes[2:], inside[2:])
    assert flicker.value == (3.0 + 0.0) / 2
    assert Flicker().value is None


def test_several_samples_need_a_temperature(run):
    with pytest.raises(InputError, match="at temperature 0 are all the same"):
        run(samples=3)


# --- Masks, labels, intensities ---


def test_outside_the_field_of_view_all_is_background(run, nifti, volume):
    fov = np.zeros(SHAPE, np.uint8)
    fov[6:14, 5:20, :4] = 1
    result = run(fov=nifti("fov", fov), temperature=0.5, samples=2)
    inside = fov.astype(bool)
    inside[:, :, 0] = False  # no image there
    assert (values(result) > 0).sum() == inside.sum() and (values(result)[inside] > 0).all()
    assert not values(result, "us_std")[~inside].any()


def test_without_a_mask_none_is_taken_from_an_image(run, volume):
    made = values(run())
    assert (made[2:18, :, 1:][(volume == 0)[2:18, :, 1:]] > 0).any()
    assert not made[:, :, 0].any()  # but a slice without any image gives nothing


def test_labels_are_carried_over_voxel_by_voxel(run, nifti):
    label = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.int16)
    fov = np.zeros(SHAPE, np.uint8)
    fov[5:15] = 1
    inputs = {"fov": nifti("fov", fov, ending=".nii"), "labels": {"tumour": nifti("tumour", label)}}
    image = nib.load(run(**inputs).path("tumour"))
    assert image.get_data_dtype() == np.int16 and np.allclose(image.affine, OBLIQUE)
    assert np.array_equal(np.asarray(image.dataobj), label * fov)


def test_intensities_are_those_of_a_volume_read_whole(nifti, volume, tmp_path):
    path = nifti("case", volume)
    lazy = LazyVolume(path, (0, 1, 2), tmp_path)
    mapped = Intensities.of(lazy, "kit").apply(lazy.planes(0, 5))[:, 0]
    expected = eight_bit(volume, "x").transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(mapped.numpy(), expected, atol=1e-6)


@given(n=st.integers(1, 5000), parts=st.integers(1, 7), seed=st.integers(0, 99), linear=st.booleans())
@settings(max_examples=40)
def test_the_upper_quantile_of_a_stream_is_exact(n, parts, seed, linear):
    values = np.random.default_rng(seed).gamma(2.0, 100.0, n).astype(np.float32)
    tail = UpperTail(n)
    for part in np.array_split(values, parts):
        tail.add(part)
    expected = np.quantile(values, 0.9995, method="linear" if linear else "lower")
    np.testing.assert_allclose(tail.value(linear), expected, rtol=1e-5)
    assert tail.low == values.min()


def test_eight_bit_volumes_are_taken_as_they_are(nifti, tmp_path):
    array = np.random.default_rng(0).integers(0, 200, SHAPE).astype(np.uint8)
    lazy = LazyVolume(nifti("plain", array), (0, 1, 2), tmp_path)
    mapped = Intensities.of(lazy, "kit").apply(lazy.planes(0, 5))[:, 0].numpy()
    np.testing.assert_allclose((mapped + 1) * 127.5, array.transpose(2, 0, 1), atol=1e-3)


def test_scaled_integers_are_read_with_their_scale(tmp_path):
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, 3.0)
    nib.save(image, tmp_path / "scaled.nii.gz")
    lazy = LazyVolume(tmp_path / "scaled.nii.gz", (0, 1, 2), tmp_path)
    np.testing.assert_allclose(lazy.planes(1, 3), nib.load(lazy.path).get_fdata()[:, :, 1:3].transpose(2, 0, 1))


def test_the_authors_protocol_has_their_intensities_and_their_mask(run, nifti, volume, tmp_path):
    path = nifti("case", volume)
    lazy = LazyVolume(path, (0, 1, 2), tmp_path)
    mapped = Intensities.of(lazy, "authors").apply(lazy.planes(0, 5))[:, 0].numpy().transpose(1, 2, 0)
    inside = volume > 0
    # By hand, from the description: percentiles 0 and 99.95 of the foreground onto -255/256 and 1, background -1.
    low, high = np.percentile(volume[inside], [0, 99.95])
    expected = (np.minimum(volume, high) - low) / (high - low) * (1 + 255 / 256) - 255 / 256
    np.testing.assert_allclose(mapped[inside], expected[inside], atol=1e-4)
    assert (mapped[~inside] == -1).all()
    made = values(run(protocol="authors"))
    assert not made[~inside].any() and made[2:18][inside[2:18]].any()


def test_the_authors_mask_is_that_of_the_first_image_in_the_models_order(run, nifti, volume):
    small = np.where(np.arange(SHAPE[0])[:, None, None] < 8, volume, 0).astype(np.int16)
    inputs = {"t2": nifti("t2", volume), "us": nifti("us", small)}  # us comes first in the model
    made = values(run(inputs=inputs, targets=["t2"], protocol="authors"), "t2")
    assert not made[8:].any() and made[2:8].any()


def test_the_model_card_names_protocol_and_pixel_size(run, model):
    try:
        model.card = {"protocol": "authors", "spacing_mm": 0.4}
        chosen = run().record["settings"]
        assert (chosen["protocol"], chosen["spacing_mm"]) == ("authors", 0.4)
        model.card = {"data": "phantom-demo_large"}
        assert run("b").record["settings"]["spacing_mm"] == 1.0
    finally:
        model.card = {}


# --- Finishing, resuming, many patients ---


def test_a_synthesis_that_is_there_is_left_and_another_is_not_replaced(run, tmp_path):
    assert run().made
    stamp = (tmp_path / "out" / "us.nii.gz").stat().st_mtime_ns
    assert not run().made and (tmp_path / "out" / "us.nii.gz").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="made otherwise; got seed 0; expected seed 1; .*--force"):
        run(seed=1)
    assert run(seed=1, force=True).record["settings"]["seed"] == 1


def test_another_input_is_not_taken_for_the_same(run, nifti, volume):
    run()
    volume[5, 5, 2] += 1
    with pytest.raises(InputError, match="made otherwise; got given"):
        run(inputs={"t2": nifti("case", volume)})


def test_a_folder_with_something_else_is_left_alone(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds something else"):
        run(force=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("when", ["planes", "packing"])
def test_a_full_disk_is_told_and_leaves_nothing(run, tmp_path, monkeypatch, when):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SliceWriter, "write" if when == "planes" else "finish", full)
    with pytest.raises(RunError, match="the disk is full.*another disk"):
        run()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case.nii.gz"]


def test_too_little_space_is_told_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(RunError, match="no space on disk .*0 MB free"):
        run()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case.nii.gz"]


def test_an_interrupted_synthesis_leaves_nothing(run, model, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "decode", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case.nii.gz"]


def test_cases_are_found_by_folder_or_by_name(nifti, volume, tmp_path):
    for name in ("a/a/t2", "a/a/fov", "a/b/t2", "a/b/fov", "b/c-t2", "b/c-us", "b/c-tumour", "b/d_t2", "b/notes-flair"):
        nifti(name, volume)
    assert [(c.name, list(c.inputs), c.fov.parent.name) for c in find_cases(tmp_path / "a", ["t2"], fov="fov")] == [
        ("a", ["t2"], "a"),
        ("b", ["t2"], "b"),
    ]
    found = {
        c.name: (list(c.inputs), list(c.labels)) for c in find_cases(tmp_path / "b", ["us", "t2"], labels=["tumour"])
    }
    assert found == {"c": (["us", "t2"], ["tumour"]), "d": (["t2"], [])}
    with pytest.raises(MissingError, match="c has no mask"):
        find_cases(tmp_path / "b", ["t2"], fov="fov")
    with pytest.raises(MissingError, match="no patient in"):
        find_cases(tmp_path / "b", ["ct"])
    nifti("b/d_t2", volume, ending=".nii")
    with pytest.raises(DataError, match="t2 of d is there twice"):
        find_cases(tmp_path / "b", ["t2"])


def test_a_patient_with_a_wrong_file_does_not_stop_the_others(model, nifti, volume, tmp_path):
    for name in ("a-t2", "c-t2"):
        nifti(f"in/{name}", volume)
    nifti("in/b-t2", np.zeros(SHAPE, np.int16))
    cases = find_cases(tmp_path / "in", ["t2"])
    options = {"output": tmp_path / "out", "show_progress": False}
    with pytest.raises(RunError, match="1 of 3 patients .*b: .*0 in every voxel"):
        synthesize_cases(model, cases, **options)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a", "c"]
    nifti("in/b-t2", volume)
    assert [r.made for r in synthesize_cases(model, cases, **options)] == [False, True, False]
    record = json.loads((tmp_path / "out" / "b" / "synthesis.json").read_text())
    assert record["settings"]["case"] == "b"


# --- What is refused ---


def damaged(path: Path, kept: float) -> Path:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    return path


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda n, v: n("x", np.stack([v, v], 3)), r"x.nii.gz is not one volume; got shape \(20, 24, 5, 2\)"),
        (lambda n, v: n("x", np.zeros(SHAPE, np.int16)), "x.nii.gz .*0 in every voxel.*leave this image out"),
        (lambda n, v: n("x", np.where(v > 500, np.nan, v).astype(np.float32)), "x.nii.gz .*NaN or infinity"),
        (lambda n, v: n("x", np.where(v > 500, np.inf, v).astype(np.float32)), "x.nii.gz .*NaN or infinity"),
        (lambda n, v: n("x", v - 5), "x.nii.gz .*-5 to .*values from 0 up.*shift"),
        (lambda n, v: damaged(n("x", v), 0.6), "x.nii.gz cannot be read as NIfTI"),
        (lambda n, v: damaged(n("x", v, ending=".nii"), 0.6), "x.nii cannot be read as NIfTI"),
        (lambda n, v: damaged(n("x", v), 0.0), "x.nii.gz cannot be read as NIfTI"),
        (lambda n, v: n("x", v, OBLIQUE * [[1], [1], [1], [1]] / 1000), "x.nii.gz is in a wrong unit.*in mm"),
        (lambda n, v: n("x", v.astype(np.complex64)), "x.nii.gz holds no grey values"),
    ],
)
def test_an_unusable_input_is_refused_by_name(run, nifti, volume, tmp_path, make, sentence):
    path = make(nifti, volume)
    with pytest.raises(DataError, match=sentence):
        run(inputs={"t2": path})
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize(
    ("array", "affine", "sentence"),
    [
        (np.ones((20, 24, 4), np.uint8), OBLIQUE, "shape .20, 24, 4., not .20, 24, 5."),
        (np.ones(SHAPE, np.uint8), OBLIQUE + np.eye(4)[:, [3, 3, 3, 0]] * 0.5, "corners 0.50 mm apart"),
    ],
)
@pytest.mark.parametrize("role", ["input", "fov", "label"])
def test_volumes_on_different_grids_are_refused(run, nifti, volume, array, affine, sentence, role):
    other, t2 = nifti("other", array, affine), nifti("case", volume)
    options = {
        "input": {"inputs": {"us": t2, "t2": other}},
        "fov": {"fov": other},
        "label": {"labels": {"tumour": other}},
    }
    with pytest.raises(DataError, match=f"other.nii.gz does not lie on the grid of the first volume; got {sentence}"):
        run(**options[role])


def test_files_of_the_other_byte_order_are_read(run, tmp_path, volume):
    header = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(volume.astype(">i2"), OBLIQUE, header), tmp_path / "case.nii")
    assert (tmp_path / "case.nii").read_bytes()[:4] == b"\x00\x00\x01\x5c"
    swapped = values(run("swapped", {"t2": tmp_path / "case.nii"}))
    assert np.array_equal(swapped, values(run("native")))


def test_a_singular_affine_is_refused(run, tmp_path, volume):
    image = nib.Nifti1Image(volume, None)
    image.set_sform(np.diag([0.5, 0, 2, 1]), code=1)
    nib.save(image, tmp_path / "flat.nii.gz")
    with pytest.raises(DataError, match="the affine of .*flat.nii.gz cannot be inverted"):
        run(inputs={"t2": tmp_path / "flat.nii.gz"})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"inputs": {"ct": "x"}}, "inputs are not the model's; got ct; expected at least one of us, t2"),
        ({"targets": ["ct"]}, "unknown targets"),
        ({"protocol": "mine"}, "unknown protocol; got 'mine'; expected kit or authors"),
        ({"share": ["z9"]}, "unknown levels to share; got .'z9'."),
        ({"samples": 0}, "samples must be a whole number"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"spacing_mm": 0.0}, "spacing_mm must be above 0"),
        ({"axes": (0, 0, 2)}, "axes are not usable"),
    ],
)
def test_unusable_settings_are_refused_by_name(run, options, sentence):
    with pytest.raises(InputError, match=sentence):
        run(**options)


@pytest.mark.parametrize("name", ["us_std", "t2", "fov", "../tumour"])
def test_a_label_may_not_take_a_name_that_means_something_else(run, nifti, volume, name):
    with pytest.raises(InputError, match=f"cannot have this name; got {name}"):
        run(labels={name: nifti("l", volume)})


def test_a_file_that_is_not_there_is_named(run, tmp_path):
    with pytest.raises(MissingError, match="absent.nii.gz is not there"):
        run(inputs={"t2": tmp_path / "absent.nii.gz"})
