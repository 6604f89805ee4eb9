"""Residual blocks of the image heads: 3x3 convolutions of a few channels at full size, with the norm between them.

Convolutions pad by reflection and read what is behind norm and ReLU without a map for it; OUTPUTS channels are summed
up side by side, so that each value that is read serves all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from mhvae_kit.kernels import BAND, OUTPUTS
from mhvae_kit.kernels.lanes import LANES, WIDTH, add_three_taps, copy_run, eight_totals, load, room, spread, store
from mhvae_kit.kernels.vectors import (
    block,
    exactly,
    f32,
    gradient_through_norm,
    kernel,
    mean_and_scale,
    taken,
    total_of,
)
from mhvae_kit.kernels.windows import window_product


@exactly
def _reflected(y: int, n: int) -> int:
    """The row or column that stands at y, from -1 to n, where a map of n is padded by reflection."""
    return -y if y < 0 else (2 * n - 2 - y if y >= n else y)


@exactly
def _padded_row(row: np.ndarray, mean: float, scale: float, active: int, out: np.ndarray) -> None:
    """A row with one reflected value on each side, normalised and through ReLU where it is `active`."""
    width = len(row)
    if active:
        for x in range(width):
            value = (row[x] - mean) * scale
            out[x + 1] = f32(0.0) if value < f32(0.0) else value
    else:
        for x in range(width):
            out[x + 1] = row[x]
    out[0], out[width + 1] = out[2], out[width - 1]


@exactly
def _row_convolved(
    taps: np.ndarray, start: Any, padded: np.ndarray, at: int, sizes: Any, sums: np.ndarray, width: int, out: Any
) -> None:
    """A row of OUTPUTS channels or fewer, from three padded rows of every channel.

    Args:
        taps: (channels, 3, 3, OUTPUTS), and `start` what is added to each output.
        padded: The first row begins at `at`; sizes are the number of channels, how far they lie apart, and rows.
        sums: Room for (OUTPUTS, WIDTH).
        out: An array, where in it the row begins, how far channels lie apart, and how many there are.
    """
    (channels, stride, pitch), (values, to, apart, some) = sizes, out
    for left in range(0, width, WIDTH):
        column = max(0, min(left, width - WIDTH))  # what is behind a row shorter than WIDTH is of no use
        window_product(taps, 3, 3, start, padded, at + column, channels, stride, pitch, sums)
        for k in range(some):
            copy_run(sums, k * WIDTH, min(WIDTH, width), values, to + k * apart + column)


@exactly
def _padded_band(
    x: int,
    statistics: int,
    active: int,
    channels: int,
    height: int,
    width: int,
    top: int,
    rows: int,
    out: np.ndarray,
    pitch: int,
) -> None:
    """Rows from top - 1 to top + rows of all channels, padded by reflection, (channels, BAND + 2, pitch)."""
    for c in range(channels):
        plane, seen = block(x, c, height * width), block(statistics, c, 2)
        for y in range(rows + 2):
            begin, to = _reflected(top + y - 1, height) * width, (c * (BAND + 2) + y) * pitch
            _padded_row(plane[begin : begin + width], seen[0], seen[1], active, out[to : to + width + 2])


@kernel
def reflected_convolution(arguments: Any) -> None:
    """3x3 convolution of x, or of ReLU of its instance norm; an item is BAND rows of an image.

    Taps (groups, channels, 3, 3, OUTPUTS), bias (groups * OUTPUTS), statistics (B, channels, 2).
    """
    counter, items, x, taps, bias, statistics, active, out, channels, made, height, width = carray(arguments, (12,))
    size, bands = height * width, (height + BAND - 1) // BAND
    pitch = width + 2
    sizes = channels, (BAND + 2) * pitch, pitch
    padded, sums = room(channels * (BAND + 2) * pitch + WIDTH), room(OUTPUTS * WIDTH)
    i = taken(counter)
    while i < items:
        image, top = i // bands, i % bands * BAND
        rows, first = min(BAND, height - top), image * channels
        _padded_band(
            x + 4 * first * size, statistics + 8 * first, active, channels, height, width, top, rows, padded, pitch
        )
        for o in range(0, made, OUTPUTS):
            of_group, b = block(taps, o // OUTPUTS, channels * 9 * OUTPUTS), block(bias, o // OUTPUTS, OUTPUTS)
            planes, some = block(out, image, made * size)[o * size :], min(OUTPUTS, made - o)
            for y in range(rows):
                row = planes, (top + y) * width, size, some
                _row_convolved(of_group, (b[0], b[1], b[2], b[3]), padded, y * pitch, sizes, sums, width, row)
        i = taken(counter)


@kernel
def plane_statistics(arguments: Any) -> None:
    """Mean and 1 / standard deviation of every plane."""
    counter, planes, x, statistics, size = carray(arguments, (5,))
    i = taken(counter)
    while i < planes:
        seen = block(statistics, i, 2)
        seen[0], seen[1] = mean_and_scale(block(x, i, size))
        i = taken(counter)


@exactly
def _normalised_onto(plane: np.ndarray, mean: float, scale: float, below: np.ndarray, out: np.ndarray) -> None:
    for k in range(len(plane)):
        out[k] = below[k] + (plane[k] - mean) * scale


@kernel
def norm_onto(arguments: Any) -> None:
    """`below` plus the instance norm of x, and by plane of x its mean and 1 / standard deviation."""
    counter, planes, x, below, statistics, out, size = carray(arguments, (7,))
    i = taken(counter)
    while i < planes:
        plane, seen = block(x, i, size), block(statistics, i, 2)
        seen[0], seen[1] = mean_and_scale(plane)
        _normalised_onto(plane, seen[0], seen[1], block(below, i, size), block(out, i, size))
        i = taken(counter)


@exactly
def _through_relu(plane: np.ndarray, mean: float, grad: np.ndarray, active: int, out: np.ndarray) -> None:
    if active:
        for k in range(len(plane)):
            out[k] = grad[k] if plane[k] > mean else f32(0.0)
    else:
        for k in range(len(plane)):
            out[k] = grad[k]


@kernel
def norm_gradient(arguments: Any) -> None:
    """Gradient of x, from that of its instance norm, or of ReLU of it where it is `active`."""
    counter, planes, x, grad, statistics, active, out, size = carray(arguments, (8,))
    i = taken(counter)
    while i < planes:
        plane, behind, seen, made = (
            block(x, i, size),
            block(grad, i, size),
            block(statistics, i, 2),
            block(out, i, size),
        )
        _through_relu(plane, seen[0], behind, active, made)
        gradient_through_norm(plane, seen[0], seen[1], made)
        i = taken(counter)


@exactly
def _add_taps(
    grad: np.ndarray, of: Any, x: np.ndarray, at: Any, rows: int, pitch: int, out: np.ndarray, to: Any
) -> None:
    """Add sums over some rows of two channels of a gradient times two of x, seen through three taps side by side.

    Both channels of the gradient begin at of[0] and of[1], both of x at at[0] and at[1], and the sums go to to[0] and
    to[1], one place for each channel of the gradient: three taps of the one channel of x, a value that is of no use,
    and three of the other. Rows lie `pitch` apart in x, and two values less in the gradient.
    """
    (first, second), (one, other) = of, at
    zero = spread(f32(0.0))
    a, b = (zero, zero, zero, zero, zero, zero), (zero, zero, zero, zero, zero, zero)
    for y in range(rows):
        for column in range(0, pitch - 2, LANES):
            given, seen = y * (pitch - 2) + column, y * pitch + column
            g, h = load(grad, first + given), load(grad, second + given)
            a, b = add_three_taps(g, h, x, one + seen, a), add_three_taps(g, h, x, other + seen, b)
    store(out, to[0], load(out, to[0]) + eight_totals(a[0], a[1], a[2], zero, b[0], b[1], b[2], zero))
    store(out, to[1], load(out, to[1]) + eight_totals(a[3], a[4], a[5], zero, b[3], b[4], b[5], zero))


@kernel
def reflected_convolution_taps(arguments: Any) -> None:
    """Gradients by image of `reflected_convolution`'s filters (made, channels, 3, 3) and bias (made).

    An item is an image. An odd channel is its own neighbour; what it gives as such is of no use.
    """
    counter, images, x, grad, statistics, active, of_filters, of_bias, channels, made, height, width = carray(
        arguments, (12,)
    )
    size, pairs, across = height * width, (channels + 1) // 2, (width + LANES - 1) // LANES * LANES
    pitch = across + 2  # zeros behind a row, so that vectors may read beyond it
    stride = (BAND + 2) * pitch
    padded, behind = room(channels * stride), room(made * BAND * across)
    sums = room((made + 1) * pairs * 3 * LANES)
    i = taken(counter)
    while i < images:
        sums[:] = f32(0.0)
        for top in range(0, height, BAND):
            rows, first = min(BAND, height - top), i * channels
            _padded_band(
                x + 4 * first * size, statistics + 8 * first, active, channels, height, width, top, rows, padded, pitch
            )
            for o in range(made):
                plane = block(grad, i * made + o, size)
                for y in range(rows):
                    copy_run(plane, (top + y) * width, width, behind, (o * BAND + y) * across)
            for o in range(0, made, 2):
                of = o * BAND * across, min(o + 1, made - 1) * BAND * across
                for c in range(0, channels, 2):
                    for dy in range(3):
                        at = c * stride + dy * pitch, min(c + 1, channels - 1) * stride + dy * pitch
                        place = (o * pairs + c // 2) * 3 + dy
                        to = place * LANES, (place + pairs * 3) * LANES
                        _add_taps(behind, of, padded, at, rows, pitch, sums, to)
        of_image = block(of_filters, i, made * channels * 9)
        for row in range(made * channels * 3):
            o, c, dy = row // (3 * channels), row // 3 % channels, row % 3
            at = ((o * pairs + c // 2) * 3 + dy) * LANES + c % 2 * 4
            of_image[3 * row], of_image[3 * row + 1], of_image[3 * row + 2] = sums[at], sums[at + 1], sums[at + 2]
        for o in range(made):
            block(of_bias, i * made + o, 1)[0] = total_of(block(grad, i * made + o, size))
        i = taken(counter)


@exactly
def _add_folded(row: np.ndarray, out: np.ndarray) -> None:
    """Add a padded row's gradient to that of the row: what stands in the padding belongs to what it reflects."""
    width = len(out)
    for x in range(width):
        out[x] += row[x + 1]
    out[1] += row[0]
    out[width - 2] += row[width + 1]


@exactly
def _surrounded_band(
    grad: int, channels: int, height: int, width: int, top: int, rows: int, out: np.ndarray, stride: int
) -> None:
    """Rows from top - 2 to top + rows + 2 of all channels, with two columns around that stay 0; zeros where none is."""
    pitch = width + 4
    for c in range(channels):
        plane = block(grad, c, height * width)
        for y in range(rows + 5):
            to = c * stride + y * pitch + 2
            if 0 <= top - 2 + y < height:
                copy_run(plane, (top - 2 + y) * width, width, out, to)
            else:
                out[to : to + width] = f32(0.0)


@kernel
def reflected_convolution_input(arguments: Any) -> None:
    """Gradient of `reflected_convolution`'s (normalised) input, plus `start` unless that is 0; taps flipped.

    An item is BAND rows of an image.
    """
    counter, items, grad, taps, start, out, channels, made, height, width = carray(arguments, (10,))
    size, wide, pitch, bands = height * width, width + 2, width + 4, (height + BAND - 1) // BAND
    sizes, none = (channels, (BAND + 5) * pitch, pitch), (f32(0.0), f32(0.0), f32(0.0), f32(0.0))
    around, sums = room(channels * sizes[1] + WIDTH), room(OUTPUTS * WIDTH)
    made_rows = room(OUTPUTS * wide + WIDTH)
    i = taken(counter)
    while i < items:
        image, top = i // bands, i % bands * BAND
        rows = min(BAND, height - top)
        _surrounded_band(grad + 4 * image * channels * size, channels, height, width, top, rows, around, sizes[1])
        for c in range(made):
            band = block(out, image * made + c, size)[top * width : (top + rows) * width]
            if start:
                band[:] = block(start, image * made + c, size)[top * width : (top + rows) * width]
            else:
                band[:] = f32(0.0)
        for o in range(0, made, OUTPUTS):
            of_group, some = block(taps, o // OUTPUTS, channels * 9 * OUTPUTS), min(OUTPUTS, made - o)
            for y in range(top - 1, top + rows + 2):  # rows -1 and `height` are those of the padding
                row = _reflected(y, height)
                if row < top or row >= top + rows:
                    continue
                out_row = made_rows, 0, wide, some
                _row_convolved(of_group, none, around, (y + 1 - top) * pitch, sizes, sums, wide, out_row)
                for k in range(some):
                    whole = block(out, image * made + o + k, size)
                    _add_folded(made_rows[k * wide : (k + 1) * wide], whole[row * width : (row + 1) * width])
        i = taken(counter)
