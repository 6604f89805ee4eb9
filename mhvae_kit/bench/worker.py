"""The process that runs one case: `python -m mhvae_kit.bench.worker`, asked line by line on its standard input.

Started by `mhvae_kit.bench.runner`. The first line is JSON that says what to run; each answer is one line of JSON.
Then "run" times a turn, which is one run or as many as fill the task's "turn_s", and says whether the process had to
compile kernels; "work" counts its arithmetic, "output" stores what the code makes at temperature 0, and "end" tells
the peak of memory.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

MIB = 2**20


def main() -> None:
    """Answer until the standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the measured code prints must not come between the answers
    for answer in _serve(sys.stdin):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _serve(lines: TextIO) -> Iterator[dict[str, Any]]:
    task = json.loads(lines.readline())
    on_gpu = task.get("device", "cpu") != "cpu"
    if not on_gpu:  # a GPU's driver reserves addresses far beyond what it uses
        _limit_memory(task.get("memory_limit_bytes"))
    from mhvae_kit.bench.sides import import_all, operations, prepare, wait_for_gpu
    from mhvae_kit.kernels.team import has_compiled

    import_all(task)
    baseline = 0 if on_gpu else _resident("VmRSS")
    prepared = prepare(task)
    yield {"ready": True}
    peak = 0

    def run() -> None:
        prepared.run()
        if on_gpu:
            wait_for_gpu()

    def highest() -> int:
        return _allocated() if on_gpu else _resident("VmHWM")

    for line in lines:
        command = line.strip()
        if command == "run":
            yield {**_timed(run, task.get("turn_s", 0.0)), "compiled": has_compiled()}
        elif command == "work":
            peak = highest()  # counting keeps more in memory than the work itself
            yield {"gflop": operations(prepared) / 1e9}
        elif command == "output":
            yield {"saved": prepared.save_output(Path(task["output"]))}
        else:
            peak = peak or highest()
            yield {"baseline_mb": baseline / MIB, "peak_mb": max(peak - baseline, 0) / MIB}
            return


def _timed(run: Callable[[], object], turn_s: float) -> dict[str, Any]:
    """Seconds of a run on the wall clock and the processor (all threads), means of runs that take `turn_s` at least."""
    wall, cpu, runs, passed = time.perf_counter(), time.process_time(), 0, -1.0
    while passed < turn_s:
        run()
        runs, passed = runs + 1, time.perf_counter() - wall
    return {"seconds": passed / runs, "cpu_seconds": (time.process_time() - cpu) / runs, "runs": runs}


def _allocated() -> int:
    """Bytes of tensors on the GPU, at most so far; what its driver and libraries take comes on top."""
    import torch

    return torch.cuda.max_memory_allocated()


def _resident(field: str) -> int:
    """Bytes of memory of this process: now ("VmRSS") or at most so far ("VmHWM")."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith(field + ":"))
    except (OSError, StopIteration):  # not Linux: the largest so far is all there is, in bytes on macOS
        scale = 1 if sys.platform == "darwin" else 1024
        return scale * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _limit_memory(n_bytes: int | None) -> None:
    """Let an allocation beyond `n_bytes` fail here, rather than have the system end some other process."""
    if n_bytes and sys.platform.startswith("linux"):
        resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, n_bytes))


if __name__ == "__main__":
    main()
