"""Planes of twice the height and width by bilinear interpolation between pixels' centres, and its gradient.

A new pixel is 3/4 of the old one that it lies in and 1/4 of the neighbour that it lies closer to, in each direction;
beyond an edge the outermost pixel goes on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from mhvae_kit.kernels.lanes import (
    LANES,
    add_product,
    evens,
    first_woven,
    load,
    odds,
    product,
    room,
    second_woven,
    spread,
    store,
)
from mhvae_kit.kernels.vectors import block, exactly, f32, kernel, taken

OWN, OTHER = f32(0.75), f32(0.25)


@exactly
def _mixed(own: np.ndarray, other: np.ndarray, out: np.ndarray) -> None:
    """A row between two others, from the second value of `out` on; its ends go on by one value."""
    n = len(own)
    for x in range(n):
        out[x + 1] = OWN * own[x] + OTHER * other[x]
    out[0], out[n + 1] = out[1], out[n]


@exactly
def _doubled_row(row: np.ndarray, n: int, out: np.ndarray) -> None:
    """Twice as many values as n, from a row with one more at each end."""
    own, other, done = spread(OWN), spread(OTHER), 0
    while done + LANES <= n:
        middle = product(own, load(row, done + 1))
        left = add_product(other, load(row, done), middle)
        right = add_product(other, load(row, done + 2), middle)
        store(out, 2 * done, first_woven(left, right))
        store(out, 2 * done + LANES, second_woven(left, right))
        done += LANES
    while done < n:
        middle = OWN * row[done + 1]
        out[2 * done], out[2 * done + 1] = middle + OTHER * row[done], middle + OTHER * row[done + 2]
        done += 1


@kernel
def doubled(arguments: Any) -> None:
    """Planes of x at twice their size."""
    counter, planes, x, out, height, width = carray(arguments, (6,))
    row = room(width + 2)
    i = taken(counter)
    while i < planes:
        plane, made = block(x, i, height * width), block(out, i, 4 * height * width)
        for y in range(2 * height):
            own = y // 2
            other = max(own - 1, 0) if y % 2 == 0 else min(own + 1, height - 1)
            _mixed(plane[own * width : (own + 1) * width], plane[other * width : (other + 1) * width], row)
            _doubled_row(row, width, made[2 * y * width : 2 * (y + 1) * width])
        i = taken(counter)


@exactly
def _halved_row(grad: np.ndarray, row: np.ndarray, out: np.ndarray) -> None:
    """The gradient of n values from that of the row twice as long; `row` is room for the latter and its ends."""
    n = len(out)
    row[1 : 2 * n + 1] = grad
    row[0], row[2 * n + 1] = row[1], row[2 * n]
    own, other, done = spread(OWN), spread(OTHER), 0
    while done + LANES <= n:
        a, b = load(row, 2 * done), load(row, 2 * done + LANES)
        c, d = load(row, 2 * done + 2), load(row, 2 * done + 2 + LANES)
        store(out, done, add_product(own, odds(a, b) + evens(c, d), product(other, evens(a, b) + odds(c, d))))
        done += LANES
    while done < n:
        at = 2 * done
        out[done] = OWN * (row[at + 1] + row[at + 2]) + OTHER * (row[at] + row[at + 3])
        done += 1


@kernel
def doubled_gradient(arguments: Any) -> None:
    """Gradient of `doubled`'s x from that of its result."""
    counter, planes, grad, out, height, width = carray(arguments, (6,))
    row, halved = room(2 * width + 2), room(2 * height * width)
    i = taken(counter)
    while i < planes:
        behind, made = block(grad, i, 4 * height * width), block(out, i, height * width)
        for y in range(2 * height):
            _halved_row(behind[2 * y * width : 2 * (y + 1) * width], row, halved[y * width : (y + 1) * width])
        for y in range(height):
            above, below = max(2 * y - 1, 0) * width, min(2 * y + 2, 2 * height - 1) * width
            first, second, to = 2 * y * width, (2 * y + 1) * width, y * width
            for k in range(width):
                near, far = halved[first + k] + halved[second + k], halved[above + k] + halved[below + k]
                made[to + k] = OWN * near + OTHER * far
        i = taken(counter)
