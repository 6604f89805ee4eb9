"""What the bench found, as text and as growth curves."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhvae_kit.bench.cases import Device, all_cases, choose, gpu_cases, growth_cases, quick_cases
from mhvae_kit.bench.runner import bench

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PEERS = {"authors": "ReubenDo/MHVAE", "fast": "TrackerlessIUS mhvae_fast", "multivae": "MultiVae"}
CLOCKS = {"cpu_seconds": "processor seconds", "seconds": "seconds"}
AXES = {
    "batch": "slices at a time",
    "pixels": "pixels",
    "modalities": "observed images",
    "temperatures": "temperatures",
}


def table(result: dict[str, Any]) -> str:
    """One line a case, and one more for each peer: milliseconds a slice, peak of memory, ratios with their range.

    The kit's also say how many operations a second it does, and what share that is of a large convolution's, where the
    latter was measured: a share of 100 % would be arithmetic and nothing else.
    """
    machine = result["machine"]
    load = f"load {machine['load_before']} before, {machine.get('load_after')} after"
    gpu = f"{machine['gpu']}; " if machine["gpu"] else ""
    lines = [f"{gpu}{machine['processor']}, {machine['cores']} cores, threads: {machine['threads']}; {load}"]
    lines.append(f"{'case':24s} {'side':8s} {'ms a slice':>11s} {'peak MB':>8s}  times as slow (lowest to highest)")
    for case in result["cases"]:
        for side in ("kit", *PEERS):
            if side in case:
                lines.append(f"{case['name']:24s} {side:8s} {_line(case[side])}{_rate(case, side, result)}")
    return "\n".join(lines)


def _line(side: dict[str, Any]) -> str:
    if "failed" in side:
        return f"failed: {side['failed']}"
    text = f"{side['ms_per_slice']:11.1f} {side['peak_mb']:8.0f}"
    if "ratio" in side:
        ratio, cpu = side["ratio"], side["cpu_ratio"]
        text += f"  {ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
        text += f", processor {cpu['median']:.2f}, memory {side['memory_ratio']:.2f}"
    if "largest_difference" in side:
        text += f", images differ by at most {side['largest_difference']:.1e}"
    return text


def gflop_per_second(case: dict[str, Any]) -> float | None:
    """Operations a second of the kit in a case, convolutions and matrix products alone; None where there are none."""
    kit = case["kit"]
    return kit["gflop"] / statistics.median(kit["seconds"]) if kit.get("gflop") else None


def _rate(case: dict[str, Any], side: str, result: dict[str, Any]) -> str:
    rate = gflop_per_second(case) if side == "kit" else None
    if rate is None:
        return ""
    limits = {c["precision"]: gflop_per_second(c) for c in result["cases"] if c["kind"] == "arithmetic"}
    limit = limits.get(case["precision"])
    return f"  {rate:.0f} GFLOP/s" + (f", {rate / limit:.0%} of a large convolution's" if limit else "")


def measured_time(result: dict[str, Any]) -> str:
    """What growth is told in: "cpu_seconds", or "seconds" on a GPU, which the processor only waits for."""
    return "cpu_seconds" if result["machine"]["device"] == "cpu" else "seconds"


def growth_points(result: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Points of the growth curves by axis: x, the median of cpu_seconds or, on a GPU, of seconds, and peak_mb.

    On a processor it is the time of all threads together: other work on the machine stretches it least.
    """
    clock = measured_time(result)
    curves: dict[str, list[dict[str, float]]] = {}
    for case in result["cases"]:
        if case["growth"] is None or "failed" in case["kit"]:
            continue
        x = {"batch": case["batch"], "modalities": case["n_observed"], "temperatures": case["n_temperatures"]}
        x["pixels"] = (case["size"] or 0) ** 2
        seconds = statistics.median(case["kit"][clock])
        point = {"x": x[case["growth"]], clock: seconds, "peak_mb": case["kit"]["peak_mb"]}
        curves.setdefault(case["growth"], []).append(point)
    return curves


def exponent(points: list[dict[str, float]], value: str) -> float:
    """Power of growth between the first and the last point: 1 is linear.

    Args:
        points: At least two, from `growth_points`.
        value: "cpu_seconds", "seconds" or "peak_mb".
    """
    first, last = points[0], points[-1]
    return math.log(last[value] / first[value]) / math.log(last["x"] / first["x"])


def growth_figure(result: dict[str, Any]) -> Figure:
    """Time and memory of one inference against batch, pixels, observed images and temperatures."""
    from matplotlib.ticker import MaxNLocator

    from mhvae_kit.figures.style import LABEL_PT, SMALL_PT, new_figure, plain_axes

    curves, clock = growth_points(result), measured_time(result)
    quantities = ((clock, CLOCKS[clock]), ("peak_mb", "peak memory, MB"))
    figure = new_figure(2.7 * len(curves), 4.6, title="Growth of one inference", data="random data")
    panels = figure.subplots(2, len(curves), squeeze=False)
    for column, (axis, points) in enumerate(curves.items()):
        for row, (value, label) in enumerate(quantities):
            axes = panels[row, column]
            plain_axes(axes)
            axes.plot([p["x"] for p in points], [p[value] for p in points], "o-", color="#000000", markersize=4)
            axes.set_ylim(0, 1.1 * max(p[value] for p in points))
            axes.set_xlim(0, 1.1 * max(p["x"] for p in points))
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.set_xlabel(AXES[axis], fontsize=LABEL_PT)
            axes.set_title(f"grows with power {exponent(points, value):.2f}", fontsize=SMALL_PT)
            if column == 0:
                axes.set_ylabel(label, fontsize=LABEL_PT)
    return figure


def bench_to_files(
    *,
    quick: bool,
    growth: bool,
    names: list[str],
    references: list[Path],
    rounds: int,
    threads: int | None,
    device: Device,
    output: Path,
    data_dir: Path | None,
) -> tuple[str, list[Path]]:
    """What `mhvae bench` does: choose the cases, measure them, write JSON and, for growth, the curves.

    Args:
        quick, growth: Which cases; neither = all at the paper's size, of the device.
        names: Only these of them.
        references, rounds, threads, device, data_dir: As `bench` takes them.
        output: The JSON file; the curves go beside it as PNG and CSV.
    Returns:
        The table as text, and the files written.
    """
    whole = gpu_cases if device == "cuda" else all_cases
    cases = growth_cases() if growth else quick_cases() if quick else whole()
    options: dict[str, Any] = {"rounds": rounds, "threads": threads, "device": device}
    options |= {"data_dir": data_dir, "output": output}
    if quick:
        options["turn_s"] = 0.0
    result = bench(choose(cases, names), references=references, **options)
    paths = [output]
    if growth:
        paths.append(save_growth(result, output.with_suffix(".png")))
    return table(result), paths


def save_growth(result: dict[str, Any], path: Path) -> Path:
    """The curves as PNG, and their points as CSV beside it."""
    import pandas as pd

    from mhvae_kit.figures import save

    rows = [{"axis": axis, **point} for axis, points in growth_points(result).items() for point in points]
    return save(growth_figure(result), path, data=pd.DataFrame(rows))
