"""DICOM segmentations: empty slices come back, overlapping segments stay apart, and the place is the image's."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from mhvae_kit.data.coordinates import same_grid, to_sitk
from mhvae_kit.data.dicom import read_dicom
from mhvae_kit.data.dicom_seg import read_segments, referenced_series
from mhvae_kit.data.dicom_write import write_mr, write_segmentation
from mhvae_kit.errors import DataError

SHAPE = (14, 12, 9)


def image(array: np.ndarray) -> sitk.Image:
    turn = sitk.Euler3DTransform()
    turn.SetRotation(0.2, 0.3, -0.1)
    affine = np.eye(4)
    affine[:3, :3] = np.array(turn.GetMatrix()).reshape(3, 3) * [1.0, 1.1, 2.0]
    affine[:3, 3] = (-10, 20, 5)
    return to_sitk(array, affine)


@pytest.fixture(scope="module")
def masks() -> dict[str, np.ndarray]:
    """A tumour on slices 2 to 5 and a cavity on slice 5 alone, which overlap there."""
    tumour, cavity = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    tumour[3:8, 4:9, 2:6] = 1
    cavity[6:11, 6:10, 5] = 1
    return {"tumour": tumour, "cavity": cavity}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, masks):
    place = tmp_path_factory.mktemp("seg")
    values = np.random.default_rng(0).integers(1, 300, SHAPE).astype(np.uint16)
    write_mr(place / "mr", image(values), case="P1", series="3D_AX_T2_SPACE")
    drawn = {name: image(mask) for name, mask in masks.items()}
    write_segmentation(place / "seg.dcm", drawn, place / "mr", series="tumor seg - MR ref: 3D_AX_T2_SPACE")
    return place


def test_segments_come_back_on_the_whole_grid(folder, masks):
    source, series = read_dicom(folder / "mr")
    found = read_segments(folder / "seg.dcm", source)
    assert referenced_series(folder / "seg.dcm") == series.uid and list(found) == ["tumour", "cavity"]
    for name, mask in found.items():
        assert same_grid(mask, source)
        assert np.array_equal(sitk.GetArrayFromImage(mask).transpose(2, 1, 0), masks[name])


def test_overlap_is_kept(folder):
    found = read_segments(folder / "seg.dcm", read_dicom(folder / "mr")[0])
    both = [sitk.GetArrayFromImage(mask) > 0 for mask in found.values()]
    assert (both[0] & both[1]).sum() == 2 * 3


def test_an_image_elsewhere_is_refused(folder):
    source = read_dicom(folder / "mr")[0]
    source.SetOrigin([v + 200 for v in source.GetOrigin()])
    with pytest.raises(DataError, match=r"no segment of .*seg\.dcm lies inside its image"):
        read_segments(folder / "seg.dcm", source)


def test_a_truncated_segmentation_is_refused(folder, tmp_path):
    cut = tmp_path / "cut.dcm"
    content = (folder / "seg.dcm").read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cut\.dcm"):
        read_segments(cut, read_dicom(folder / "mr")[0])
