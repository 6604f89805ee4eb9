"""What the explorers' tests share: a tiny phantom, a tiny model with random weights, one explorer of each kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mhvae_kit import MHVAE, MHVAEConfig
from mhvae_kit.widgets import LevelExplorer, ProductOfExpertsExplorer, SynthesisExplorer

SIZE = 16


class TinyPhantom:
    """Three patients of noise inside a disc; the second has fewer slices."""

    name = "phantom-tiny"
    spacing_mm = 1.0
    modalities = ("us", "t2")

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE // 2
        disc = (rows**2 + columns**2 < 49)[:, :, None]
        self.reads = 0
        self._volumes: dict[tuple[str, str], np.ndarray] = {}
        for case, depth in (("train-0", 6), ("test-0", 6), ("test-1", 3)):
            for kind in self.modalities:
                noise = rng.integers(1, 256, (SIZE, SIZE, depth))
                self._volumes[case, kind] = np.where(disc, noise, 0).astype(np.uint8)
            self._volumes[case, "fov"] = np.repeat(disc, depth, axis=2).astype(np.uint8)

    def case_ids(self, split: str | None = None) -> list[str]:
        return ["train-0", "test-0", "test-1"]

    def split_of(self, case: str) -> str:
        return case.split("-")[0]

    def volume(self, case: str, kind: str) -> np.ndarray:
        self.reads += 1
        return self._volumes[case, kind]


@pytest.fixture
def phantom() -> TinyPhantom:
    return TinyPhantom()


def tiny_model(**changes: object) -> MHVAE:
    options = {"image_size": (SIZE, SIZE), "levels": 3, "base_channels": 4, "max_channels": 4, "decoder_blocks": 1}
    torch.manual_seed(0)  # random weights: what is tested is the plumbing
    return MHVAE(MHVAEConfig(**{**options, "expansion": 1, **changes}))


@pytest.fixture(scope="session")
def model() -> MHVAE:
    model = tiny_model()
    model.card = {"training_cases": ["train-0"]}
    return model


@pytest.fixture
def explorer(model, tmp_path):
    made = SynthesisExplorer(model, TinyPhantom(), save_to=tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def other_model() -> MHVAE:
    """One of another image size."""
    return tiny_model(image_size=(2 * SIZE, 2 * SIZE))


@pytest.fixture
def levels(model):
    made = LevelExplorer(model, TinyPhantom(), draws=4)
    yield made
    made.close()


@pytest.fixture
def product(tmp_path):
    made = ProductOfExpertsExplorer(rule="both", save_to=tmp_path)
    yield made
    made.close()
