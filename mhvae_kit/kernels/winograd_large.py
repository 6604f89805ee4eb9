"""3x3 convolutions, padded by zeros, with 36 multiplications for 16 pixels instead of 144: Winograd's F(4x4, 3x3).

See `mhvae_kit.kernels.winograd` for the scheme and `mhvae_kit.kernels.large_tiles` for the transforms. Filters take
36 numbers instead of 16, so that many channels of small maps are as quick by tiles of 2 x 2 pixels.
"""

from __future__ import annotations

from typing import Any

from numba import carray

from mhvae_kit.kernels import GAP, LARGE_POSITIONS, OUTPUTS
from mhvae_kit.kernels.lanes import LANES, WIDTH, block_product, load, room, store
from mhvae_kit.kernels.large_tiles import ROOMS, filter_to_six, to_pixels, transform
from mhvae_kit.kernels.tiles import fetch_result, fetch_tiles, tiles_of_item
from mhvae_kit.kernels.vectors import block, kernel, taken


@kernel
def winograd_large(arguments: Any) -> None:
    """The convolution of x by filters of `winograd_large_filters`; an item is as in `winograd`.

    Height and width must be multiples of 4, the output channels of each of `parts` of OUTPUTS.
    """
    counter, items, x, filters, bias, out, n_in, n_out, parts, height, width = carray(arguments, (11,))
    size = height * width
    tiles = size // 16
    groups = (tiles + WIDTH - 1) // WIDTH
    stride = n_in * WIDTH + LANES  # as `transform` has it
    values, sums = room(LARGE_POSITIONS * stride), room(LARGE_POSITIONS * OUTPUTS * WIDTH)
    work = room(ROOMS[0]), room(ROOMS[1]), room(ROOMS[2]), room(LARGE_POSITIONS * LANES)
    spare, made = room(24 * LANES), room(16 * LANES)
    i = taken(counter)
    while i < items:
        following = taken(counter)
        image, part, first, last = tiles_of_item(i, parts, groups, tiles)
        next_image, _, next_first, next_last = tiles_of_item(following, parts, groups, tiles)
        wanted = n_in if following < items else 0
        fetched = 0
        transform(x + 4 * image * n_in * size, n_in, height, width, first, last, work, values)
        for o in range(part * (n_out // parts), (part + 1) * (n_out // parts), OUTPUTS):
            of_outputs = block(filters, o // OUTPUTS, LARGE_POSITIONS * (n_in * OUTPUTS + GAP))
            fetch_result(out + 4 * (image * n_out + o) * size, height, width, 4, first, last)
            for p in range(LARGE_POSITIONS):
                if fetched < wanted:
                    fetch_tiles(x + 4 * next_image * n_in * size, fetched, height, width, 4, next_first, next_last)
                    fetched += 1
                block_product(
                    of_outputs, p * (n_in * OUTPUTS + GAP), values, p * stride, WIDTH, n_in, sums, p * OUTPUTS * WIDTH
                )
            for k in range(OUTPUTS):
                start, plane = block(bias, o + k, 1)[0], block(out, image * n_out + o + k, size)
                to_pixels(sums, k * WIDTH, OUTPUTS * WIDTH, start, first, last, spare, made, plane, width)
        i = following


@kernel
def winograd_large_filters(arguments: Any) -> None:
    """Filters (D, C, 3, 3) as in `winograd_filters`, with LARGE_POSITIONS.

    C must be 4 at least, so that a row fills a vector.
    """
    counter, items, weight, out, n_in = carray(arguments, (5,))
    n = n_in * OUTPUTS
    taps, columns = room(9 * n), room(18 * LANES)
    i = taken(counter)
    while i < items:
        filters, made = block(weight, i, 9 * n), block(out, i, LARGE_POSITIONS * (n + GAP))
        for o in range(OUTPUTS):
            for k in range(n_in):
                for tap in range(9):
                    taps[tap * n + k * OUTPUTS + o] = filters[9 * (o * n_in + k) + tap]
        f = 0
        while f < n:
            f = min(f, n - LANES)  # the last vector goes over what was done rather than beyond
            for column in range(3):
                at = f + column * n
                six = filter_to_six(load(taps, at), load(taps, at + 3 * n), load(taps, at + 6 * n))
                for row in range(6):
                    store(columns, (3 * row + column) * LANES, six[row])
            for row in range(6):
                at = 3 * row * LANES
                six = filter_to_six(load(columns, at), load(columns, at + LANES), load(columns, at + 2 * LANES))
                for column in range(6):
                    store(made, f + (6 * row + column) * (n + GAP), six[column])
            f += LANES
        i = taken(counter)
