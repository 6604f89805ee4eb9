"""Standard-normal draws as torch makes them on a CPU: Mersenne's twister, then Box and Muller's transform.

torch goes through both value by value, on one thread. The twister's words follow from those 624, 623 and 227 places
before, so that a vector of them can be made at once; what is left is done on all threads. Words lie as the bits of
float32, as the draws take their places.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from mhvae_kit.kernels import RUN
from mhvae_kit.kernels.lanes import LANES, backs, fronts, load, store
from mhvae_kit.kernels.vectors import block, exactly, f32, kernel, logarithm, nearest, pointer_to, taken

WORDS = 624  # of the twister's state
AHEAD = 397  # from a word to the other that goes into its successor
PAIRS = 8  # of a block: so many radii lie in front of as many angles
STEP = 2 * LANES  # at most one block is left behind whole steps

_I32 = ir.IntType(32)


_word_pointer, _wide_pointer = pointer_to(types.uint32), pointer_to(types.uint64)


def _number(value: int) -> ir.Constant:
    return ir.Constant(_I32, value)


@intrinsic
def _twisted(typing: Any, word: Any, following: Any, ahead: Any) -> Any:
    """The word WORDS places behind one, from that, the one behind it and the one AHEAD of it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word, following, ahead = (builder.bitcast(x, _I32) for x in arguments)
        mixed = builder.or_(builder.and_(word, _number(0x80000000)), builder.and_(following, _number(0x7FFFFFFF)))
        odd = builder.and_(builder.sub(_number(0), builder.and_(following, _number(1))), _number(0x9908B0DF))
        made = builder.xor(ahead, builder.xor(builder.lshr(mixed, _number(1)), odd))
        return builder.bitcast(made, ir.FloatType())

    return types.float32(types.float32, types.float32, types.float32), generate


@intrinsic
def _fraction(typing: Any, word: Any) -> Any:
    """A uniform number from 0 to below 1 of a word: tempered, then its last 24 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        y = builder.bitcast(arguments[0], _I32)
        y = builder.xor(y, builder.lshr(y, _number(11)))
        y = builder.xor(y, builder.and_(builder.shl(y, _number(7)), _number(0x9D2C5680)))
        y = builder.xor(y, builder.and_(builder.shl(y, _number(15)), _number(0xEFC60000)))
        y = builder.xor(y, builder.lshr(y, _number(18)))
        whole = builder.sitofp(builder.and_(y, _number(0xFFFFFF)), ir.FloatType())
        return builder.fmul(whole, ir.Constant(ir.FloatType(), 2.0**-24))

    return types.float32(types.float32), generate


@exactly
def _go_on(words: np.ndarray) -> None:
    for k in range(len(words) - WORDS):
        words[k + WORDS] = _twisted(words[k], words[k + 1], words[k + AHEAD])


@kernel
def twister_words(arguments: Any) -> None:
    """n words, a multiple of WORDS, from a state's on, each of which has 64 bits; the last WORDS become the state's."""
    counter, items, state, out, n = carray(arguments, (5,))
    i = taken(counter)
    while i < items:
        kept, words = carray(_wide_pointer(state), (WORDS,)), carray(_word_pointer(out), (n,))
        words[:WORDS] = kept
        _go_on(block(out, 0, n))
        kept[:] = words[n - WORDS :]
        i = taken(counter)


@exactly
def _direction(turn: float) -> tuple[float, float]:
    """Cosine and sine of a part of a full turn, from 0 to 1."""
    quarter = nearest(f32(4.0) * turn)
    r = (f32(4.0) * turn - f32(quarter)) * f32(1.57079633)
    u = r * r
    sine = ((f32(-1.9515295891e-4) * u + f32(8.3321608736e-3)) * u + f32(-1.6666654611e-1)) * u * r + r
    cosine = (f32(2.443315711809948e-5) * u + f32(-1.388731625493765e-3)) * u + f32(4.166664568298827e-2)
    cosine = cosine * u * u + (f32(1.0) - f32(0.5) * u)
    along, across = (sine, cosine) if quarter & 1 else (cosine, sine)
    return (
        f32(0.0) - along if (quarter + 1) & 2 else along,
        f32(0.0) - across if quarter & 2 else across,
    )


@exactly
def _apart(words: np.ndarray, radii: np.ndarray, turns: np.ndarray) -> None:
    """The first and the second half of every block."""
    whole = len(words) // STEP * STEP
    for first in range(0, whole, STEP):
        a, b = load(words, first), load(words, first + LANES)
        store(radii, first // 2, fronts(a, b))
        store(turns, first // 2, backs(a, b))
    for k in range(whole // 2, len(radii)):
        radii[k], turns[k] = words[whole // 2 + k], words[whole // 2 + k + PAIRS]


@exactly
def _together(radii: np.ndarray, turns: np.ndarray, draws: np.ndarray) -> None:
    """The other way."""
    whole = len(draws) // STEP * STEP
    for first in range(0, whole, STEP):
        a, b = load(radii, first // 2), load(turns, first // 2)
        store(draws, first, fronts(a, b))
        store(draws, first + LANES, backs(a, b))
    for k in range(whole // 2, len(radii)):
        draws[whole // 2 + k], draws[whole // 2 + k + PAIRS] = radii[k], turns[k]


@exactly
def _transformed(x: np.ndarray, y: np.ndarray) -> None:
    """Normal draws in place of two words."""
    for k in range(len(x)):
        radius = np.sqrt(f32(-2.0) * logarithm(f32(1.0) - _fraction(x[k])))
        cosine, sine = _direction(_fraction(y[k]))
        x[k] = radius * cosine
        y[k] = radius * sine


@kernel
def normal_draws(arguments: Any) -> None:
    """n draws in place of as many words, a multiple of 2 PAIRS."""
    counter, items, words, n = carray(arguments, (4,))
    x, y = np.empty(RUN // 2, f32), np.empty(RUN // 2, f32)
    i = taken(counter)
    while i < items:
        run = block(words + 4 * i * RUN, 0, min(RUN, n - i * RUN))
        radii, turns = x[: len(run) // 2], y[: len(run) // 2]
        _apart(run, radii, turns)
        _transformed(radii, turns)
        _together(radii, turns, run)
        i = taken(counter)
