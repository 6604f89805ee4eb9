"""Reading a prepared dataset: whole volumes, single slices, selections, and damage found by name."""

from __future__ import annotations

import json
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from mhvae_kit.data import SliceDataset, load_prepared
from mhvae_kit.data.grid import Recipe
from mhvae_kit.data.prepared import write_splits
from mhvae_kit.errors import DataError, InputError, MissingError
from mhvae_kit.preparation.case import PreparedCase
from mhvae_kit.preparation.prepare import open_dataset, write_case

SHAPE = (8, 10, 5)


def fill(folder, n: int = 4, shape=SHAPE, leave_out=()):
    """A prepared folder of made cases c000, c001, … without going through images."""
    recipe = Recipe(size_px=shape[0])
    folder.mkdir(exist_ok=True)
    open_dataset(folder, "made", recipe)
    for k in range(n):
        rng = np.random.default_rng(k)
        fov = np.ones(shape, np.uint8)
        images = {m: rng.integers(1, 256, shape, dtype=np.uint8) for m in ("us", "t2")} | {"fov": fov, "tumour": fov}
        images = {kind: a for kind, a in images.items() if (k, kind) not in leave_out}
        record = {"sources": {}, "labels": {}, "registration": {}, "steps": []}
        write_case(folder, PreparedCase(f"c{k:03d}", images, np.eye(4), (0.5, 0.5, 0.5), record), "made")
    write_splits(folder, {f"c{k:03d}": ("train", "validation", "test", "train")[k % 4] for k in range(n)})
    return folder


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "out")


def test_it_has_what_the_phantom_has(folder):
    dataset = load_prepared(folder)
    assert (dataset.name, dataset.shape, dataset.spacing_mm, dataset.modalities) == ("made", SHAPE, 0.5, ("t2", "us"))
    assert dataset.case_ids("train") == ["c000", "c003"] and dataset.split_of("c001") == "validation"
    assert set(dataset.manifest.columns) >= {"case", "split", "file", "sha256", "shape", "spacing", "seed"}
    assert "4 cases" in repr(dataset) and len(dataset.digest) == 64


def test_a_slice_is_the_volumes_slice(folder):
    dataset = load_prepared(folder)
    for k in range(SHAPE[2]):
        assert np.array_equal(dataset.read_slice("c002", "us", k), dataset.volume("c002", "us")[:, :, k])


def test_any_nifti_reader_sees_the_same(folder):
    dataset = load_prepared(folder)
    assert np.array_equal(np.asarray(nib.load(dataset.path("c001", "t2")).dataobj), dataset.volume("c001", "t2"))


def test_batches_are_what_volumes_in_memory_would_give(folder):
    dataset = load_prepared(folder)

    class InMemory:
        modalities = dataset.modalities
        case_ids = staticmethod(dataset.case_ids)
        volume = staticmethod(dataset.volume)

    order = [0, 9, 3, 7]
    one, two = SliceDataset(dataset, "train").batch(order), SliceDataset(InMemory(), "train").batch(order)
    assert all((one["images"][m] == two["images"][m]).all() for m in dataset.modalities)
    assert (one["tumour"] == two["tumour"]).all() and one["case"] == two["case"]


def test_memory_does_not_grow_with_the_number_of_cases(tmp_path):
    peaks = []
    for n in (2, 12):
        slices = SliceDataset(load_prepared(fill(tmp_path / str(n), n, (64, 64, 24))), None)
        slices.batch([0])
        tracemalloc.start()
        for k in range(0, len(slices), 24):
            slices.batch([k, k + 1])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    one_volume = 64 * 64 * 24
    assert peaks[1] < peaks[0] + one_volume


def test_a_case_without_label_reads_as_zeros_and_says_so(tmp_path):
    dataset = load_prepared(fill(tmp_path / "out", 2, leave_out={(1, "tumour")}))
    assert dataset.has("c000", "tumour") and not dataset.has("c001", "tumour")
    assert dataset.volume("c001", "tumour").sum() == 0 and dataset.read_slice("c001", "tumour", 0).sum() == 0


def test_modalities_are_those_that_all_share_or_those_asked_for(tmp_path):
    folder = fill(tmp_path / "out", 3, leave_out={(1, "us")})
    assert load_prepared(folder).modalities == ("t2",)
    paired = load_prepared(folder, modalities=("us", "t2"))
    assert paired.case_ids() == ["c000", "c002"] and paired.modalities == ("us", "t2")
    with pytest.raises(InputError, match="no case is left"):
        load_prepared(folder, modalities=("flair",))


def test_cases_that_lack_images_can_stay_for_training_with_missing_ones(tmp_path):
    folder = fill(tmp_path / "out", 3, leave_out={(1, "us")})
    dataset = load_prepared(folder, modalities=("us", "t2"), partial=True)
    assert dataset.absent == {"c001": ("us",)} and dataset.case_ids() == ["c000", "c001", "c002"]
    slices = SliceDataset(dataset, None, absent=dataset.absent)
    item = slices[SHAPE[2]]
    assert item["case"] == "c001" and item["present"] == {"us": False, "t2": True}
    assert (item["images"]["us"] == -1).all() and item["images"]["t2"].max() > -1
    assert load_prepared(folder, partial=True).modalities == ("t2", "us")


def test_splits_and_cases_can_be_chosen(folder):
    assert load_prepared(folder, splits="test").case_ids() == ["c002"]
    assert load_prepared(folder, cases=["c001"]).case_ids() == ["c001"]
    with pytest.raises(InputError, match="unknown split or case"):
        load_prepared(folder, cases=["c999"])


def test_a_truncated_file_is_found_on_opening(folder):
    path = folder / "c001" / "us.nii"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"us\.nii is truncated.*delete the folder"):
        load_prepared(folder)


def test_a_file_that_shrinks_later_is_found_when_read(folder):
    dataset = load_prepared(folder)
    path = folder / "c001" / "us.nii"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=r"us\.nii is truncated"):
        dataset.read_slice("c001", "us", 4)


def test_a_changed_byte_is_found_by_its_hash(folder):
    path = folder / "c000" / "t2.nii"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="has changed since it was made"):
        load_prepared(folder).verify()


def test_a_file_of_another_place_is_found(folder):
    path = folder / "c000" / "t2.nii"
    image = nib.load(path, mmap=False)
    moved = np.eye(4)
    moved[0, 3] = 0.05
    array = np.asarray(image.dataobj).copy()
    new = nib.Nifti1Image(array, moved)
    new.to_filename(path)
    with pytest.raises(DataError, match="does not lie on the grid of the case's fan"):
        load_prepared(folder).volume("c000", "t2")


@pytest.mark.parametrize("text", ["{", '{"case": "c000"}', '{"case": "c000", "files": {"../x.nii": {}}}'])
def test_a_damaged_record_is_refused(folder, text):
    (folder / "c000" / "case.json").write_text(text)
    with pytest.raises(DataError, match=r"case\.json"):
        load_prepared(folder)


def test_a_record_that_leaves_its_folder_is_refused(folder):
    path = folder / "c000" / "case.json"
    record = json.loads(path.read_text())
    record["files"]["../c001/us.nii"] = record["files"]["us.nii"]
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match="no record of a prepared case"):
        load_prepared(folder)


def test_wrong_splits_are_refused(folder):
    (folder / "split.csv").write_text("case,split\nc000,train\nc000,test\n")
    with pytest.raises(DataError, match="case c000 into two splits"):
        load_prepared(folder)
    (folder / "split.csv").write_text("case,split\nc000,holdout\n")
    with pytest.raises(DataError, match="unknown splits; got holdout"):
        load_prepared(folder)


def test_no_dataset_at_all(tmp_path):
    with pytest.raises(MissingError, match="make one with `mhvae prepare`"):
        load_prepared(tmp_path)
