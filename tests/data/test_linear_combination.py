"""LC2: highest where the images match whatever links them, blind to the fan's rim, and the search that climbs it."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from mhvae_kit.data.coordinates import transform_ras
from mhvae_kit.data.linear_combination import FINE, LinearCombination, nearest_rigid, search
from mhvae_kit.data.registration import chain, difference
from mhvae_kit.preparation.made import fan_points, known_transform, moved

SIDE = 40


def image_of(array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetOrigin((10.0, -20.0, 30.0))
    return image


@pytest.fixture(scope="module")
def mr() -> sitk.Image:
    """A smooth random image of 40 mm a side, 0 to 255."""
    noise = np.random.default_rng(3).random((SIDE,) * 3)
    smooth = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image_of(noise), 2.5))
    return image_of(255 * (smooth - smooth.min()) / np.ptp(smooth))


@pytest.fixture(scope="module")
def us(mr) -> sitk.Image:
    """What is bright in MR is bright on one side and dark on the other, with speckle: no one link for the whole."""
    sign = np.where(np.arange(SIDE) < SIDE // 2, 1.0, -1.0)
    speckle = np.random.default_rng(4).normal(0, 10, (SIDE,) * 3)
    return image_of(130 + 0.4 * sign * (sitk.GetArrayFromImage(mr) - 127) + speckle)


@pytest.fixture(scope="module")
def mask() -> sitk.Image:
    """A wedge, as a fan is."""
    _, y, x = np.indices((SIDE,) * 3)
    wedge = np.abs(x - SIDE / 2) < 6 + 0.4 * y
    return sitk.Cast(image_of(wedge), sitk.sitkUInt8)


def test_it_falls_with_distance_and_stays_between_0_and_1(us, mr, mask):
    similarity = LinearCombination(us, mr, mask)
    values = [similarity.value(sitk.TranslationTransform(3, (s, 0.5 * s, 0))) for s in (0.0, 1.0, 3.0)]
    assert 1 > values[0] > values[1] > values[2] >= 0


def test_an_image_explains_itself(mr, mask):
    assert LinearCombination(mr, mr, mask).value(sitk.AffineTransform(3)) > 0.98


def test_images_that_do_not_meet_explain_nothing(us, mr, mask):
    far = sitk.TranslationTransform(3, (900.0, 0, 0))
    assert LinearCombination(us, mr, mask).value(far) == 0.0


def test_grey_values_may_be_scaled(us, mr, mask):
    place = known_transform(us, (1, 0, 2), (0.5, 0, 0.5))
    values = [LinearCombination(a * us + b, a * mr, mask).value(place) for a, b in ((1, 0), (7, 100), (0.01, 0))]
    assert np.allclose(values, values[0], rtol=1e-3)


def test_what_lies_outside_the_fan_does_not_matter(us, mr, mask):
    """Smoothed together with the black around it, the fan's rim would be dark."""
    inside = sitk.Cast(mask, sitk.sitkFloat32)
    values = [LinearCombination(us * inside + c * (1 - inside), mr, mask).value(sitk.Transform()) for c in (0, 255)]
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_the_search_finds_a_known_place_where_no_one_link_holds(us, mr, mask):
    known = known_transform(us, (3, -2, 2), (1.5, -1, 1))
    start = nearest_rigid(sitk.AffineTransform(3), us.TransformContinuousIndexToPhysicalPoint([SIDE / 2] * 3))
    similarity = LinearCombination(us, moved(mr, known), mask, FINE)
    found = search(similarity, start)
    apart_mm, apart_deg = difference(found, known, fan_points(mask))
    assert apart_mm < 0.5 and apart_deg < 0.5
    assert np.array_equal(transform_ras(search(similarity, start)), transform_ras(found)), "it can be repeated"


def test_the_nearest_rigid_transform_keeps_the_rotation_and_the_centre(us):
    rigid = known_transform(us, (10, -20, 5), (4, 5, 6))
    stretch = sitk.AffineTransform(3)
    stretch.SetMatrix(np.diag([1.1, 0.9, 1.05]).ravel().tolist())
    centre = (20.0, -5.0, 45.0)
    assert np.allclose(transform_ras(nearest_rigid(rigid, centre)), transform_ras(rigid))
    found = nearest_rigid(chain(stretch, rigid), centre)
    assert np.allclose(found.GetMatrix(), rigid.GetMatrix(), atol=1e-6)
    assert np.allclose(found.TransformPoint(centre), chain(stretch, rigid).TransformPoint(centre))
