"""Whether compiled kernels can be used, and running one on torch's own threads.

Other threads would compete with torch's for the cores, as those wait busily for what comes next.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import sys
import warnings
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Team = Callable[[int, int, int], Any]
"""Runs the kernel at an address with its arguments at another, in so many threads at once."""

UNITS = (
    *("channels_last", "gates", "last_convolution", "layouts"),  # bfloat16
    *("gaussians", "heads", "large_filters", "normals", "pointwise", "upsampling", "wide"),
    *("winograd", "winograd_gradient", "winograd_large"),
)

_switched_on: ContextVar[bool] = ContextVar("kernels", default=True)


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Let torch's own operations do everything, to compare with or to count them."""
    token = _switched_on.set(False)
    try:
        yield
    finally:
        _switched_on.reset(token)


@functools.cache
def known() -> dict[str, Any] | None:
    """The kernels by name, or None where numba cannot be had.

    A kernel's first use on a machine compiles it, for one to ten seconds; later ones find it in the cache folder.
    """
    try:
        kind = importlib.import_module("mhvae_kit.kernels.vectors").kernel
        units = [importlib.import_module(f"mhvae_kit.kernels.{name}") for name in UNITS]
    except ImportError as reason:
        warnings.warn(
            f"numba cannot be imported, so torch's own operations run the model, which takes longer ({reason}). "
            "To mend: pip install numba.",
            stacklevel=2,
        )
        return None
    return {name: found for unit in units for name, found in vars(unit).items() if isinstance(found, kind)}


def apply_to(x: Tensor, *others: Tensor) -> bool:
    """Whether kernels can work on a map and its parameters: float32 without autocast on a CPU."""
    return not torch.is_autocast_enabled("cpu") and are_plain(x, *others) and can_run()


def are_plain(*tensors: Tensor) -> bool:
    """Whether tensors are float32 on a CPU."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)


def can_run() -> bool:
    """Whether kernels can be had and are wanted here."""
    return (
        not torch.compiler.is_compiling() and not torch.jit.is_tracing() and _switched_on.get() and known() is not None
    )


def has_compiled() -> bool:
    """Whether this process had to compile a kernel: what that took of memory lies between its tensors until it ends."""
    vectors = sys.modules.get("mhvae_kit.kernels.vectors")
    return vectors is not None and vectors.kernel.made_here > 0


@functools.cache
def lanes() -> int:
    """Float32 values in a vector of the processor's, on which kernels work at once."""
    from mhvae_kit.kernels.lanes import LANES  # needs numba

    return LANES


class _Forgetful:
    """What a function keeps for its backward pass is forgotten."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        pass


def applied(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """`function.apply(*arguments)`; without gradients its forward pass alone, which saves autograd's preparations."""
    if torch.is_grad_enabled():
        return function.apply(*arguments)
    return function.forward(_Forgetful(), *arguments)


def planes(x: Tensor) -> int:
    """How many channels all images of a map (B, C, H, W) have together."""
    return x.shape[0] * x.shape[1]


def plane_size(x: Tensor) -> int:
    """Pixels of a map (B, C, H, W)."""
    return x.shape[2] * x.shape[3]


def run(name: str, items: int, *arguments: Tensor | int) -> None:
    """Run a kernel for so many items (planes, images, ...) on all of torch's threads.

    Args:
        name: Of the kernel.
        items: Threads take them one by one, so that the order changes; what is computed for one must not depend on it.
        arguments: Float32 tensors, stored plainly, and integers, in the kernel's order.
    Raises:
        MemoryError: No thread got the little memory that it works in.
    """
    if not items:
        return
    given = [t if isinstance(t, int) else t.data_ptr() for t in arguments]
    work = array("q", [0, items, *given, 0])  # the last is the counter from which threads take items
    start, n = work.buffer_info()
    work[0] = start + work.itemsize * (n - 1)
    _team()(known()[name].address, start, min(torch.get_num_threads(), items))
    if work[-1] < items:
        raise MemoryError(f"no memory for the kernel {name!r}: a smaller batch or image needs less")


@functools.cache
def _team() -> Team:
    """torch's threads where it was built with GNU's OpenMP, as its Linux wheels are; others elsewhere."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        parallel = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return python_threads
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return lambda kernel, arguments, threads: parallel(kernel, arguments, threads, 0)


def python_threads(kernel: int, arguments: int, threads: int) -> None:
    """A team of Python's threads; kernels do not hold its lock."""
    work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel)
    others = [_pool().submit(work, arguments) for _ in range(threads - 1)]
    work(arguments)
    for other in others:
        other.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="kernels")
