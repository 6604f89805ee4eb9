"""1x1 convolutions: products of filters with the planes of a map, a run of pixels at a time.

Planes often lie a multiple of 4096 bytes apart, so that one pixel's channels compete for few lines of the cache. A run
is therefore copied together first.
"""

from __future__ import annotations

from typing import Any

from numba import carray

from mhvae_kit.kernels import OUTPUTS
from mhvae_kit.kernels.lanes import LANES, WIDTH, block_product, copy_run, load, room, spread, store
from mhvae_kit.kernels.vectors import block, kernel, taken


@kernel
def pointwise(arguments: Any) -> None:
    """y = filters x + bias for every image: its filters are (outputs / OUTPUTS, channels, OUTPUTS)."""
    counter, items, x, filters, bias, y, channels, outputs, run, runs, size = carray(arguments, (11,))
    stride = -(-run // WIDTH) * WIDTH + LANES
    together, made = room(channels * stride), room(OUTPUTS * WIDTH)
    start = block(bias, 0, outputs)
    i = taken(counter)
    while i < items:
        image, first = i // runs, i % runs * run
        n = min(run, size - first)
        seen, out = block(x, image, channels * size), block(y, image, outputs * size)
        weights = block(filters, image, outputs * channels)
        for c in range(channels):
            copy_run(seen, c * size + first, n, together, c * stride)
        for t in range(0, n, WIDTH):
            for o in range(0, outputs, OUTPUTS):
                block_product(weights, o * channels, together, t, stride, channels, made, 0)
                for k in range(OUTPUTS):
                    added = spread(start[o + k])
                    for at in range(k * WIDTH, (k + 1) * WIDTH, LANES):
                        store(made, at, load(made, at) + added)
                    copy_run(made, k * WIDTH, min(WIDTH, n - t), out, (o + k) * size + first + t)
        i = taken(counter)
