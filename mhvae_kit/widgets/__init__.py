"""Interactive explorers for notebooks: small classes over ipywidgets, driven by hand or from code.

Each shows through `display(explorer)`, has a `state` that can be read and set, and gives the same state as a static
figure: `explorer.figure()`. Pictures are made in a thread of their own, newest state first, without pyplot.
"""

from __future__ import annotations

from mhvae_kit.widgets.latents import numbered_noise
from mhvae_kit.widgets.levels import LevelExplorer
from mhvae_kit.widgets.product import ProductOfExpertsExplorer
from mhvae_kit.widgets.synthesis import SynthesisExplorer

__all__ = ["LevelExplorer", "ProductOfExpertsExplorer", "SynthesisExplorer", "numbered_noise"]
