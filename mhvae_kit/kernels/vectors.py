"""What kernels are put together from: compilation, atomic counters, exponential, statistics of one plane, gradients."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from mhvae_kit.files import default_cache_dir
from mhvae_kit.kernels import EPSILON

f32 = np.float32

# Sums in any order, so that they fit into vectors; NaN and infinity stay what they are. With the error model of numpy a
# division needs no check for 0, which vectors cannot have. A function that is not inlined has a copy in each kernel,
# rounded in its own way, and which copy all of them call would differ between a process that compiles and later ones.
summing = njit(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy", forceinline=True)
exactly = njit(fastmath={"contract"}, error_model="numpy", forceinline=True)


def _cache_folder() -> Path | None:
    """Where compiled kernels are kept: one folder for each state of this package's sources; None if it cannot be made.

    numba's own cache would look at the file of a kernel alone, and not at what it calls in others.
    """
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join([numba.__version__.encode(), *(path.read_bytes() for path in sources)]))
    folder = default_cache_dir() / "kernels" / digest.hexdigest()[:12]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder


_CACHE = _cache_folder()


class kernel:
    """A function of a pointer to 64-bit integers, compiled or taken from the cache when its address is first read."""

    made_here = 0  # how many this process has compiled, and not taken from the cache
    _one_at_a_time = threading.Lock()  # as numba's cache folder is a setting of the process

    def __init__(self, function: Callable[[Any], None]) -> None:
        self._function = function
        self._compiled: Any = None

    @property
    def address(self) -> int:
        """What C calls."""
        if self._compiled is None:
            with self._one_at_a_time:
                self._compile()
        return self._compiled.address

    def _compile(self) -> None:
        if self._compiled is not None:  # by another thread meanwhile
            return
        before = numba.config.CACHE_DIR
        try:
            numba.config.CACHE_DIR = str(_CACHE or before)
            self._compiled = cfunc(types.void(types.CPointer(types.int64)), cache=_CACHE is not None)(self._function)
            kernel.made_here += self._compiled.cache_hits == 0
        finally:
            numba.config.CACHE_DIR = before


@intrinsic
def taken(typing: Any, address: Any) -> Any:
    """The integer at an address, which is raised by 1 in one go, whatever other threads do."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic
def finished(typing: Any, address: Any) -> Any:
    """Raise the integer at an address by 1, after everything that this thread has written."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "release")
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def counted(typing: Any, address: Any) -> Any:
    """The integer at an address, before anything is read that other threads had written when they raised it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.int64), generate


def _fetching(to_write: int) -> Any:
    """A function of an address that brings its line of the cache, without waiting for it."""

    @intrinsic
    def fetch(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            i8p, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [i8p, i32, i32, i32])
            name = "llvm.prefetch.p0i8"
            function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
            numbers = [ir.Constant(i32, n) for n in (to_write, 3, 1)]  # to be kept; of data
            builder.call(function, [builder.inttoptr(arguments[0], i8p), *numbers])
            return context.get_dummy_value()

        return types.void(types.int64), generate

    return fetch


fetch_to_read, fetch_to_write = _fetching(0), _fetching(1)


def pointer_to(kind: Any) -> Any:
    """A function of an address that gives a pointer to numbers of a kind."""

    @intrinsic
    def of(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return of


pointer = pointer_to(types.float32)


@intrinsic
def nearest(typing: Any, x: Any) -> Any:
    """The integer nearest to a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rounded = builder.call(builder.module.declare_intrinsic("llvm.rint", [ir.FloatType()]), arguments)
        return builder.fptosi(rounded, ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def power_of_two(typing: Any, n: Any) -> Any:
    """2^n as float32, put together from its bits; n from -126 to 127."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        i32 = ir.IntType(32)
        bits = builder.shl(builder.add(arguments[0], ir.Constant(i32, 127)), ir.Constant(i32, 23))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def logarithm_parts(typing: Any, x: Any) -> Any:
    """e and m of x = m 2^e, m from sqrt(1/2) to sqrt(2), as float32, of a positive float32 from its bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        i32 = ir.IntType(32)
        bits = builder.bitcast(arguments[0], i32)
        e = builder.ashr(builder.sub(bits, ir.Constant(i32, 0x3F3504F3)), ir.Constant(i32, 23))
        m = builder.bitcast(builder.sub(bits, builder.shl(e, ir.Constant(i32, 23))), ir.FloatType())
        return context.make_tuple(builder, signature.return_type, [builder.sitofp(e, ir.FloatType()), m])

    return types.UniTuple(types.float32, 2)(types.float32), generate


@exactly
def power_parts(z: float) -> tuple[float, float]:
    """p and s of exp(z) = (1 + p) * s: s a power of two, and p small enough for exp(z) - 1 to keep its digits at 0.

    z counts as between -87 and 87. In a form that compilers can vectorise; to about 1e-7.
    """
    z = f32(87.0) if z > f32(87.0) else z
    z = f32(-87.0) if z < f32(-87.0) else z
    n = nearest(z * f32(1.44269504))
    r = z - f32(n) * f32(0.693359375)
    r = r - f32(n) * f32(-2.12194440e-4)
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    return p * r * r + r, power_of_two(n)


@exactly
def exponential(z: float) -> float:
    """exp(z), of z as between -87 and 87."""
    p, s = power_parts(z)
    return (p + f32(1.0)) * s


@exactly
def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), to about 2e-7."""
    return f32(1.0) / (f32(1.0) + exponential(-x))


@exactly
def logarithm(x: float) -> float:
    """log(x) of a positive, finite x, neither below 1.2e-38; of what is not a number, not a number.

    With x = m 2^e and m around 1 it is e log 2 + 2 artanh((m - 1) / (m + 1)), the latter a series that ends soon.
    """
    e, m = logarithm_parts(x)
    t = (m - f32(1.0)) / (m + f32(1.0))
    u = t * t
    series = f32(2.0 / 9.0) * u + f32(2.0 / 7.0)
    series = series * u + f32(2.0 / 5.0)
    series = series * u + f32(2.0 / 3.0)
    return e * f32(0.693147181) + (series * u * t + f32(2.0) * t) + (x - x)


@summing
def mean_and_scale(x: np.ndarray) -> tuple[float, float]:
    """Mean and 1 / standard deviation of a plane."""
    total = f32(0.0)
    for i in range(len(x)):
        total += x[i]
    mean = total / f32(len(x))
    squares = f32(0.0)
    for i in range(len(x)):
        squares += (x[i] - mean) * (x[i] - mean)
    return mean, f32(1.0) / np.sqrt(squares / f32(len(x)) + f32(EPSILON))


@summing
def total_of(x: np.ndarray) -> float:
    total = f32(0.0)
    for i in range(len(x)):
        total += x[i]
    return total


@summing
def gradient_through_norm(x: np.ndarray, mean: float, scale: float, grad: np.ndarray) -> None:
    """From the gradient of the normalised values to that of x, in place."""
    total, along = f32(0.0), f32(0.0)
    for i in range(len(x)):
        total += grad[i]
        along += grad[i] * (x[i] - mean)
    total = total / f32(len(x))
    along = along * scale * scale / f32(len(x))
    for i in range(len(x)):
        grad[i] = (grad[i] - total - (x[i] - mean) * along) * scale


@exactly
def block(address: int, number: int, size: int) -> np.ndarray:
    """The `number`-th run of `size` floats from an address on."""
    return carray(pointer(address + 4 * number * size), (size,))
