"""Patients shared out over several processes: each process makes whole patients, so results are those of one."""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from mhvae_kit.config import MHVAEConfig, from_dict
from mhvae_kit.errors import RunError, explain
from mhvae_kit.networks.storage import make_model

Item = TypeVar("Item")
Result = TypeVar("Result")
_model: Any = None  # of a process of the pool, set once when it starts


def shared_out(
    work: Callable[[Any, Item], Result], items: Sequence[Item], model: Any, devices: int, threads: int
) -> Iterator[tuple[int, Result]]:
    """`work(model, item)` for every item in several processes; gives (position, result) as they come.

    Args:
        work: A function of a module, so that other processes find it.
        items: What to work on; anything that can be pickled.
        model: An MHVAE or MVAE. On a GPU, each process takes the next one.
        devices: Number of processes.
        threads: Threads of torch in each.
    Raises:
        RunError: A process ended by itself, as one that runs out of memory does.
        Exception: What `work` raised; the processes are ended.
    """
    context = multiprocessing.get_context("spawn")  # a forked process cannot use a GPU, nor torch's threads
    numbers = context.Queue()
    for number in range(devices):
        numbers.put(number)
    weights = {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
    kind = next(model.parameters()).device.type
    described = (dataclasses.asdict(model.config), weights, model.card, kind, threads, numbers)
    pool = ProcessPoolExecutor(devices, mp_context=context, initializer=_begin, initargs=described)
    with _ended(pool):
        places: dict[Future[Result], int] = {pool.submit(_work, work, item): i for i, item in enumerate(items)}
        try:
            for future in as_completed(places):
                yield places[future], future.result()
        except BrokenProcessPool as error:
            mend = "take fewer --devices or a smaller batch size if memory ran out; finished cases are kept"
            raise RunError(explain("one of the processes ended before its patient was made", mend=mend)) from error


@contextmanager
def _ended(pool: ProcessPoolExecutor) -> Iterator[None]:
    """No process of the pool lives on when this block is left, however it is."""
    before = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown(wait=True)


def _begin(
    config: dict[str, Any], weights: dict[str, Any], card: dict[str, Any], kind: str, threads: int, numbers: Any
) -> None:
    """Build the model in a process of the pool."""
    global _model
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of them; the first process ends the others
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unfinished folders are removed on the way out
    torch.set_num_threads(threads)
    _model = make_model(from_dict(MHVAEConfig, config)).eval()
    _model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    _model.card = card
    number = numbers.get()
    _model.to(torch.device(kind, number) if kind == "cuda" else torch.device("cpu"))


def _work(work: Callable[[Any, Item], Result], item: Item) -> Result:
    return work(_model, item)
