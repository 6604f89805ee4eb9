"""Training and evaluation on prepared cases, in place of the phantom."""

from __future__ import annotations

import numpy as np
import pytest

from mhvae_kit import MHVAE, MHVAEConfig, save_model
from mhvae_kit.commands import evaluate_to_csv, train_in_run_folder
from mhvae_kit.config import TrainingConfig
from mhvae_kit.data.grid import Recipe
from mhvae_kit.data.prepared import write_splits
from mhvae_kit.errors import InputError
from mhvae_kit.preparation.case import PreparedCase
from mhvae_kit.preparation.prepare import open_dataset, write_case
from mhvae_kit.runs import read_results, run_status

TINY = {"levels": 3, "base_channels": 2, "max_channels": 4, "steps": 2, "batch_size": 2, "checkpoint_every": 2}
TINY |= {"validate_every": 2, "log_every": 1, "validation_slices": 2, "gan": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three made cases of 64 x 64 pixels, one a split."""
    place = tmp_path_factory.mktemp("prepared")
    open_dataset(place, "made", Recipe(size_px=64))
    for k in range(3):
        rng = np.random.default_rng(k)
        images = {m: rng.integers(1, 256, (64, 64, 4 + k), dtype=np.uint8) for m in ("us", "t2")}
        images["fov"] = np.ones((64, 64, 4 + k), np.uint8)
        write_case(place, PreparedCase(f"c{k}", images, np.eye(4), (0.5, 0.5, 0.5), {"registration": {}}), "made")
    write_splits(place, {"c0": "train", "c1": "validation", "c2": "test"})
    return place


def test_training_reads_a_prepared_folder(folder, tmp_path):
    config = TrainingConfig.from_preset("smoke", **TINY)
    run = train_in_run_folder(config, run_id="made", root=tmp_path, prepared=folder)
    assert read_results(run)["dataset"]["name"] == "made" and run_status(run) == "done"


def test_evaluation_reads_a_prepared_folder(folder, tmp_path):
    config = MHVAEConfig(modalities=("us", "t2"), image_size=(64, 64), levels=3, base_channels=2, max_channels=4)
    save_model(MHVAE(config), tmp_path / "model")
    table, paths = evaluate_to_csv(
        tmp_path / "model", "smoke", split="test", prepared=folder, output=tmp_path / "scores.csv"
    )
    assert "made" in paths[0].read_text() and "phantom" not in table


def test_slices_of_another_size_are_refused_with_the_mend(folder, tmp_path):
    config = TrainingConfig.from_preset("demo")
    with pytest.raises(InputError, match="made does not fit the model.*--size 96"):
        train_in_run_folder(config, run_id="other", root=tmp_path, prepared=folder)
