"""Direct sums over the windows of filters with few channels: neighbouring pixels of OUTPUTS channels at a time."""

from __future__ import annotations

import numpy as np

from mhvae_kit.kernels import OUTPUTS
from mhvae_kit.kernels.lanes import add_products, spread, store_sums, sums_from
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
    sums = sums_from(spread(start[0]), spread(start[1]), spread(start[2]), spread(start[3]))
    of = 0
    for c in range(channels):
        for ky in range(tall):
            seen = at + c * plane + ky * pitch
            for kx in range(wide):
                sums = add_products(filters, of, x, seen + kx, sums)
                of += OUTPUTS
    store_sums(sums, out, 0)
