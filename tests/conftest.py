"""What all tests share: no windows, one lasting cache, run folders only in temporary folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before any test module imports the kit: the cache survives in pytest's own folder, which git ignores.
os.environ["MPLBACKEND"] = "Agg"
os.environ["MHVAE_CACHE"] = str(Path(__file__).resolve().parent.parent / ".pytest_cache" / "mhvae")


settings.register_profile("untimed", deadline=None)  # how long an example takes depends on what else runs
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest first: begun last, it would keep one core busy while others have nothing left."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")


@pytest.fixture(autouse=True)
def runs_root(tmp_path_factory, monkeypatch) -> Path:
    """A fresh folder for the runs of each test, also for the programs it starts."""
    root = tmp_path_factory.mktemp("runs")
    monkeypatch.setenv("MHVAE_RUNS", str(root))
    return root
