"""Data: manifests, the embedded phantom, and slices for the networks."""

from .phantom import PhantomDataset, load_phantom
from .slices import SliceDataset, collate

__all__ = ["PhantomDataset", "SliceDataset", "collate", "load_phantom"]
