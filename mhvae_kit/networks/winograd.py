"""3x3 convolutions with fewer multiplications, by `mhvae_kit.kernels.winograd` and `winograd_large`, where quicker.

They give the same function up to rounding, and about the errors of a direct sum. docs/performance.md has the figures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mhvae_kit.kernels import GAP, LARGE_POSITIONS, OUTPUTS, POSITIONS, team
from mhvae_kit.kernels.team import plane_size

CHANNELS_FROM = 8  # of input and output
TILES_FROM = 36  # of 2 x 2 pixels in an image; and TILES_OF_ALL in all images of the batch, as filters are made for all
TILES_OF_ALL = 144
LARGE_TILES_FROM = 576  # of 4 x 4 pixels in an image: coarser maps save little, and their errors count most in images
LARGE_TILES_CHANNELS = 128  # of the input at most, as their filters take more room
TILES_WITH_GRADIENT = 144  # of an image, from which the gradient of the filters is quicker too
SHARES = 16  # of a gradient at least, by output channels and images; not by threads, so that sums are the same for all
UNEVEN = 1.25  # times its even share, that a thread may have before items are cut into parts
OUTPUTS_OF_PART = 32  # at least, that a thread computes from the same transformed tiles


def is_quick_for(x: Tensor, weight: Tensor, padding: int, groups: int) -> bool:
    """Whether `convolution` can work on a map and filters of stride 1, and is quicker than torch's."""
    n_out, n_in, *size = weight.shape
    tiles = plane_size(x) // 4
    return (
        size == [3, 3]
        and padding == groups == 1
        and min(n_in, n_out) >= CHANNELS_FROM
        and n_out % OUTPUTS == n_in % 2 == 0
        and x.shape[2] % 2 == x.shape[3] % 2 == 0
        and tiles >= TILES_FROM
        and tiles * len(x) >= TILES_OF_ALL
        and team.apply_to(x, weight)
    )


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution padded by one row and column of zeros, for what `is_quick_for` admits.

    Args:
        x: (B, C, H, W), H and W even.
        weight: (D, C, 3, 3), D a multiple of 4.
        bias: (D,) or None.
    Returns:
        (B, D, H, W).
    """
    x, (n_out, n_in) = x.contiguous(), weight.shape[:2]
    is_large = has_large_tiles(x)
    name, positions, pixels = ("winograd_large", LARGE_POSITIONS, 16) if is_large else ("winograd", POSITIONS, 4)
    filters = x.new_empty(n_out // OUTPUTS, positions, n_in * OUTPUTS + GAP)
    team.run(f"{name}_filters", n_out // OUTPUTS, weight.contiguous(), filters, n_in)
    y = x.new_empty(len(x), n_out, *x.shape[2:])
    items, parts = len(x) * -(-(plane_size(x) // pixels) // _width()), 1
    while _longest_share(items * parts) > UNEVEN and n_out % (2 * parts * OUTPUTS_OF_PART) == 0:
        parts *= 2
    bias = x.new_zeros(n_out) if bias is None else bias
    team.run(name, items * parts, x, filters, bias, y, n_in, n_out, parts, *x.shape[2:])
    return y


def _longest_share(items: int) -> float:
    """How many times its even share of the items the thread with most of them has."""
    threads = torch.get_num_threads()
    return -(-items // threads) * threads / items


def has_large_tiles(x: Tensor) -> bool:
    """Whether `convolution` takes tiles of 4 x 4 pixels: by the size of an image alone, whatever the batch."""
    n_in, height, width = x.shape[1:]
    return (
        height % 4 == width % 4 == 0
        and plane_size(x) // 16 >= LARGE_TILES_FROM
        and n_in <= LARGE_TILES_CHANNELS
        and 3 * width // 4 >= _width()  # a row of tiles fills a vector
    )


def _width() -> int:
    """Tiles that an item of the kernels has: three vectors."""
    from mhvae_kit.kernels.lanes import WIDTH  # needs numba

    return WIDTH


def is_quick_for_gradient(x: Tensor, weight: Tensor, padding: int, groups: int) -> bool:
    """Whether `weight_gradient` can, likewise."""
    return plane_size(x) // 4 >= TILES_WITH_GRADIENT and is_quick_for(x, weight, padding, groups)


def weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the filters of `convolution`.

    Args:
        x: (B, C, H, W), what was convolved.
        grad: (B, D, H, W), the gradient of what came out.
    Returns:
        (D, C, 3, 3).
    """
    n_in, n_out = x.shape[1], grad.shape[1]
    some = next(n for n in (32, 16, 8, 4) if n_out % n == 0)
    shares = max(1, SHARES * some // n_out)
    of_weight = x.new_empty(shares, n_out, n_in, 3, 3)
    sizes = (len(x), n_in, n_out, some, shares, *x.shape[2:])
    team.run("winograd_gradient", shares * n_out // some, x.contiguous(), grad.contiguous(), of_weight, *sizes)
    return of_weight.sum(0)
