"""Running tests of compiled kernels as on another processor: with vectors of a width that this one does not have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mhvae_kit.kernels.lanes import LANES

ROOT = Path(__file__).resolve().parent.parent


OTHER_WIDTH = """
import numba
from llvmlite import binding
from mhvae_kit.kernels import vectors
assert numba.njit(lambda x: x + 1)(1) == 2  # numba asks for the processor's true features, once
real = binding.get_host_cpu_features
binding.get_host_cpu_features = lambda: {"avx512f": not real().get("avx512f", False)}
from mhvae_kit.kernels import lanes
binding.get_host_cpu_features = real
print(lanes.LANES, "lanes")
"""
OLD_LLVM = """
from llvmlite import binding
binding.llvm_version_info = (14, 0, 6)
from mhvae_kit.kernels import halves
assert not halves.KNOWS_HALVES
"""


def passed_with_other_width(files: list[str], choice: str, cache: Path) -> str:
    """Run the tests of some files that `choice` (pytest's -k) names, in a process of their own; what it printed."""
    printed = _passed_after(OTHER_WIDTH, files, choice, cache)
    assert f"{24 - LANES} lanes" in printed, printed
    return printed


def passed_with_old_llvm(files: list[str], choice: str, cache: Path) -> str:
    """Likewise, as if LLVM did not know processors' instructions for bfloat16."""
    return _passed_after(OLD_LLVM, files, choice, cache)


def _passed_after(change: str, files: list[str], choice: str, cache: Path) -> str:
    code = f"""{change}
import sys
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *{files!r}, "-k", {choice!r}]))
"""
    environment = {**os.environ, "MHVAE_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
