"""Segmentation of the tumour in ultrasound: a small 2-D U-Net, its training, and its scores by patient."""

from __future__ import annotations

from mhvae_kit.segmentation.scores import score_patients, segment_cases
from mhvae_kit.segmentation.train import SegmentationConfig, SegmentationSlices, build_network, train_segmenter

__all__ = [
    "SegmentationConfig",
    "SegmentationSlices",
    "build_network",
    "score_patients",
    "segment_cases",
    "train_segmenter",
]
