"""The phantom, made once for all tests of the data."""

from __future__ import annotations

import pytest

from mhvae_kit.data.phantom import load_phantom


@pytest.fixture(scope="session")
def phantom():
    """All patients of the smoke preset."""
    return load_phantom("smoke", show_progress=False)
