"""Starting several processes of the kit on this machine, one a device, by the launcher that torchrun is."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from mhvae_kit.errors import InputError, explain

ENDING_S = 120  # a training that is interrupted ends its step and saves; torch's own limit is 30 s


def check_devices(devices: int, *, device: str = "auto") -> int:
    """Return how many processes to start when this machine has a device for each of them.

    Args:
        devices: How many; on a machine without GPU they share its cores.
        device: "cpu" leaves GPUs out of account; "auto" and "cuda" do not.
    Raises:
        InputError: Fewer than one, more than there are GPUs, or torchrun has started this process.
    """
    import torch

    if isinstance(devices, bool) or devices != int(devices) or devices < 1:
        raise InputError(explain("--devices must be a whole number of at least 1", got=devices))
    if devices > 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        mend = "leave --devices out, or call mhvae without torchrun"
        raise InputError(explain("torchrun has started these processes already", got=f"--devices {devices}", mend=mend))
    count = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else None
    if count is not None and devices > count:
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(count))
        mend = f"give --devices {count}, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to use processor cores"
        expected = f"at most {count} ({names})"
        raise InputError(
            explain("there are fewer GPUs than --devices asks for", got=devices, expected=expected, mend=mend)
        )
    return int(devices)


def threads_each(devices: int) -> int:
    """Threads that each of several processes may use, so that together they do not crowd the processor."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // devices)


def run_together(arguments: Sequence[str], devices: int) -> None:
    """Run `mhvae <arguments>` in several processes that know of each other, and wait for them.

    The same as `torchrun --standalone --nproc-per-node <devices> -m mhvae_kit.cli <arguments>`. The first process
    writes to this one's streams; of the others, the last line of those that failed is told.

    Raises:
        SystemExit: One failed; the exit code is that of the first that did.
        KeyboardInterrupt: Interrupted; the processes were given time to save.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with tempfile.TemporaryDirectory(prefix="mhvae-processes-") as logs, _settings(devices):
        quiet = ",".join(f"{rank}:3" for rank in range(1, devices))
        options = ["--standalone", "--nproc-per-node", str(devices), "--log-dir", logs]
        options += ["--redirects", quiet] if quiet else []
        try:
            run.run(run.parse_args([*options, "-m", "mhvae_kit.cli", *arguments]))
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            for other in error.failures:
                _tell(Path(logs), other)
            raise SystemExit(failure.exitcode if failure.exitcode > 0 else 1) from None
        except SignalException:
            raise KeyboardInterrupt from None


@contextlib.contextmanager
def _settings(devices: int) -> Iterator[None]:
    """What the processes inherit; torch's own reports of a failure are silent meanwhile, the processes tell it."""
    wanted = {"OMP_NUM_THREADS": str(threads_each(devices)), "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(ENDING_S)}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
        for name in added:
            os.environ.pop(name, None)


def _tell(logs: Path, rank: int) -> None:
    """The last line that a process other than the first wrote to its standard error."""
    for path in logs.rglob(f"{rank}/stderr.log"):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            print(f"process {rank}: {lines[-1]}", file=sys.stderr)
