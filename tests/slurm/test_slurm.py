"""Rows of Table 1 through a real SLURM: submitted by the profile, one of them cancelled midway, finished on a rerun."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mhvae_kit.data import load_phantom
from mhvae_kit.runs import read_results, run_status

ROOT = Path(__file__).resolve().parents[2]
ROWS = ("pix2pix", "references")
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]


def command() -> list[str]:
    """Snakemake by the profile, with less waiting and memory, and without the GPU that a row asks for."""
    options = {"cores": "2", "slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": "3"}
    options |= {"seconds-between-status-checks": "3", "latency-wait": "10"}
    call = [sys.executable, "-m", "snakemake", "--profile", "profiles/slurm"]
    call += [text for name, value in options.items() for text in (f"--{name}", value)]
    call += ["--default-resources", "mem_mb=2000", "runtime=30"]
    call += ["--set-resources", *(f"table1_{row}:gpu=0" for row in ROWS), "--"]
    return [*call, *(f"runs/smoke-table1-{row}/results.json" for row in ROWS)]


def jobs(environment: dict[str, str]) -> dict[str, str]:
    """Ids of the jobs that run, by their comment, which holds the rule's name."""
    asked = ["squeue", "--noheader", "--states=RUNNING", "--format=%i %k"]
    told = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout
    return {comment: number for number, _, comment in (line.partition(" ") for line in told.splitlines())}


def wait_for(condition, process: subprocess.Popen, seconds: float = 300):
    """What the condition gives, once it gives something."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.2)
    return found


def test_rows_of_table1_go_through_slurm_and_a_cancelled_one_is_finished(slurm, tmp_path):
    load_phantom("smoke", show_progress=False)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    environment = {**slurm, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    cancelled, other = (tmp_path / "runs" / f"smoke-table1-{row}" for row in ROWS)

    first = subprocess.Popen(command(), cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: run_status(cancelled) == "running", first)
    job = wait_for(lambda: [number for comment, number in jobs(environment).items() if "pix2pix" in comment], first)
    subprocess.run(["scancel", *job], env=environment, check=True)
    told = first.communicate(timeout=400)[1]
    assert first.returncode != 0 and "submitted with SLURM jobid" in told
    assert run_status(cancelled) != "done" and run_status(other) == "done", told
    before = (other / "results.json").stat().st_mtime_ns

    second = subprocess.run(
        command(), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert second.returncode == 0, second.stderr
    assert [run_status(folder) for folder in (cancelled, other)] == ["done", "done"]
    assert (other / "results.json").stat().st_mtime_ns == before
    assert read_results(cancelled)["preset"] == "smoke"
