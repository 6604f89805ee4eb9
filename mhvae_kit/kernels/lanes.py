"""Vectors as wide as the processor's, for loops that compilers do not turn into vectors by themselves.

A vector has LANES float32 values. `load` and `store` take an array and an index in it and check neither.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

from mhvae_kit.kernels import OUTPUTS
from mhvae_kit.kernels.vectors import exactly

LANES = 16 if binding.get_host_cpu_features().get("avx512f") else 8
ACROSS = 3  # vectors side by side in a block product: with OUTPUTS rows of them the sums fit into the registers
WIDTH = ACROSS * LANES
SQUARE = LANES * LANES

_I32 = ir.IntType(32)
_VALUES = ir.VectorType(ir.FloatType(), LANES)


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name=f"{LANES} float32")


vector = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, of_type: Any) -> None:
        super().__init__(manager, of_type, _VALUES)


def _place(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """A pointer to a value of a float32 array."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """The LANES values of an array from an index on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments)
        values = builder.load(builder.bitcast(place, _VALUES.as_pointer()))
        values.align = 4
        return values

    return vector(array, types.int64), generate


@intrinsic
def store(typing: Any, array: Any, index: Any, values: Any) -> Any:
    """Write a vector to an array from an index on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], builder.bitcast(place, _VALUES.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), generate


def _in_all_lanes(builder: Any, value: Any) -> Any:
    """A vector of one number in all lanes."""
    none = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    first = builder.insert_element(none, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, none, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))


def _first_lanes(builder: Any, n: Any) -> Any:
    """For every lane whether it is one of the first n."""
    numbers = ir.Constant(ir.VectorType(ir.IntType(64), LANES), list(range(LANES)))
    return builder.icmp_signed("<", numbers, _in_all_lanes(builder, n))


def called(builder: Any, name: str, result: ir.Type, *arguments: Any) -> Any:
    """Call one of LLVM's operations, or of its functions for a kind of processor."""
    signature = ir.FunctionType(result, [x.type for x in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, signature, name)
    return builder.call(function, arguments)


@intrinsic
def load_first(typing: Any, array: Any, index: Any, n: Any) -> Any:
    """The first n values of an array from an index on, and zeros in all other lanes; those are not read."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments[:2])
        place = builder.bitcast(place, _VALUES.as_pointer())
        mask, zeros = _first_lanes(builder, arguments[2]), ir.Constant(_VALUES, [0.0] * LANES)
        name = f"llvm.masked.load.v{LANES}f32.p0v{LANES}f32"
        return called(builder, name, _VALUES, place, ir.Constant(_I32, 4), mask, zeros)

    return vector(array, types.int64, types.int64), generate


@intrinsic
def store_first(typing: Any, array: Any, index: Any, n: Any, values: Any) -> Any:
    """Write the first n lanes of a vector to an array from an index on; nothing is written behind them."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments[:2])
        place = builder.bitcast(place, _VALUES.as_pointer())
        name = f"llvm.masked.store.v{LANES}f32.p0v{LANES}f32"
        mask = _first_lanes(builder, arguments[2])
        called(builder, name, ir.VoidType(), arguments[3], place, ir.Constant(_I32, 4), mask)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, vector), generate


@intrinsic
def spread(typing: Any, value: Any) -> Any:
    """A vector of one float32 in all lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _in_all_lanes(builder, arguments[0])

    return vector(types.float32), generate


@intrinsic
def add_product(typing: Any, x: Any, y: Any, onto: Any) -> Any:
    """x * y + onto, rounded once where the processor can."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        product = builder.fmul(arguments[0], arguments[1], flags=("contract",))
        return builder.fadd(product, arguments[2], flags=("contract",))

    return vector(vector, vector, vector), generate


def _of_two(build: Callable[[Any, Any, Any], Any]) -> Any:
    """An operation on two vectors from what makes its instruction."""

    @intrinsic
    def operation(typing: Any, x: Any, y: Any) -> Any:
        return vector(vector, vector), lambda context, builder, signature, arguments: build(builder, *arguments)

    return operation


def _chosen(lanes: Sequence[int]) -> Any:
    """An operation that takes lanes of two vectors; those of the second count from LANES on."""
    numbers = ir.Constant(ir.VectorType(_I32, LANES), list(lanes))
    return _of_two(lambda builder, x, y: builder.shuffle_vector(x, y, numbers))


_sum = _of_two(lambda builder, x, y: builder.fadd(x, y))
_difference = _of_two(lambda builder, x, y: builder.fsub(x, y))
product = _of_two(lambda builder, x, y: builder.fmul(x, y))
# Of two vectors that lie behind each other: every other value, from the first or the second on.
evens = _chosen(range(0, 2 * LANES, 2))
odds = _chosen(range(1, 2 * LANES, 2))
# Of every run of sixteen values the first eight, or the others.
fronts, backs = (_chosen([i for i in range(2 * LANES) if i // 8 % 2 == half]) for half in (0, 1))
# The other way: both vectors' values in turns, first half and second half.
first_woven = _chosen([i // 2 + LANES * (i % 2) for i in range(LANES)])
second_woven = _chosen([i // 2 + LANES * (i % 2) for i in range(LANES, 2 * LANES)])
# Inside every run of four values: both vectors' first or last two in turns, their first two or last two behind another.
_woven_low, _woven_high, _low, _high = (
    _chosen([i // 4 * 4 + k % 4 + LANES * (k // 4) for i in range(0, LANES, 4) for k in four])
    for four in ((0, 4, 1, 5), (2, 6, 3, 7), (0, 1, 4, 5), (2, 3, 6, 7))
)
# The first value of every run of four, then the second ones, and so on; and the other way.
_sorted = _chosen([i % (LANES // 4) * 4 + i // (LANES // 4) for i in range(LANES)])
_unsorted = _chosen([i % 4 * (LANES // 4) + i // 4 for i in range(LANES)])


def _halves_added(lanes: int) -> Any:
    """An operation that adds both halves of every run of so many lanes of two vectors, to one vector of half runs."""
    runs = [i % lanes < lanes // 2 for i in range(2 * LANES)]
    lower, upper = ([i for i, is_lower in enumerate(runs) if is_lower == half] for half in (True, False))
    of = ir.VectorType(_I32, LANES)

    def build(builder: Any, x: Any, y: Any) -> Any:
        first = builder.shuffle_vector(x, y, ir.Constant(of, lower))
        return builder.fadd(first, builder.shuffle_vector(x, y, ir.Constant(of, upper)))

    return _of_two(build)


_fold, _fold_again, _fold_thrice, _fold_last = (_halves_added(LANES // n) for n in (1, 2, 4, min(8, LANES // 2)))


@exactly
def eight_totals(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """A vector of eight vectors' sums over their lanes; with more lanes, what is behind them is of no use."""
    x = _fold_again(_fold(a, b), _fold(c, d))
    x = _fold_thrice(x, _fold_again(_fold(e, f), _fold(g, h)))
    return x if LANES == 8 else _fold_last(x, x)


@exactly
def _turned_fours(a: Any, b: Any, c: Any, d: Any) -> tuple[Any, Any, Any, Any]:
    """Transpose the squares that runs of four values of four vectors are."""
    p, q, r, s = _woven_low(a, b), _woven_high(a, b), _woven_low(c, d), _woven_high(c, d)
    return _low(p, r), _high(p, r), _low(q, s), _high(q, s)


@exactly
def every_fourth(a: Any, b: Any, c: Any, d: Any) -> tuple[Any, Any, Any, Any]:
    """Of vectors that lie behind each other: every fourth value, from the first, second, third and fourth on."""
    a, b, c, d = _turned_fours(a, b, c, d)
    return _sorted(a, a), _sorted(b, b), _sorted(c, c), _sorted(d, d)


@exactly
def four_in_turns(a: Any, b: Any, c: Any, d: Any) -> tuple[Any, Any, Any, Any]:
    """The other way: the values of four vectors in turns."""
    return _turned_fours(_unsorted(a, a), _unsorted(b, b), _unsorted(c, c), _unsorted(d, d))


@overload(operator.add, jit_options={"forceinline": True})
def _add(x: Any, y: Any) -> Any:
    def added(x: Any, y: Any) -> Any:
        return _sum(x, y)

    return added if x is vector and y is vector else None


@overload(operator.sub, jit_options={"forceinline": True})
def _subtract(x: Any, y: Any) -> Any:
    def subtracted(x: Any, y: Any) -> Any:
        return _difference(x, y)

    return subtracted if x is vector and y is vector else None


@exactly
def room(n: int) -> np.ndarray:
    """n zeros, the first at an address from which vectors cross no border between lines of the cache."""
    values = np.zeros(n + LANES, np.float32)
    return values[-values.ctypes.data // 4 % LANES :][:n]


@exactly
def store_six(values: tuple[Any, Any, Any, Any, Any, Any], out: np.ndarray, to: int, step: int) -> None:
    """Write six vectors to places that are `step` apart."""
    a, b, c, d, e, f = values
    store(out, to, a)
    store(out, to + step, b)
    store(out, to + 2 * step, c)
    store(out, to + 3 * step, d)
    store(out, to + 4 * step, e)
    store(out, to + 5 * step, f)


@exactly
def transposed(square: np.ndarray, n: int) -> int:
    """Transpose n vectors, a power of two, from the first half of an array; returns where the result begins.

    The n values of the first lane lie in front of those of the second, and so on. Each round weaves vectors of the
    first half with those of the second, which rotates the bits of a value's place by one.
    """
    start, to, left = 0, SQUARE, n
    while left > 1:
        left //= 2
        for k in range(n // 2):
            a, b = load(square, start + k * LANES), load(square, start + (n // 2 + k) * LANES)
            store(square, to + 2 * k * LANES, first_woven(a, b))
            store(square, to + (2 * k + 1) * LANES, second_woven(a, b))
        start, to = to, start
    return start


@exactly
def copy_run(x: np.ndarray, start: int, n: int, out: np.ndarray, to: int) -> None:
    """Copy n values."""
    done = 0
    while done + LANES <= n:
        store(out, to + done, load(x, start + done))
        done += LANES
    if LANES == 16 and done < n:  # with vectors of 8, storing some lanes takes longer than a loop on many processors
        store_first(out, to + done, n - done, load_first(x, start + done, n - done))
        done = n
    while done < n:
        out[to + done] = x[start + done]
        done += 1


@exactly
def block_product(
    filters: np.ndarray, first: int, values: np.ndarray, start: int, stride: int, n: int, out: np.ndarray, to: int
) -> None:
    """OUTPUTS sums over n channels for WIDTH places: out[o, t] = sum over k of filters[k, o] * values[k, t].

    Filters lie from `first` on, (n, OUTPUTS); values from `start` on, `stride` behind each other; the sums from `to`
    on, (OUTPUTS, WIDTH).
    """
    zero = spread(np.float32(0.0))
    sums = sums_from(zero, zero, zero, zero)
    for k in range(n):
        sums = add_products(filters, first + k * OUTPUTS, values, start + k * stride, sums)
    store_sums(sums, out, to)


@exactly
def sums_from(a: Any, b: Any, c: Any, d: Any) -> Any:
    """OUTPUTS rows of ACROSS vectors, each row full of one."""
    return a, a, a, b, b, b, c, c, c, d, d, d


@exactly
def add_products(filters: np.ndarray, of: int, values: np.ndarray, at: int, sums: Any) -> Any:
    """Add the products of OUTPUTS filters' numbers and WIDTH values."""
    a0, a1, a2, b0, b1, b2, c0, c1, c2, d0, d1, d2 = sums
    x0, x1, x2 = load(values, at), load(values, at + LANES), load(values, at + 2 * LANES)
    w = spread(filters[of])
    a0, a1, a2 = add_product(w, x0, a0), add_product(w, x1, a1), add_product(w, x2, a2)
    w = spread(filters[of + 1])
    b0, b1, b2 = add_product(w, x0, b0), add_product(w, x1, b1), add_product(w, x2, b2)
    w = spread(filters[of + 2])
    c0, c1, c2 = add_product(w, x0, c0), add_product(w, x1, c1), add_product(w, x2, c2)
    w = spread(filters[of + 3])
    d0, d1, d2 = add_product(w, x0, d0), add_product(w, x1, d1), add_product(w, x2, d2)
    return a0, a1, a2, b0, b1, b2, c0, c1, c2, d0, d1, d2


@exactly
def add_three_taps(g: Any, h: Any, x: np.ndarray, at: int, sums: Any) -> Any:
    """Add products of two vectors of a gradient and x, seen through three taps: those of the first, then the second."""
    a0, a1, a2, b0, b1, b2 = sums
    t = load(x, at)
    a0, b0 = add_product(g, t, a0), add_product(h, t, b0)
    t = load(x, at + 1)
    a1, b1 = add_product(g, t, a1), add_product(h, t, b1)
    t = load(x, at + 2)
    a2, b2 = add_product(g, t, a2), add_product(h, t, b2)
    return a0, a1, a2, b0, b1, b2


@exactly
def store_sums(sums: Any, out: np.ndarray, to: int) -> None:
    """Write (OUTPUTS, WIDTH) sums."""
    a0, a1, a2, b0, b1, b2, c0, c1, c2, d0, d1, d2 = sums
    _store_row(out, to, a0, a1, a2)
    _store_row(out, to + WIDTH, b0, b1, b2)
    _store_row(out, to + 2 * WIDTH, c0, c1, c2)
    _store_row(out, to + 3 * WIDTH, d0, d1, d2)


@exactly
def _store_row(out: np.ndarray, to: int, x0: Any, x1: Any, x2: Any) -> None:
    store(out, to, x0)
    store(out, to + LANES, x1)
    store(out, to + 2 * LANES, x2)
