"""Where the time of one case of `mhvae bench` goes, by kind of operation, and how far each is from arithmetic alone.

Prints, for each kind, milliseconds a run, its floating-point operations, and how long those would take at the rate of
a large convolution measured just before. One process; leave the machine alone while it runs.

    python benchmarks/where_time_goes.py inference_1 --threads 1
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from mhvae_kit.bench.cases import Case, all_cases, choose
from mhvae_kit.bench.sides import CPU, Arithmetic, Side, operations, prepare
from mhvae_kit.kernels import team

# By kind: how the names of its operations begin, without "aten::".
KINDS = {
    "other compiled kernels": ("kernel ",),
    "convolutions": (
        "mkldnn_convolution",
        "_slow_conv2d",
        "convolution_backward",
        "thnn_conv",
        "kernel winograd",
        "kernel last_convolution",
    ),
    "matrix products": ("addmm", "mm", "bmm", "baddbmm", "mkldnn_linear"),
    "norm and activation": (
        *("native_group_norm", "silu", "tanh", "sigmoid", "clamp", "relu", "leaky_relu", "threshold", "rsqrt"),
        *("mean", "sum", "sub", "mul", "square", "addcmul"),
    ),
    "copies and layout": ("copy_", "cat", "clone", "reflection_pad2d", "upsample", "constant_pad", "fill_"),
    "Gaussians and noise": ("normal_", "exp", "log", "div", "add", "neg"),
}
RUNS = 3


def kind_of(name: str) -> str:
    """The kind that an operation's name belongs to; the longest beginning that fits decides."""
    bare = name.removeprefix("aten::")
    fits = [(len(start), kind) for kind, starts in KINDS.items() for start in starts if bare.startswith(start)]
    return max(fits)[1] if fits else "others"


def with_names_of_kernels() -> None:
    """Let the profiler see compiled kernels, which are no operations of torch."""
    run = team.run

    def recorded(name: str, items: int, *arguments: Tensor | int) -> None:
        with record_function(f"kernel {name}"):
            run(name, items, *arguments)

    team.run = recorded


def gflop_by_kind(side: Side) -> dict[str, float]:
    """Operations of one run by kind, in 1e9; those of all compiled kernels stand with the convolutions."""
    with team.without_kernels(), FlopCounterMode(display=False) as counter:
        side.run()
    counts = counter.get_flop_counts()["Global"]
    found: dict[str, float] = defaultdict(float)
    for operation, count in counts.items():
        convolves = "convolution" in str(operation)
        found["convolutions" if convolves else "matrix products"] += count / 1e9
    return found


def milliseconds_by_kind(side: Side) -> dict[str, float]:
    """Time of the operations of one run by kind, mean of a few runs after some that are not counted."""
    with profile(activities=[ProfilerActivity.CPU]) as warm:  # the first profiled runs fault in their memory
        for _ in range(RUNS):
            side.run()
    del warm
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(RUNS):
            side.run()
    found: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total / 1e3 / RUNS
    return found


def seconds(side: Any, runs: int = 7) -> float:
    """Median of a few runs after two that are not counted."""
    taken = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        side.run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("case", help="name of a case of `mhvae bench`")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch; with one, kinds add up best")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with_names_of_kernels()
    case = choose(all_cases(), [given.case])[0]
    limit = Arithmetic(Case(name="limit", kind="arithmetic", batch=2, size=96, precision=case.precision), CPU)
    rate = operations(limit) / seconds(limit)
    side = prepare({"case": vars(case), "side": "kit", "weights": None})
    whole = seconds(side, runs=3 if case.kind == "training" else 7)
    gflop, spent = gflop_by_kind(side) if case.is_counted else {}, milliseconds_by_kind(side)
    print(f"{case.name}, {given.threads} threads: {1e3 * whole:.0f} ms a run")
    print(f"a large convolution does {rate / 1e9:.0f} GFLOP/s; the profiler's own time is in what follows")
    print(f"{'kind':22s} {'ms':>8s} {'share':>6s} {'GFLOP':>8s} {'ms at that rate':>16s}")
    for kind, time_ms in sorted(spent.items(), key=lambda item: -item[1]):
        line = f"{kind:22s} {time_ms:8.1f} {time_ms / sum(spent.values()):6.0%}"
        work = gflop.get(kind, 0.0)
        print(line + (f" {work:8.2f} {work * 1e12 / rate:16.1f}" if work else ""))


if __name__ == "__main__":
    main()
