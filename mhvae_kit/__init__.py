"""mhvae_kit: a research kit around the multi-modal hierarchical VAE for MR-ultrasound synthesis."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Loaded on first use, so that `import mhvae_kit` (and with it the command line's help) does not wait for torch.
_LAZY = {
    "Gaussian": "mhvae_kit.gaussian",
    "MHVAE": "mhvae_kit.networks.mhvae",
    "MHVAEConfig": "mhvae_kit.config",
    "MVAE": "mhvae_kit.networks.mvae",
    "TrainingConfig": "mhvae_kit.config",
    "kl_divergence": "mhvae_kit.gaussian",
    "load_authors_checkpoint": "mhvae_kit.networks.authors",
    "load_model": "mhvae_kit.networks.storage",
    "load_shipped": "mhvae_kit.networks.storage",
    "product_of_experts": "mhvae_kit.gaussian",
    "save_model": "mhvae_kit.networks.storage",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mhvae_kit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
