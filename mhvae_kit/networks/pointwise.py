"""1x1 convolutions without gradients, by `mhvae_kit.kernels.pointwise`, where that is quicker."""

from __future__ import annotations

import torch
from torch import Tensor

from mhvae_kit.kernels import OUTPUTS, team
from mhvae_kit.kernels.team import plane_size

PIXELS_FROM = 9216  # of an image, from which the kernel is quicker
CHANNELS_FROM = 64  # likewise
RUN = 192  # pixels that a thread copies together, fewer where they would be more than CACHED bytes
CACHED = 2**18


def is_quick_for(x: Tensor, filters: Tensor) -> bool:
    """Whether `product` can work on a map and its filters, and is quicker than torch's product."""
    quick = plane_size(x) >= PIXELS_FROM and x.shape[1] >= CHANNELS_FROM
    return quick and filters.shape[1] % OUTPUTS == 0 and team.apply_to(x, filters)


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
