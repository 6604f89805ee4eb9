"""7x7 convolutions of few channels, as direct sums over maps that are padded already, and their filters' gradients.

Other libraries compute eight or sixteen output channels side by side; the image heads have fewer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from mhvae_kit.kernels import BAND, FILTER, OUTPUTS
from mhvae_kit.kernels.lanes import (
    LANES,
    WIDTH,
    add_product,
    add_three_taps,
    copy_run,
    eight_totals,
    load,
    room,
    spread,
    store,
)
from mhvae_kit.kernels.vectors import block, exactly, f32, kernel, taken
from mhvae_kit.kernels.windows import window_product


@kernel
def large_filters(arguments: Any) -> None:
    """The convolution of a padded x; an item is `together` rows of an image, 1 or OUTPUTS.

    With 1, OUTPUTS channels are summed up side by side; with OUTPUTS, so many rows of the only channel, by filters that
    are the same one shifted down. Width must be WIDTH at least, n_out a multiple of OUTPUTS / together.
    """
    given = carray(arguments, (12,))
    counter, items, x, filters, bias, out, n_in, n_out, together, tall, height, width = given
    pitch, rows = width + FILTER - 1, height // together
    plane, size = (height + FILTER - 1) * pitch, OUTPUTS * n_in * tall * FILTER
    sums, added = room(OUTPUTS * WIDTH), block(bias, 0, n_out)
    i = taken(counter)
    while i < items:
        image, y = i // rows, i % rows * together
        seen, made = block(x, image, n_in * plane), block(out, image, n_out * height * width)
        for o in range(0, n_out, OUTPUTS // together):
            of_outputs = block(filters, o * together // OUTPUTS, size)
            last = n_out - 1
            start = added[o], added[min(o + 1, last)], added[min(o + 2, last)], added[min(o + 3, last)]
            for left in range(0, width, WIDTH):
                column = min(left, width - WIDTH)
                at = y * pitch + column
                window_product(of_outputs, tall, FILTER, start, seen, at, n_in, plane, pitch, sums)
                for k in range(OUTPUTS):
                    channel, row = (o + k, y) if together == 1 else (o, y + k)
                    copy_run(sums, k * WIDTH, WIDTH, made, (channel * height + row) * width + column)
        i = taken(counter)


@exactly
def _add_taps(
    first: np.ndarray, second: np.ndarray, rows: int, width: int, x: np.ndarray, at: int, out: np.ndarray, of: Any
) -> None:
    """Add sums over some rows of two channels of a gradient times x, seen through each tap of a row of the filter.

    Those of the first go to of[0], of the second to of[1], as vectors of which the first FILTER values count.
    """
    zero = spread(f32(0.0))
    a, b, g_last, h_last = (zero, zero, zero, zero, zero, zero), (zero, zero, zero, zero, zero, zero), zero, zero
    for y in range(rows):
        for column in range(0, width, LANES):
            seen = at + y * (width + FILTER - 1) + column
            g, h = load(first, y * width + column), load(second, y * width + column)
            a, b = add_three_taps(g, h, x, seen, a), add_three_taps(g, h, x, seen + 3, b)
            t = load(x, seen + 6)
            g_last, h_last = add_product(g, t, g_last), add_product(h, t, h_last)
    store(out, of[0], load(out, of[0]) + eight_totals(a[0], a[1], a[2], b[0], b[1], b[2], g_last, zero))
    store(out, of[1], load(out, of[1]) + eight_totals(a[3], a[4], a[5], b[3], b[4], b[5], h_last, zero))


@kernel
def large_filters_gradient(arguments: Any) -> None:
    """Gradients of the filters from a padded x and the result's gradient, (D, C, FILTER, FILTER) of each image.

    An item is an image; width must be a multiple of LANES.
    """
    counter, items, x, grad, out, n_in, n_out, height, width = carray(arguments, (9,))
    pitch, size, taps = width + FILTER - 1, height * width, FILTER * FILTER
    plane = (height + FILTER - 1) * pitch
    sums = room((n_out + 1) * n_in * FILTER * LANES)  # an odd channel is its own second; those sums are of no use
    i = taken(counter)
    while i < items:
        seen, made = block(x, i, n_in * plane), block(out, i, n_out * n_in * taps)
        sums[:] = f32(0.0)
        for top in range(0, height, BAND):
            rows = min(BAND, height - top)
            for o in range(0, n_out, 2):
                first = block(grad, i * n_out + o, size)[top * width :]
                second = block(grad, i * n_out + min(o + 1, n_out - 1), size)[top * width :]
                for c in range(n_in):
                    for ky in range(FILTER):
                        to = (o * n_in + c) * FILTER + ky
                        both = to * LANES, (to + n_in * FILTER) * LANES
                        _add_taps(first, second, rows, width, seen, c * plane + (top + ky) * pitch, sums, both)
        for f in range(n_out * n_in * FILTER):
            for kx in range(FILTER):
                made[f * FILTER + kx] = sums[f * LANES + kx]
        i = taken(counter)
