"""Running cases in processes of their own, the kit's and a peer's in turns, and writing what was measured."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, get_args

import psutil

from mhvae_kit.bench.cases import Case, Device, kind_of
from mhvae_kit.environment import git_commit, library_versions
from mhvae_kit.errors import InputError, RunError, explain
from mhvae_kit.files import write_json
from mhvae_kit.progress import progress

SCHEMA = 1
TURN_S = 1.0
MEMORY_SHARE = 0.8  # of what is free: a case that needs more is noted as too large, and the machine lives on


class Worker:
    """A process that runs one case for one side.

    Args:
        task: As `mhvae_kit.bench.sides.prepare` takes it.
        threads: Threads of torch; None = its own choice.
    """

    def __init__(self, task: dict[str, Any], threads: int | None) -> None:
        environment = dict(os.environ)
        if threads is not None:
            environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        # What the process prints; it has no name and goes with this object.
        self.printed: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mhvae_kit.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.printed,
            text=True,
            env=environment,
        )
        try:
            self.ask(json.dumps(task))
        except RunError:
            self.end()
            raise

    def ask(self, line: str) -> dict[str, Any]:
        """Send a line and wait for the answer.

        Raises:
            RunError: The process has ended; its last words are in the message.
        """
        pipes = self.process.stdin, self.process.stdout
        try:
            pipes[0].write(line + "\n")
            pipes[0].flush()
            answer = pipes[1].readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.wait()
            self.printed.seek(0)
            words = self.printed.read().strip().splitlines() or ["nothing was printed"]
            raise RunError(explain("a process of the bench ended early", got=words[-1][:300]))
        return json.loads(answer)

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.communicate()
        self.printed.close()


def bench(
    cases: Sequence[Case],
    *,
    references: Sequence[str | Path] = (),
    rounds: int = 5,
    threads: int | None = None,
    turn_s: float = TURN_S,
    device: Device = "cpu",
    data_dir: str | Path | None = None,
    output: str | Path | None = None,
) -> dict[str, Any]:
    """Measure cases, alone or against other code, and return (and write) what was found.

    Every case runs in a process of its own, after one run that is not counted. With references, the kit's process and
    the other's take turns (A B A B) on the same weights and inputs, so that what else the machine does strikes both;
    the ratio is taken round by round. A turn is one run, or as many as take `turn_s` together, and counts as their
    mean: a single short run would mostly show how cold the other side has left the caches.

    Args:
        cases: What to measure, see `mhvae_kit.bench.cases`.
        references: Folders with checkouts of ReubenDo/MHVAE, cate-galata/TrackerlessIUS or AgatheSenellart/MultiVae.
        rounds: Counted turns of each side.
        turn_s: Seconds that a turn takes at least.
        threads: Threads of torch; None = its own choice.
        device: "cuda" runs the models on the first GPU; the peak of memory is then that of tensors on it.
        data_dir: Cache folder of the phantom, for the case that loads data.
        output: JSON file to write; also written when a case fails, with what there is.
    Returns:
        "machine", "references", "cases" (a dict a case: its fields, "kit" and each peer's seconds, "peak_mb", "ratio"
        and "largest_difference" of the images) and "growth" (exponents, where growth cases were among them).
    Raises:
        InputError: No round, a reference that is no known checkout, or a GPU that is not there.
    """
    if rounds < 1 or not cases:
        raise InputError(explain("nothing is to be measured", got=f"{len(cases)} cases, {rounds} rounds"))
    if device not in get_args(Device):
        raise InputError(explain("unknown device", got=repr(device), expected=", ".join(get_args(Device))))
    machine = _machine(threads, device)
    folders = {kind_of(Path(folder).resolve()): Path(folder).resolve() for folder in references}
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": machine,
        "references": {kind: _commit(folder) for kind, folder in folders.items()},
        "cases": [],
    }
    common = {"device": device, "turn_s": turn_s, "data_dir": str(data_dir) if data_dir else None}
    for case in progress(cases, desc="bench"):
        result["cases"].append(_measure_case(case, folders, rounds, threads, common))
        result["machine"]["load_after"] = _load()
        if output is not None:
            write_json(output, result)
    return result


def _measure_case(
    case: Case, folders: dict[str, Path], rounds: int, threads: int | None, common: dict[str, Any]
) -> dict[str, Any]:
    """One case, against each peer that can do it, or alone; `common` is told to every side."""
    found: dict[str, Any] = {**dataclasses.asdict(case), "load": _load()}
    peers = {kind: folder for kind, folder in folders.items() if case.can(kind)}
    with tempfile.TemporaryDirectory() as folder:
        for kind, checkout in peers.items() or [(None, None)]:
            common = {**common, "case": dataclasses.asdict(case)}
            common["memory_limit_bytes"] = int(MEMORY_SHARE * psutil.virtual_memory().available)
            tasks = {"kit": {**common, "side": "kit", "weights": None, "output": f"{folder}/kit.npy"}}
            if kind is not None:
                weights = f"{folder}/{kind}.pth"
                if kind == "multivae":  # it has the kit's own modules, drawn from the same seed, and the exact product
                    tasks["kit"]["fusion"] = "precision"
                else:
                    tasks["kit"]["weights"] = weights
                other = {"side": kind, "checkout": str(checkout), "weights": weights, "output": f"{folder}/{kind}.npy"}
                if kind != "multivae":  # their code knows float32 alone, which is what bfloat16 is compared with
                    other["case"] = {**common["case"], "precision": "float32"}
                tasks = {kind: {**common, **other}, **tasks}
            _take_turns(found, tasks, rounds, threads)
    return found


def _take_turns(found: dict[str, Any], tasks: dict[str, dict], rounds: int, threads: int | None) -> None:
    """Run all sides in turns and put what they took into `found`; a side that fails is noted and left out."""
    workers: dict[str, Worker] = {}
    taken: dict[str, list[dict[str, float]]] = {side: [] for side in tasks}
    failed: dict[str, str] = {}

    def ask(side: str, line: str) -> dict[str, Any] | None:
        try:
            return workers[side].ask(line) if side not in failed else None
        except RunError as error:
            failed[side] = str(error)
            return None

    def start(side: str) -> None:
        try:
            workers[side] = Worker(tasks[side], threads)
        except RunError as error:
            failed[side] = str(error)

    try:
        for side in tasks:
            start(side)
        for side in tasks:
            first = ask(side, "run")  # not counted: first use of each kernel, memory, caches
            if first and first["compiled"]:  # once on a machine; it takes memory that the case does not
                workers.pop(side).end()
                start(side)
                ask(side, "run")
        for _ in range(rounds):
            for side in tasks:
                answer = ask(side, "run")
                taken[side] += [answer] if answer else []
        work = (ask("kit", "work") or {}) if Case(**tasks["kit"]["case"]).is_counted else {}
        outputs = {side: task["output"] for side, task in tasks.items() if len(tasks) > 1 and _saved(ask, side)}
        peaks = {side: ask(side, "end") or {} for side in tasks}
    finally:
        for worker in workers.values():
            worker.end()
    for side in tasks:
        extra = peaks[side] | (work if side == "kit" else {})
        found[side] = _summary(taken[side], extra, failed.get(side), found)
    peer = next((side for side in tasks if side != "kit"), None)
    if peer is not None and not failed:
        found[peer] |= _compare(found["kit"], found[peer]) | _difference(outputs, peer)


def _saved(ask: Any, side: str) -> bool:
    answer = ask(side, "output")
    return bool(answer and answer["saved"])


def _summary(
    taken: list[dict[str, float]], extra: dict[str, float], failure: str | None, case: dict[str, Any]
) -> dict[str, Any]:
    if failure is not None:
        return {"failed": failure}
    seconds = [run["seconds"] for run in taken]
    slices = case["depth"] or case["batch"]
    return {
        "seconds": seconds,
        "cpu_seconds": [run["cpu_seconds"] for run in taken],
        "ms_per_slice": 1e3 * statistics.median(seconds) / slices,
        **extra,
    }


def _compare(kit: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
    """How many times as long, as much processor time and as much memory a peer takes: median and extremes of rounds."""
    ratios = {}
    for name, key in (("ratio", "seconds"), ("cpu_ratio", "cpu_seconds")):
        each = [b / a for a, b in zip(kit[key], peer[key], strict=True)]
        ratios[name] = {"median": statistics.median(each), "lowest": min(each), "highest": max(each)}
    return {**ratios, "memory_ratio": peer["peak_mb"] / max(kit["peak_mb"], 1e-9)}


def _difference(outputs: dict[str, str], peer: str) -> dict[str, Any]:
    import numpy as np

    if len(outputs) < 2:
        return {}
    ours, theirs = np.load(outputs["kit"]), np.load(outputs[peer])
    return {"largest_difference": float(abs(ours - theirs).max())}


def _machine(threads: int | None, device: Device) -> dict[str, Any]:
    return {
        "device": device,
        "gpu": _gpu() if device == "cuda" else None,
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": threads or "torch's own choice",
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "libraries": library_versions(),
        "commit": git_commit(),
        "load_before": _load(),
    }


def _gpu() -> str:
    """Name of the first GPU.

    Raises:
        InputError: There is none that torch can use.
    """
    import torch

    if not torch.cuda.is_available():
        mend = "leave device out to measure the processor, or install a build of torch for this machine's GPU"
        raise InputError(explain("there is no GPU that torch can use", got="device 'cuda'", mend=mend))
    return torch.cuda.get_device_name()


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _load() -> float | None:
    """Other work on the machine: how many processes wanted a core over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _commit(folder: Path) -> str | None:
    """The commit of a peer's checkout, None where the folder has no git."""
    if not (folder / ".git").exists():
        return None
    call = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip() or None
