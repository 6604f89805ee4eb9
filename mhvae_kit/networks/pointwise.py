"""1x1 convolutions without gradients, by `mhvae_kit.kernels.pointwise`, where that is quicker."""

from __future__ import annotations

import torch
from torch import Tensor

from mhvae_kit.kernels import OUTPUTS, team
from mhvae_kit.kernels.team import plane_size

PIXELS_FROM, CHANNELS_FROM = 9216, 64  # of an image and of its map, from which the kernel is quicker
# With vectors of 16 values it is twice as quick as what torch has on processors that are not Intel's.
WIDE_PIXELS_FROM, WIDE_FILTERS_FROM = 144, 256
RUN = 192  # pixels that a thread copies together, fewer where they would be more than CACHED bytes
CACHED = 2**18


def is_quick_for(x: Tensor, filters: Tensor) -> bool:
    """Whether `product` can work on a map and its filters (B, D, C), and is quicker than torch's product."""
    if filters.shape[1] % OUTPUTS or not team.apply_to(x, filters):
        return False
    if team.lanes() == 16:
        return plane_size(x) >= WIDE_PIXELS_FROM and filters.shape[1] * filters.shape[2] >= WIDE_FILTERS_FROM
    return plane_size(x) >= PIXELS_FROM and x.shape[1] >= CHANNELS_FROM


def product(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution with filters of every image, for what `is_quick_for` admits; autograd does not see it.

    Args:
        x: (B, C, H, W).
        filters: (B, D, C), D a multiple of 4.
        bias: (D,) or None.
    Returns:
        (B, D, H, W).
    """
    x, (b, n_out, n_in), size = x.contiguous(), filters.shape, plane_size(x)
    run = RUN
    while run > RUN // 4 and 4 * run * n_in > CACHED:
        run //= 2
    grouped = filters.unflatten(1, (-1, OUTPUTS)).mT.contiguous()
    bias = x.new_zeros(n_out) if bias is None else bias
    y, runs = torch.empty((b, n_out, *x.shape[2:])), -(-size // run)
    team.run("pointwise", b * runs, x, grouped, bias, y, n_in, n_out, run, runs, size)
    return y
