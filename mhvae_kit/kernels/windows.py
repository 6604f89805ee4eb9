"""Direct sums over the windows of filters with few channels: neighbouring pixels of OUTPUTS channels at a time."""

from __future__ import annotations

import numpy as np

from mhvae_kit.kernels import OUTPUTS
from mhvae_kit.kernels.lanes import LANES, WIDTH, add_product, load, spread, store_row
from mhvae_kit.kernels.vectors import exactly


@exactly
def window_product(
    filters: np.ndarray,
    tall: int,
    wide: int,
    start: tuple[float, float, float, float],
    x: np.ndarray,
    at: int,
    channels: int,
    plane: int,
    pitch: int,
    out: np.ndarray,
) -> None:
    """Four start values plus sums over channels and taps, for WIDTH neighbouring pixels: (OUTPUTS, WIDTH).

    Filters are (channels, tall, wide, OUTPUTS). The first pixel sees the window of x from `at` on; rows lie `pitch`
    apart in it, channels `plane`.
    """
    a0, b0, c0, d0 = spread(start[0]), spread(start[1]), spread(start[2]), spread(start[3])
    a1, b1, c1, d1 = a0, b0, c0, d0
    a2, b2, c2, d2 = a0, b0, c0, d0
    of = 0
    for c in range(channels):
        for ky in range(tall):
            seen = at + c * plane + ky * pitch
            for kx in range(wide):
                x0, x1, x2 = load(x, seen + kx), load(x, seen + kx + LANES), load(x, seen + kx + 2 * LANES)
                w = spread(filters[of])
                a0, a1, a2 = add_product(w, x0, a0), add_product(w, x1, a1), add_product(w, x2, a2)
                w = spread(filters[of + 1])
                b0, b1, b2 = add_product(w, x0, b0), add_product(w, x1, b1), add_product(w, x2, b2)
                w = spread(filters[of + 2])
                c0, c1, c2 = add_product(w, x0, c0), add_product(w, x1, c1), add_product(w, x2, c2)
                w = spread(filters[of + 3])
                d0, d1, d2 = add_product(w, x0, d0), add_product(w, x1, d1), add_product(w, x2, d2)
                of += OUTPUTS
    store_row(out, 0, a0, a1, a2)
    store_row(out, WIDTH, b0, b1, b2)
    store_row(out, 2 * WIDTH, c0, c1, c2)
    store_row(out, 3 * WIDTH, d0, d1, d2)
