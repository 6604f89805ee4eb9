"""Sigmoid and hyperbolic tangent of vectors, and SiLU and soft clamp of runs of values by them.

exp(x) = 2^n 2^f, n an integer and f from -1/2 to 1/2, whose power is a polynomial; and the processor's estimate of an
inverse, which takes a fraction of the time of a division, with one of Newton's steps behind.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba.extending import intrinsic

from mhvae_kit.kernels.lanes import (
    LANES,
    add_product,
    called,
    load,
    load_first,
    product,
    spread,
    store,
    store_first,
    vector,
)
from mhvae_kit.kernels.vectors import exactly, f32

_I32, _FLOAT = ir.VectorType(ir.IntType(32), LANES), ir.VectorType(ir.FloatType(), LANES)
# A float32 this large has no digits behind the point, so that adding it rounds to the nearest integer, ties to even.
_ROUNDS = np.float32(1.5 * 2**23)
_FEATURES = binding.get_host_cpu_features()


def _all(of: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(of, [value] * LANES)


@intrinsic
def bounded(typing: Any, x: Any, limit: Any) -> Any:
    """x, but between -limit and limit; NaN stays NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, limit = arguments
        x = builder.select(builder.fcmp_ordered(">", x, limit), limit, x)
        lowest = builder.fneg(limit)
        return builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)

    return vector(vector, vector), generate


@intrinsic
def _negative(typing: Any, x: Any) -> Any:
    return vector(vector), lambda context, builder, signature, arguments: builder.fneg(arguments[0])


@intrinsic
def _absolute(typing: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.and_(builder.bitcast(arguments[0], _I32), _all(_I32, 0x7FFFFFFF))
        return builder.bitcast(bits, _FLOAT)

    return vector(vector), generate


@intrinsic
def _with_sign_of(typing: Any, positive: Any, x: Any) -> Any:
    """A positive vector with the signs of another."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits, other = (builder.bitcast(argument, _I32) for argument in arguments)
        return builder.bitcast(builder.or_(bits, builder.and_(other, _all(_I32, 0x80000000))), _FLOAT)

    return vector(vector, vector), generate


@intrinsic
def _two_to(typing: Any, rounded: Any) -> Any:
    """2^n of n + _ROUNDS, by moving the last bits of n to where the exponent lies."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        exponent = builder.shl(builder.bitcast(arguments[0], _I32), _all(_I32, 23))
        return builder.bitcast(builder.add(exponent, _all(_I32, 0x3F800000)), _FLOAT)

    return vector(vector), generate


@intrinsic
def _roughly_inverse(typing: Any, x: Any) -> Any:
    """1 / x by the processor's estimate: to 2^-14 with AVX-512, to 1.5 * 2^-12 with AVX, else exactly."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (x,) = arguments
        if LANES == 16 and _FEATURES.get("avx512f"):
            none, all_lanes = ir.Constant(_FLOAT, None), ir.Constant(ir.IntType(16), -1)
            return called(builder, "llvm.x86.avx512.rcp14.ps.512", _FLOAT, x, none, all_lanes)
        if LANES == 8 and _FEATURES.get("avx"):
            return called(builder, "llvm.x86.avx.rcp.ps.256", _FLOAT, x)
        return builder.fdiv(ir.Constant(_FLOAT, [1.0] * LANES), x)

    return vector(vector), generate


@exactly
def half_sigmoid(x: Any) -> Any:
    """The sigmoid of a vector to 4e-4 of it at most, where bfloat16 keeps 4e-3; the power's polynomial to 7.5e-5."""
    z = bounded(product(x, spread(f32(-1.44269504))), spread(f32(126.0)))
    rounded = z + spread(_ROUNDS)
    f = z - (rounded - spread(_ROUNDS))
    p = add_product(f, spread(f32(5.517167e-2)), spread(f32(2.4261112e-1)))
    p = add_product(p, f, spread(f32(6.9326099e-1)))
    p = add_product(p, f, spread(f32(9.9992807e-1)))
    return _roughly_inverse(add_product(p, _two_to(rounded), spread(f32(1.0))))


@exactly
def _inverse(x: Any) -> Any:
    """1 / x to 1e-7 with AVX-512, to 2e-7 with AVX."""
    rough = _roughly_inverse(x)
    return add_product(rough, add_product(_negative(x), rough, spread(f32(1.0))), rough)


@exactly
def _power_of_two_parts(x: Any) -> tuple[Any, Any]:
    """f and 2^n of exp(x) = 2^n 2^f, of x from -87 to 87."""
    # Another number than below: LLVM would share the product, and so round it before the sums.
    rounded = add_product(x, spread(f32(1.4426951)), spread(_ROUNDS))
    f = add_product(x, spread(f32(1.44269504)), spread(_ROUNDS) - rounded)
    return add_product(x, spread(f32(1.925963e-8)), f), _two_to(rounded)  # the logarithm of e has more digits


@exactly
def _sigmoid(x: Any) -> Any:
    """The sigmoid of a vector to 3e-7 of it; the power's polynomial to 7.5e-8. x counts as from -87 to 87."""
    f, power = _power_of_two_parts(_negative(bounded(x, spread(f32(87.0)))))
    p = add_product(f, spread(f32(1.3276471519673844e-3)), spread(f32(9.675541330680326e-3)))
    p = add_product(p, f, spread(f32(5.550713274960795e-2)))
    p = add_product(p, f, spread(f32(2.4022119723934038e-1)))
    p = add_product(p, f, spread(f32(6.931469670638652e-1)))
    p = add_product(p, f, spread(f32(1.0000000716546555)))
    return _inverse(add_product(p, power, spread(f32(1.0))))


@exactly
def _tangent(x: Any) -> Any:
    """tanh(|x|) = e / (2 - e) with e = 1 - exp(-2 |x|), whose digits are kept at 0, to 3e-7 of it."""
    f, power = _power_of_two_parts(product(_absolute(bounded(x, spread(f32(43.0)))), spread(f32(-2.0))))
    p = add_product(f, spread(f32(1.5403512244040272e-4)), spread(f32(1.3390735421579952e-3)))
    p = add_product(p, f, spread(f32(9.61823749534593e-3)))
    p = add_product(p, f, spread(f32(5.5503574338109846e-2)))
    p = add_product(p, f, spread(f32(2.4022649794956452e-1)))
    p = add_product(p, f, spread(f32(6.931471879265835e-1)))
    e = add_product(_negative(product(p, f)), power, spread(f32(1.0)) - power)
    return _with_sign_of(product(e, _inverse(spread(f32(2.0)) - e)), x)


@exactly
def soft_clamped(x: np.ndarray, limit: float, out: np.ndarray) -> None:
    """limit * tanh(x / limit); `out` may be x."""
    bound, inverse, whole = spread(limit), spread(f32(1.0) / limit), len(x) // LANES * LANES
    for at in range(0, whole, LANES):
        store(out, at, product(bound, _tangent(product(load(x, at), inverse))))
    if whole < len(x):
        n = len(x) - whole
        store_first(out, whole, n, product(bound, _tangent(product(load_first(x, whole, n), inverse))))


@exactly
def _silu(x: Any, mean: Any, scale: Any) -> Any:
    normalised = product(x - mean, scale)
    return product(normalised, _sigmoid(normalised))


@exactly
def silu_of_normalised(x: np.ndarray, mean: float, scale: float, out: np.ndarray) -> None:
    """SiLU of the normalised plane; `out` may be x."""
    m, s, whole = spread(mean), spread(scale), len(x) // LANES * LANES
    for at in range(0, whole, LANES):
        store(out, at, _silu(load(x, at), m, s))
    if whole < len(x):
        n = len(x) - whole
        store_first(out, whole, n, _silu(load_first(x, whole, n), m, s))


@exactly
def _silu_and_slope(x: Any, mean: Any, scale: Any) -> tuple[Any, Any]:
    normalised, one = product(x - mean, scale), spread(f32(1.0))
    gate = _sigmoid(normalised)
    return product(normalised, gate), product(gate, add_product(normalised, one - gate, one))


@exactly
def silu_and_slope(x: np.ndarray, mean: float, scale: float, out: np.ndarray, slope: np.ndarray) -> None:
    """SiLU of the normalised plane, and its slope at each value."""
    m, s, whole = spread(mean), spread(scale), len(x) // LANES * LANES
    for at in range(0, whole, LANES):
        y, d = _silu_and_slope(load(x, at), m, s)
        store(out, at, y)
        store(slope, at, d)
    if whole < len(x):
        n = len(x) - whole
        y, d = _silu_and_slope(load_first(x, whole, n), m, s)
        store_first(out, whole, n, y)
        store_first(slope, whole, n, d)
