"""One process or many: the few operations that training needs from torch.distributed.

Gradients are averaged by one call a step instead of through DistributedDataParallel: two networks, modalities that
get no gradient in a step and several passes per step all work without a special case (docs/decisions/0004).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mhvae_kit.errors import InputError, explain


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
        if batch_size % self.size:
            raise InputError(
                explain(
                    "the batch cannot be shared evenly",
                    got=f"batch_size {batch_size} over {self.size} processes",
                    expected="a multiple of the number of processes",
                    mend="change batch_size",
                )
            )
        part = batch_size // self.size
        return range(self.rank * part, (self.rank + 1) * part)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes.

        Which parameters have one depends on the step's subsets alone, so it is the same set in every process.
        """
        if self.size == 1:
            return
        parameters = [p for p in parameters if p.grad is not None]
        flat = torch.cat([p.grad.flatten() for p in parameters])
        dist.all_reduce(flat)
        flat /= self.size
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad.copy_(part.view_as(p))

    def average(self, value: Tensor) -> Tensor:
        """Mean of a small tensor over the processes."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.size
        return value

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """End what the constructor started."""
        if self.started:
            dist.destroy_process_group()
