"""bfloat16 maps as vectors of float32: reading and writing.

A bfloat16 is the upper half of a float32; numba knows it as a 16-bit integer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import carray, types
from numba.extending import intrinsic

from mhvae_kit.kernels.lanes import LANES, called, vector
from mhvae_kit.kernels.vectors import exactly, pointer_to

_I16, _I32, _FLOAT = (ir.VectorType(t, LANES) for t in (ir.IntType(16), ir.IntType(32), ir.FloatType()))
_FEATURES = binding.get_host_cpu_features()
# Whether the processor rounds and multiplies bfloat16 itself; older LLVM has other types for what it does.
KNOWS_HALVES = LANES == 16 and bool(_FEATURES.get("avx512bf16")) and binding.llvm_version_info[0] >= 16

_pointer = pointer_to(types.uint16)


@exactly
def halves(address: int, size: int) -> np.ndarray:
    """`size` bfloat16 from an address on."""
    return carray(_pointer(address), (size,))


class _BFloat(ir.Type):
    """bfloat16 as LLVM knows it and llvmlite does not."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BFLOAT = _BFloat()


def _place(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _I16.as_pointer())


def _all(of: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(of, [value] * LANES)


@intrinsic
def load_half(typing: Any, array: Any, index: Any) -> Any:
    """LANES bfloat16 of an array from an index on, as a vector."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.load(_place(context, builder, signature.args[0], *arguments))
        bits.align = 2
        return builder.bitcast(builder.shl(builder.zext(bits, _I32), _all(_I32, 16)), _FLOAT)

    return vector(array, types.int64), generate


@intrinsic
def store_half(typing: Any, array: Any, index: Any, values: Any) -> Any:
    """Write a vector to an array of bfloat16 from an index on: the nearest, ties to even; NaN stays NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments[:2])
        builder.store(narrowed_vector(builder, arguments[2]), place).align = 2
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), generate


def narrowed_vector(builder: Any, values: Any) -> Any:
    """float32 to the bits of bfloat16, by the processor's own instruction where it has one."""
    if KNOWS_HALVES:
        name = "llvm.x86.avx512bf16.cvtneps2bf16.512"
        return builder.bitcast(called(builder, name, ir.VectorType(BFLOAT, LANES), values), _I16)
    return _rounded(builder, values, _I16, _I32, lambda n: _all(_I32, n))


def _rounded(builder: Any, values: Any, halves: ir.Type, bits: ir.Type, of: Callable[[int], ir.Constant]) -> Any:
    """The same by integers: half of the last bit is added, and a little more where that bit is 1."""
    whole = builder.bitcast(values, bits)
    last = builder.and_(builder.lshr(whole, of(16)), of(1))
    rounded = builder.add(whole, builder.add(last, of(0x7FFF)))
    is_nan = builder.fcmp_unordered("uno", values, values)
    kept = builder.select(is_nan, builder.or_(whole, of(0x400000)), rounded)
    return builder.trunc(builder.lshr(kept, of(16)), halves)


@intrinsic
def narrowed(typing: Any, x: Any) -> Any:
    """The bfloat16 nearest to one float32, ties to even; of NaN, NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one = ir.IntType(32)
        return _rounded(builder, arguments[0], ir.IntType(16), one, lambda n: ir.Constant(one, n))

    return types.uint16(types.float32), generate


@intrinsic
def widened(typing: Any, bits: Any) -> Any:
    """One bfloat16 as float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one = ir.IntType(32)
        upper = builder.shl(builder.zext(arguments[0], one), ir.Constant(one, 16))
        return builder.bitcast(upper, ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def at_least(typing: Any, x: Any, other: Any) -> Any:
    """The larger of two vectors in each lane; NaN of the first stays NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, other = arguments
        return builder.select(builder.fcmp_ordered("<", x, other), other, x)

    return vector(vector, vector), generate
