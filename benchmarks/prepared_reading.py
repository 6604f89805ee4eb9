"""How fast a prepared dataset is read, and how much memory that takes, with few and with many cases.

Made cases of 192 x 192 x 16 voxels (or --slices) with two images, a fan and a label are written once; the blocks of
a batch are then read at random, as training does. Each count runs in a process of its own, so its peak memory is its
own. The pages are likely to be in the system's file cache: the number is that of the reading code, not of a cold disk.

    python benchmarks/prepared_reading.py --cases 50 500 --folder made
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIZE = 192
BATCH = 16


def write(folder: Path, cases: int, slices: int) -> None:
    """Cases that are not there yet; all get the same bytes but their own files."""
    from mhvae_kit.data.grid import Recipe
    from mhvae_kit.data.prepared import is_complete, write_splits
    from mhvae_kit.preparation.case import PreparedCase
    from mhvae_kit.preparation.prepare import open_dataset, write_case

    folder.mkdir(parents=True, exist_ok=True)
    open_dataset(folder, "made", Recipe(size_px=SIZE))
    rng = np.random.default_rng(0)
    shape = (SIZE, SIZE, slices)
    images = {m: rng.integers(1, 256, shape, dtype=np.uint8) for m in ("us", "t2")}
    images |= {"fov": np.ones(shape, np.uint8), "tumour": np.ones(shape, np.uint8)}
    for k in range(cases):
        if not is_complete(folder / f"c{k:04d}"):
            made = PreparedCase(f"c{k:04d}", images, np.eye(4), (0.5, 0.5, 0.5), {"registration": {}})
            write_case(folder, made, "made")
    write_splits(folder, {f"c{k:04d}": "train" for k in range(cases)})


def read(folder: Path, cases: int, seconds: float) -> dict:
    """Slices a second and peak memory of random batches from the first `cases` cases."""
    from mhvae_kit.data import SliceDataset, load_prepared

    began = time.perf_counter()
    dataset = load_prepared(folder, cases=[f"c{k:04d}" for k in range(cases)])
    opened = time.perf_counter() - began
    slices, rng, n = SliceDataset(dataset, "train"), np.random.default_rng(1), 0
    slices.batch([0])
    began, busy = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        slices.batch(rng.integers(0, len(slices), BATCH))
        n += BATCH
    return {
        "cases": cases,
        "slices": len(slices),
        "open_s": round(opened, 2),
        "slices_per_s": round(n / (time.perf_counter() - began)),
        "slices_per_processor_s": round(n / (time.process_time() - busy)),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "open_files": len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else None,
    }


def main() -> None:
    """Write, then read each count in a process of its own; one JSON line a count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--slices", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--read-only", type=int, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read_only is not None:
        print(json.dumps(read(given.folder, given.read_only, given.seconds)))
        return
    with tempfile.TemporaryDirectory(prefix="mhvae-reading-") as temporary:
        folder = given.folder or Path(temporary) / "made"
        write(folder, max(given.cases), given.slices)
        for cases in given.cases:
            command = [sys.executable, __file__, "--folder", str(folder), "--read-only", str(cases)]
            subprocess.run([*command, "--seconds", str(given.seconds)], check=True)


if __name__ == "__main__":
    main()
