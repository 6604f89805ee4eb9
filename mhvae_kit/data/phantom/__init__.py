"""The phantom: a paired MR and ultrasound dataset made offline from the MNI152 anatomy."""

from .dataset import PhantomDataset, compare_with_reference, load_phantom
from .presets import KINDS, MODALITIES, PRESETS, SPLITS, PhantomPreset

__all__ = [
    "KINDS",
    "MODALITIES",
    "PRESETS",
    "SPLITS",
    "PhantomDataset",
    "PhantomPreset",
    "compare_with_reference",
    "load_phantom",
]
