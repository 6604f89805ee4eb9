"""Slices for the networks: ranges, masks, order, batches and bad arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mhvae_kit.data import SliceDataset, collate
from mhvae_kit.data.slices import to_network
from mhvae_kit.errors import InputError


class TwoCases:
    """A dataset of two cases with 3 and 2 slices of 4 x 6 pixels."""

    modalities = ("t2", "us")

    def __init__(self):
        rng = np.random.default_rng(0)
        self.data = {}
        for case, n in (("a", 3), ("b", 2)):
            fov = np.zeros((4, 6, n), np.uint8)
            fov[1:] = 1
            images = {m: rng.integers(1, 256, fov.shape, dtype=np.uint8) * fov for m in self.modalities}
            self.data[case] = images | {"fov": fov, "tumour": (images["t2"] > 200).astype(np.uint8)}

    def case_ids(self, split=None):
        return [] if split == "ood" else ["a", "b"]

    def volume(self, case, kind):
        return self.data[case][kind]


@pytest.fixture
def dataset():
    return TwoCases()


def test_every_slice_of_every_case_is_an_item(dataset):
    slices = SliceDataset(dataset, "train")
    assert [(slices[i]["case"], slices[i]["slice"]) for i in range(len(slices))] == [
        *(("a", k) for k in range(3)),
        *(("b", k) for k in range(2)),
    ]


def test_an_item_holds_the_stored_slice(dataset):
    item = SliceDataset(dataset, "train")[4]
    stored = dataset.volume("b", "us")[:, :, 1]
    assert item["images"]["us"].shape == (1, 4, 6) and item["images"]["us"].dtype == torch.float32
    np.testing.assert_allclose(item["images"]["us"][0].numpy(), stored / 255 * 2 - 1, atol=1e-6)
    assert item["fov"].dtype == torch.bool and item["fov"][0].numpy().tolist() == (stored > 0).tolist()
    assert np.array_equal(item["tumour"][0].numpy(), dataset.volume("b", "tumour")[:, :, 1] > 0)


def test_the_range_is_exact_at_both_ends():
    values = to_network(np.arange(256, dtype=np.uint8))
    assert values[0] == -1.0 and values[255] == 1.0
    assert (values.diff() > 0).all()


def test_a_batch_equals_collated_items(dataset):
    slices = SliceDataset(dataset, "train", ["us"])
    batch, items = slices.batch([4, 0, -2]), collate([slices[4], slices[0], slices[3]])
    assert torch.equal(batch["images"]["us"], items["images"]["us"]) and batch["images"]["us"].shape == (3, 1, 4, 6)
    assert torch.equal(batch["fov"], items["fov"]) and torch.equal(batch["tumour"], items["tumour"])
    assert batch["case"] == items["case"] == ["b", "a", "b"]
    assert torch.equal(batch["slice"], items["slice"])


def test_items_do_not_share_memory_with_the_data(dataset):
    before = dataset.volume("a", "t2").copy()
    SliceDataset(dataset, "train")[0]["images"]["t2"].fill_(0)
    assert np.array_equal(before, dataset.volume("a", "t2"))


def test_a_loader_with_workers_gives_the_same(dataset):
    slices = SliceDataset(dataset, "train")
    loader = torch.utils.data.DataLoader(slices, batch_size=5, collate_fn=collate, num_workers=0)
    assert torch.equal(next(iter(loader))["images"]["t2"], slices.batch(range(5))["images"]["t2"])


def test_only_the_asked_cases(dataset):
    assert {item["case"] for item in SliceDataset(dataset, "train", cases=["b"])} == {"b"}


@pytest.mark.parametrize("modalities", [["ct"], [], ["t2", "t2"]])
def test_bad_modalities(dataset, modalities):
    with pytest.raises(InputError, match="modalities cannot be used"):
        SliceDataset(dataset, "train", modalities)


def test_a_case_of_another_split(dataset):
    with pytest.raises(InputError, match="not in split 'train'"):
        SliceDataset(dataset, "train", cases=["c"])


def test_a_split_without_cases(dataset):
    with pytest.raises(InputError, match="no case of split 'ood'"):
        SliceDataset(dataset, "ood")


@pytest.mark.parametrize("indices", [[], [0.5], [[0]]])
def test_bad_indices(dataset, indices):
    with pytest.raises(InputError, match="list of integers"):
        SliceDataset(dataset, "train").batch(indices)


def test_an_index_out_of_range_ends_iteration(dataset):
    slices = SliceDataset(dataset, "train")
    with pytest.raises(IndexError, match="5 slices"):
        slices[5]


def test_an_image_that_is_not_8_bit():
    with pytest.raises(InputError, match="not 8-bit"):
        to_network(np.zeros((2, 2), np.float32))


def test_an_absent_image_is_background_and_not_read(dataset):
    del dataset.data["b"]["us"]
    slices = SliceDataset(dataset, "train", absent={"b": ["us"], "elsewhere": ["t2"]})
    batch = slices.batch([0, 4])
    assert {m: has.tolist() for m, has in batch["present"].items()} == {"t2": [True, True], "us": [True, False]}
    assert bool((batch["images"]["us"][1] == -1).all()) and batch["images"]["us"].shape == (2, 1, 4, 6)
    assert slices[4]["present"] == {"t2": True, "us": False}
    together = collate([slices[0], slices[4]])["present"]
    assert all(torch.equal(together[m], has) for m, has in batch["present"].items())


@pytest.mark.parametrize(
    ("absent", "message"),
    [({"a": ["ct"]}, r"absent images of a are unknown.*ct"), ({"b": ["us", "t2"]}, "b has no image at all.*leave")],
)
def test_absent_images_that_do_not_fit(dataset, absent, message):
    with pytest.raises(InputError, match=message):
        SliceDataset(dataset, "train", absent=absent)


def test_collating_nothing_or_unlike_items(dataset):
    with pytest.raises(InputError, match="nothing to collate"):
        collate([])
    with pytest.raises(InputError, match="different modalities"):
        collate([SliceDataset(dataset, "train", ["t2"])[0], SliceDataset(dataset, "train", ["us"])[0]])
