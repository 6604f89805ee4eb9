"""What makes a forward pass without gradients quick on CPUs; with gradients, or on a GPU, none of it applies.

- In bfloat16 maps are laid out channels-last, as processors' instructions for it want them;
  `mhvae_kit.networks.half_convolution` has convolutions, `bfloat16` what lies between them. Without their kernels small
  maps and the image heads are not laid out so, as torch's norms are slow there.
- A batch goes through the widest blocks a few images at a time, so that their buffers stay in the cache and are small
  enough for the C library to reuse.
- Results are written over a block's own intermediate values.
- A large filter with few output channels computes several neighbouring pixels as if they were channels, as kernels work
  on 16 channels at a time.

The functions compute what the plain ones do, up to rounding. docs/performance.md has the figures.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from mhvae_kit.networks import bfloat16

CHANNELS_LAST_FROM = 48 * 48  # pixels of a map
CACHED_BYTES = 16 * 2**20  # of the widest intermediate map of a block
LANES = 16  # output channels that a convolution's kernel computes at once


def without_gradients(x: Tensor) -> bool:
    """Whether the short cuts apply: on a CPU, and no gradient will be asked for."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def laid_out(x: Tensor, scale: int = 1) -> Tensor:
    """A map (B, C, H, W) in the memory layout that is quickest for its size, or for `scale` times its height and width.

    The order of values as seen through indices stays the same; where `bfloat16` lays it out, they are rounded.
    """
    if not without_gradients(x) or not torch.is_autocast_enabled("cpu"):
        return x
    if bfloat16.is_on(x):
        return bfloat16.laid(x)
    large = scale * scale * x.shape[2] * x.shape[3] >= CHANNELS_LAST_FROM
    return x.contiguous(memory_format=torch.channels_last if large else torch.contiguous_format)


def in_parts(function: Callable[..., Tensor], *tensors: Tensor, channels: int, limit: int | None = None) -> Tensor:
    """`function(*tensors)`, for a few images at a time where a batch is large.

    Args:
        function: Works on every image of the batch alone.
        tensors: Each (B, C, H, W), all of the same B, H and W.
        channels: Of the widest map that the function makes.
        limit: Bytes of that map in each part, at least one image's; None = CACHED_BYTES.
    """
    x = tensors[0]
    size = 2 if bfloat16.is_on(x) else 4
    images = max(1, (CACHED_BYTES if limit is None else limit) // (size * channels * x.shape[2] * x.shape[3]))
    if images >= len(x):
        return function(*tensors)
    made = (function(*parts) for parts in zip(*(t.split(images) for t in tensors), strict=True))
    return torch.cat(list(made)) if torch.is_grad_enabled() else _put_together(made, len(x))


def _put_together(parts: Iterator[Tensor], n: int) -> Tensor:
    """Parts of a batch of n as one tensor; each is copied while it is in the cache."""
    first = next(parts)
    layout = torch.channels_last if is_channels_last(first) else torch.contiguous_format
    whole = torch.empty((n, *first.shape[1:]), dtype=first.dtype, device=first.device, memory_format=layout)
    start = 0
    for part in itertools.chain([first], parts):
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def added(x: Tensor, fresh: Tensor) -> Tensor:
    """x + fresh, written over `fresh` where no gradient needs it; the caller must own `fresh`."""
    return fresh.add_(x) if without_gradients(fresh) and fresh.dtype == x.dtype else x + fresh


def is_channels_last(x: Tensor) -> bool:
    """Whether a map is stored channels-last, and not in the usual order as well."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def wide_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution without padding whose neighbouring output pixels are computed as channels of a wider filter.

    Args:
        x: (B, C, H, W), padded already.
        weight: (D, C, K, K).
        bias: (D,) or None.
    Returns:
        (B, D, H - K + 1, W - K + 1), as `F.conv2d` gives it.
    """
    n_out, n_in, size = weight.shape[:3]
    n = LANES // n_out
    width = x.shape[3] - size + 1
    if n < 2 or width % n:
        return F.conv2d(x, weight, bias)
    filters = weight.new_zeros(n, n_out, n_in, size, size + n - 1)
    for shift in range(n):
        filters[shift, ..., shift : shift + size] = weight
    y = F.conv2d(x, filters.flatten(0, 1), None if bias is None else bias.repeat(n), stride=(1, n))
    return y.unflatten(1, (n, n_out)).permute(0, 2, 3, 4, 1).flatten(3)
