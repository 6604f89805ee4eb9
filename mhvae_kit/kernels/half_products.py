"""Products of bfloat16 numbers, two channels at a time, added up in float32.

Processors that multiply bfloat16 do so in pairs: of every pair of neighbouring numbers, both products are added to one
float32 sum. Elsewhere the same is put together from float32 products.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mhvae_kit.kernels.halves import BFLOAT, KNOWS_HALVES, narrowed_vector
from mhvae_kit.kernels.lanes import LANES, called, vector

PAIRS = LANES // 2  # of LANES channels
# Sums that are kept in registers: vectors of outputs, and pixels. A wide map has two vectors a pixel, as each number
# of the map is then read once for both.
WIDE, NARROW = ((2, 12), (1, 24)) if LANES == 16 else ((2, 4), (1, 8))
HAS_MATRIX_UNIT = bool(binding.get_host_cpu_features().get("amx-bf16"))  # which is quicker still

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_INTEGERS, _FLOATS = ir.VectorType(_I32, LANES), ir.VectorType(ir.FloatType(), LANES)
_HALVES = ir.VectorType(BFLOAT, 2 * LANES)


def _number(k: int) -> ir.Constant:
    return ir.Constant(_I64, k)


def _loaded(builder: Any, data: Any, index: Any, of: ir.Type, align: int = 4) -> Any:
    """A value of a type from an index on; bfloat16 lie at even addresses, all else at multiples of 4."""
    value = builder.load(builder.bitcast(builder.gep(data, [index]), of.as_pointer()))
    value.align = align
    return value


def _upper(builder: Any, pairs: Any) -> Any:
    """The second of each pair as float32."""
    mask = ir.Constant(_INTEGERS, [0xFFFF0000] * LANES)
    return builder.bitcast(builder.and_(pairs, mask), _FLOATS)


def _lower(builder: Any, pairs: Any) -> Any:
    """The first of each pair as float32."""
    return builder.bitcast(builder.shl(pairs, ir.Constant(_INTEGERS, [16] * LANES)), _FLOATS)


def _added(builder: Any, total: Any, x: Any, y: Any) -> Any:
    """A sum plus both products of pairs."""
    if KNOWS_HALVES:
        operands = [builder.bitcast(v, _HALVES) for v in (x, y)]
        return called(builder, "llvm.x86.avx512bf16.dpbf16ps.512", _FLOATS, total, *operands)
    for part in (_lower, _upper):
        product = builder.fmul(part(builder, x), part(builder, y), flags=("contract",))
        total = builder.fadd(total, product, flags=("contract",))
    return total


def _in_all_lanes(builder: Any, pair: Any) -> Any:
    none = ir.Constant(_INTEGERS, ir.Undefined)
    first = builder.insert_element(none, pair, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, none, ir.Constant(_INTEGERS, [0] * LANES))


def _add_products(builder: Any, x: Any, place: Any, filters: Any, start: Any, sums: list[list[Any]]) -> None:
    """Add to the sums, by pixel and vector of outputs, the products of LANES channels of each pixel and its filters."""
    for pair in range(PAIRS):
        at = [_number(2 * (pair * len(sums[0]) + v) * LANES) for v in range(len(sums[0]))]
        weights = [_loaded(builder, filters, builder.add(start, shift), _INTEGERS, 2) for shift in at]
        for p, of_pixel in enumerate(sums):
            one = _loaded(builder, x, builder.add(place, _number(p * LANES + 2 * pair)), _I32, 2)
            value = _in_all_lanes(builder, one)
            for weight, total in zip(weights, of_pixel, strict=True):
                builder.store(_added(builder, builder.load(total), weight, value), total)


def _pair_sums(vectors: int, pixels: int) -> Any:
    """The function `pair_sums` for so many vectors of outputs and pixels, which are constants in what is compiled."""

    @intrinsic
    def pair_sums(
        typing: Any, x: Any, at: Any, places: Any, n: Any, filters: Any, first: Any, bias: Any, of: Any, out: Any
    ) -> Any:
        """Sums of neighbouring pixels over n runs of LANES channels, to `out`, (pixels, vectors, LANES).

        A pixel's k-th run begins at `at + places[k]` in x, that of the next pixel LANES behind it. Filters lie from
        `first` on, (n, PAIRS, vectors, LANES, 2); the bias from `of` on, (vectors, LANES).
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, places, filters, bias, out = (
                context.make_array(signature.args[k])(context, builder, arguments[k]).data for k in range(0, 9, 2)
            )
            at, n, first, of = arguments[1::2]
            starts = [_loaded(builder, bias, builder.add(of, _number(v * LANES)), _FLOATS) for v in range(vectors)]
            # What is stored here stays in registers: LLVM sees that nobody else knows the places.
            sums = [[cgutils.alloca_once_value(builder, start) for start in starts] for _ in range(pixels)]
            with cgutils.for_range(builder, n) as loop:
                place = builder.add(at, _loaded(builder, places, loop.index, _I64))
                start = builder.add(first, builder.mul(loop.index, _number(2 * PAIRS * vectors * LANES)))
                _add_products(builder, x, place, filters, start, sums)
            for k, total in enumerate(total for of_pixel in sums for total in of_pixel):
                to = builder.bitcast(builder.gep(out, [_number(k * LANES)]), _FLOATS.as_pointer())
                builder.store(builder.load(total), to).align = 4
            return context.get_dummy_value()

        i64 = types.int64
        return types.void(x, i64, places, i64, filters, i64, bias, i64, out), generate

    return pair_sums


wide_sums, narrow_sums = _pair_sums(*WIDE), _pair_sums(*NARROW)


@intrinsic
def store_pairs(typing: Any, array: Any, index: Any, x: Any, y: Any) -> Any:
    """Write two vectors' numbers in turns, in bfloat16, to an array from an index on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, index, x, y = arguments
        lower, upper = (builder.zext(narrowed_vector(builder, v), _INTEGERS) for v in (x, y))
        pairs = builder.or_(lower, builder.shl(upper, ir.Constant(_INTEGERS, [16] * LANES)))
        place = builder.gep(context.make_array(signature.args[0])(context, builder, array).data, [index])
        builder.store(pairs, builder.bitcast(place, _INTEGERS.as_pointer())).align = 2
        return context.get_dummy_value()

    return types.void(array, types.int64, vector, vector), generate
