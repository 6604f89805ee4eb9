"""From files in the true formats to a dataset, end to end; then resuming, splits and what stands in the record."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import binary_erosion

from mhvae_kit.data import SliceDataset, load_prepared
from mhvae_kit.data.coordinates import to_sitk
from mhvae_kit.data.grid import Recipe, resample
from mhvae_kit.data.phantom.store import CASE_FILE
from mhvae_kit.errors import InputError
from mhvae_kit.preparation import find_cases, prepare
from mhvae_kit.preparation.prepare import SHARES, deal

CASE = "phantom-001"


@pytest.fixture(scope="module")
def dataset(dataset_folder):
    return load_prepared(dataset_folder)


def expected(image: sitk.Image, dataset) -> np.ndarray:
    """An image of the phantom, in place, on the prepared grid by way of the stored affine alone: (H, W, D)."""
    grid = to_sitk(np.zeros(dataset.shape, np.uint8), dataset.affine(CASE))
    return sitk.GetArrayFromImage(resample(image, grid)).transpose(2, 1, 0)


@pytest.mark.parametrize("kind", ["us", "t2", "flair"])
def test_every_format_arrives_where_the_ultrasound_is(dataset, images, kind):
    """MR was written 4 mm and 5 degrees away; after preparation it fits the phantom that was in place."""
    inside = binary_erosion(dataset.volume(CASE, "fov") > 0, iterations=2)
    got, want = dataset.volume(CASE, kind)[inside].astype(float), expected(images[kind], dataset)[inside]
    assert np.corrcoef(got, want)[0, 1] > (0.999 if kind == "us" else 0.97)


def test_the_fan_has_no_dark_rim(tmp_path, run):
    """An even fan, resampled to half its pixels' size, stays even up to its edge."""
    fan = np.zeros((20, 20, 6), np.uint8)
    fan[3:16, 4:15] = 120
    fan[9, 9, 3] = 130
    folder = tmp_path / "cases" / "P1"
    folder.mkdir(parents=True)
    image = nib.Nifti1Image(fan, np.diag([1.0, 1.0, 1.5, 1.0]))
    image.to_filename(folder / "us.nii")
    dataset = load_prepared(run(folder.parent, recipe=Recipe(size_px=40, spacing_mm=0.4, percentile=100)).folder)
    inside = dataset.volume("P1", "fov") > 0
    assert np.unique(dataset.volume("P1", "us")[inside]).tolist()[0] == 1
    assert (dataset.volume("P1", "us")[inside] == 1).mean() > 0.95


def test_the_segmentation_arrives_where_the_tumour_is(dataset, images):
    want = expected(images["tumour"], dataset) * (dataset.volume(CASE, "fov") > 0) >= 0.5
    got = dataset.volume(CASE, "tumour") > 0
    assert 2 * (got & want).sum() / (got.sum() + want.sum()) > 0.9


def test_outside_the_fan_everything_is_zero_and_inside_nothing_is(dataset):
    outside = dataset.volume(CASE, "fov") == 0
    assert 0.1 < outside.mean() < 0.9
    for kind in dataset.modalities:
        volume = dataset.volume(CASE, kind)
        assert volume.dtype == np.uint8 and (volume[outside] == 0).all() and (volume[~outside] > 0).all()


def test_the_record_tells_every_step(dataset, dataset_folder):
    record = dataset.describe(CASE)
    assert [s["step"] for s in record["steps"]] == ["read", "crop", "resample", "eight bits", "labels", "field of view"]
    assert record["sources"]["t2"]["description"] == "3D_AX_T2_SPACE" and len(record["sources"]["us"]["sha256"]) == 64
    move = record["registration"]["t2"]
    assert move["method"] == "file" and move["mutual_information_after"] > move["mutual_information_before"]
    assert str(dataset_folder.parent) not in json.dumps(record), "no path of the machine"
    assert (dataset_folder / "figures" / f"{CASE}.png").stat().st_size > 10_000


def test_slices_for_the_networks_are_those_of_the_volumes(dataset):
    slices = SliceDataset(dataset, None)
    batch = slices.batch([3, 7])
    assert batch["images"]["us"].shape == (2, 1, 64, 64) and batch["slice"].tolist() == [3, 7]
    volume = dataset.volume(CASE, "us")[:, :, 7].astype(np.float32) / 127.5 - 1
    assert np.allclose(batch["images"]["us"][1, 0].numpy(), volume, atol=1e-6)


def test_a_second_run_skips_what_is_done(small, run, tmp_path):
    folder = small("P1")
    run(folder)
    before = (tmp_path / "out" / "P1" / CASE_FILE).stat().st_mtime_ns
    small("P2", seed=1)
    result = run(folder)
    assert result.skipped == ["P1"] and result.done == ["P1", "P2"]
    assert (tmp_path / "out" / "P1" / CASE_FILE).stat().st_mtime_ns == before


def test_the_same_files_give_the_same_bytes(small, run, tmp_path):
    folder = small("P1")
    digests = {load_prepared(run(folder, tmp_path / name).folder).digest for name in ("a", "b")}
    assert len(digests) == 1


def test_another_recipe_needs_another_folder(small, run):
    folder = small("P1")
    run(folder)
    with pytest.raises(InputError, match="prepared with another name.*choose a new --output"):
        run(folder, name="other")


def test_the_phantoms_axis_order_can_be_kept(small, run, tmp_path):
    folder = small("P1")
    usual = load_prepared(run(folder, tmp_path / "j").folder)
    kept = load_prepared(run(folder, tmp_path / "i", recipe=Recipe(size_px=16, spacing_mm=1.0, rows="i")).folder)
    assert np.array_equal(usual.volume("P1", "us"), kept.volume("P1", "us").transpose(1, 0, 2))


def test_splits_come_near_their_shares_and_never_change():
    cases = [f"P{i:03d}" for i in range(100)]
    first = deal(cases[:40], {})
    second = deal(cases, first)
    assert {c: second[c] for c in cases[:40]} == first
    assert all(abs(list(second.values()).count(s) - 100 * share) <= 2 for s, share in SHARES.items())


def test_three_cases_give_every_split_one():
    assert sorted(deal(["a", "b", "c"], {}).values()) == ["test", "train", "validation"]


def test_given_splits_are_kept(small, run):
    folder = small("P1")
    result = run(folder, splits={"P1": "ood"})
    assert load_prepared(result.folder).case_ids("ood") == ["P1"]


def test_mr_alone_is_centred_on_its_tumour(tmp_path):
    """The names of BraTS, skull-stripped, classes 1, 2 and 4: no ultrasound, no registration."""
    rng = np.random.default_rng(0)
    head = np.zeros((40, 44, 12), np.int16)
    head[4:36, 4:40] = 1
    label = np.zeros(head.shape, np.uint8)
    label[24:32, 10:18, 3:9], label[26:30, 12:16, 4:7], label[27:29, 13:15, 5] = 2, 4, 1
    place = tmp_path / "in" / "BraTS20_Training_001"
    place.mkdir(parents=True)
    for name, array in (("t2", head * rng.integers(1, 900, head.shape)), ("t1ce", head * 7 + label), ("seg", label)):
        image = nib.Nifti1Image(array.astype(np.int16), np.eye(4))
        image.to_filename(place / f"BraTS20_Training_001_{name}.nii.gz")
    cases = find_cases("brats", tmp_path / "in")
    recipe = Recipe(size_px=20, spacing_mm=1.0)
    result = prepare(cases, tmp_path / "out", name="brats", recipe=recipe, show_progress=False)
    dataset = load_prepared(result.folder)
    tumour = dataset.volume(cases[0].case, "tumour")
    assert dataset.modalities == ("t2", "cet1") and set(np.unique(tumour)) == {0, 1, 2, 4}
    rows, columns, _ = np.nonzero(tumour)
    assert abs(rows.mean() - 9.5) <= 0.6 and abs(columns.mean() - 9.5) <= 0.6
    assert dataset.describe(cases[0].case)["registration"]["cet1"]["method"] == "none"
