"""Ending a process together with everything it started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil


def living_children() -> list[tuple[int, float]]:
    """All processes below this one, as (pid, start time): what `end_processes` takes, also after a parent has died."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found.append((process.pid, process.create_time()))
    return found


def end_processes(known: Iterable[tuple[int, float]]) -> None:
    """Kill those processes that still live; the start time keeps a later owner of the same pid safe."""
    for pid, started in known:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if abs(process.create_time() - started) < 1:
                process.kill()


def end_children(pid: int, grace_s: float = 1.0, *, itself: bool = False) -> None:
    """End all processes below `pid`: asked politely first, killed after `grace_s` seconds.

    A Jupyter kernel leads a session of its own, so ending a process group would miss it; the tree is walked instead.

    Args:
        pid: The process at the top; one that is already gone is no error.
        grace_s: Seconds they are given to end by themselves.
        itself: Whether `pid` ends as well.
    """
    try:
        top = psutil.Process(pid)
        processes = top.children(recursive=True) + ([top] if itself else [])
    except psutil.NoSuchProcess:
        return
    if grace_s > 0:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, processes = psutil.wait_procs(processes, timeout=grace_s)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=5)
