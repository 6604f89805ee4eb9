"""One process or many: the few operations that training needs from torch.distributed.

Gradients are averaged by one call a step instead of through DistributedDataParallel: two networks, modalities that
get no gradient in a step and several passes per step all work without a special case (docs/decisions/0004).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mhvae_kit.errors import InputError, RunError, explain

CAUSE_FIRST_S = 5.0  # longer than a process takes to end after it has let go of the others


def share_of(batch_size: int, processes: int) -> int:
    """Slices of a step that each of some processes works on.

    Raises:
        InputError: They cannot be shared evenly.
    """
    if batch_size % processes:
        raise InputError(
            explain(
                "the batch cannot be shared evenly",
                got=f"batch_size {batch_size} over {processes} processes",
                expected="a multiple of the number of processes",
                mend="change batch_size",
            )
        )
    return batch_size // processes


@contextmanager
def _one_may_be_lost() -> Iterator[None]:
    """Say in a sentence that another process has ended, but let that one be the first to be seen ending.

    What it said is the cause, and its exit code is what the launcher is to pass on. A launcher that sees it ends this
    process meanwhile.
    """
    try:
        yield
    except RuntimeError as error:
        time.sleep(CAUSE_FIRST_S)
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        mend = "see what it said; the same command goes on from the last checkpoint"
        raise RunError(explain("another process of this training has ended", got=told, mend=mend)) from error


class Processes:
    """The processes that train together; a single one when torchrun did not start this program."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", local) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        self.started = self.size > 1 and not dist.is_initialized()
        if self.started:
            dist.init_process_group("nccl" if cuda else "gloo")

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def share(self, batch_size: int) -> range:
        """Positions of the global batch that belong to this process."""
        part = share_of(batch_size, self.size)
        return range(self.rank * part, (self.rank + 1) * part)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes.

        Which parameters have one depends on the step's subsets alone, so it is the same set in every process.
        """
        if self.size == 1:
            return
        parameters = [p for p in parameters if p.grad is not None]
        flat = torch.cat([p.grad.flatten() for p in parameters])
        with _one_may_be_lost():
            dist.all_reduce(flat)
        flat /= self.size
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad.copy_(part.view_as(p))

    def average(self, value: Tensor) -> Tensor:
        """Mean of a small tensor over the processes."""
        if self.size > 1:
            value = value.clone()
            with _one_may_be_lost():
                dist.all_reduce(value)
            value /= self.size
        return value

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            with _one_may_be_lost():
                dist.barrier()

    def close(self) -> None:
        """End what the constructor started."""
        if self.started:
            dist.destroy_process_group()
