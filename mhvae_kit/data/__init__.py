"""Data: manifests, the embedded phantom, patients' prepared cases, and slices for the networks."""

from .phantom import PhantomDataset, load_phantom
from .prepared import PreparedDataset, load_prepared
from .slices import SliceDataset, collate

__all__ = ["PhantomDataset", "PreparedDataset", "SliceDataset", "collate", "load_phantom", "load_prepared"]
