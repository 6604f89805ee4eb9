"""A SLURM cluster of one node on this machine.

    pytest -m slurm tests/slurm

It needs Debian's packages slurm-wlm and munge and the extra mhvae_kit[slurm]; without them the tests are skipped, and
the last lines of the test run say so.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
_said: list[str] = []


def missing() -> str | None:
    """Why there is no SLURM test on this machine; None when there can be."""
    path = os.environ["PATH"] + os.pathsep + "/usr/sbin"
    if absent := [name for name in PROGRAMS if shutil.which(name, path=path) is None]:
        return f"{', '.join(absent)} not found; on Debian: apt-get install slurm-wlm munge"
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        return "Snakemake cannot submit to SLURM; pip install 'mhvae_kit[slurm]'"
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What must not be overlooked: that nothing was tested."""
    for line in _said:
        terminalreporter.write_line(line, bold=True)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Environment of programs that see the cluster; its daemons end with the tests."""
    if reason := missing():
        _said.append(f"SLURM WAS NOT TESTED: {reason}")
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    script = Path(__file__).with_name("start_slurm.sh")
    started = subprocess.run([str(script), str(folder)], capture_output=True, text=True, timeout=120, check=False)
    try:
        assert started.returncode == 0, started.stderr
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        yield {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
    finally:
        for pid in folder.glob("*.pid"):
            os.kill(int(pid.read_text()), signal.SIGTERM)
