"""What the tests of the degradation study share: the made patient, real phantom patients, and a small model."""

from __future__ import annotations

import pytest
from made_scene import made_scene

from mhvae_kit import MHVAE
from mhvae_kit.config import MHVAEConfig
from mhvae_kit.degradation import Scene
from mhvae_kit.degradation.sources import Cohort


@pytest.fixture(scope="session")
def scene() -> Scene:
    """The made patient; read-only."""
    return made_scene()


@pytest.fixture(scope="session")
def cohort() -> Cohort:
    """Two training patients of the smoke phantom."""
    return Cohort("smoke", "train", 2)


@pytest.fixture
def model() -> MHVAE:
    """A model of a few channels with weights of its own draw."""
    config = MHVAEConfig.smoke(levels=3, base_channels=2, max_channels=4)
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MHVAE(config).eval()
