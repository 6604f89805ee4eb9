"""Staged training with exact resume, on one process or many."""

from mhvae_kit.config import TrainingConfig
from mhvae_kit.training.loop import branch_without_gan, train

__all__ = ["TrainingConfig", "branch_without_gan", "train"]
