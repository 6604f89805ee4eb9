"""Convolutions of bfloat16 maps without gradients, by `mhvae_kit.kernels.last_convolution`.

The kernel takes norm and activation before a convolution and the totals behind it along, and filters as they are. Wide
maps are left to oneDNN on processors with a matrix unit, which it knows and the kernel does not.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mhvae_kit.kernels import DOUBLED, NORM_RELU, PLAIN, runs_seen, team
from mhvae_kit.kernels.team import plane_size
from mhvae_kit.networks.bfloat16 import LEAKY, Map, bands_of, fresh, is_on, laid, norm_leaky, seen, values_of

WHOLE = 32 * 32  # pixels up to which an image is one band, and its outputs are shared instead
SEEN_BYTES = 2**19  # of what a band sees, at most, so that it stays in a core's own cache


def is_quick_for(layer: nn.Conv2d, weight: Tensor, *maps: Tensor | Map) -> bool:
    """Whether `convolution` can work on maps side by side, by a layer of all their channels, and is quicker."""
    values = [values_of(x) for x in maps]
    if not all(x.dtype == torch.bfloat16 and is_on(x) for x in values):
        return False
    n, side, stride = team.lanes(), layer.kernel_size[0], layer.stride[0]
    return (
        layer.kernel_size in ((1, 1), (3, 3))
        and layer.padding == (side // 2, side // 2)
        and layer.padding_mode == "zeros"
        and layer.stride in ((1, 1), (2, 2))
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and all(channels % n == 0 for channels in (layer.out_channels, *(x.shape[1] for x in values)))
        and values[0].shape[2] % stride == values[0].shape[3] % stride == 0
        and team.are_plain(weight)
        and not _has_matrix_unit()
    )


def convolution(
    layer: nn.Conv2d,
    weight: Tensor,
    *maps: Tensor | Map,
    before: int = PLAIN,
    gates: Tensor | None = None,
    onto: Tensor | None = None,
) -> Map:
    """A convolution of maps side by side, (B, C, H, W) each to (B, D, H / stride, W / stride).

    Args:
        layer: With square filters of odd size, padded by half of it, by zeros or reflection. H and W must be multiples
            of its stride.
        weight: The layer's; given, as a layer with normalised weights makes them anew whenever it is asked.
        maps: One or two. Channels, in and out, must be multiples of `team.lanes()`; or those of a single map, and of
            what comes out, the same power of two below that, where whole runs of `team.lanes()` make up a row and the
            stride is 1.
        before: What is done to them first: `kernels.PLAIN` nothing, NORM instance norm, NORM_SILU SiLU of it,
            NORM_RELU its positive part, DOUBLED height and width twice as large by bilinear interpolation (with stride
            1, and channels a multiple of `team.lanes()`).
        gates: By which channels are multiplied, float32 (B, C), of at least `team.lanes()` channels; None = 1.
        onto: A map that is added to the result, bfloat16; None = nothing.
    """
    given: list[Tensor | int] = []
    for x in maps:
        values, totals = _plainly(x) if before in (PLAIN, DOUBLED) else seen(x)
        given += [values, totals, totals.shape[1], values.shape[1]]
    given += [0, 0, 0, 0][: 8 - len(given)]
    (b, channels, h, w), n = values.shape, team.lanes()
    h, w = (2 * h, 2 * w) if before == DOUBLED else (h, w)
    n_out, side, stride = layer.out_channels, layer.kernel_size[0], layer.stride[0]
    together = max(1, n // channels)
    outputs = n_out * together
    vectors = 2 if outputs % (2 * n) == 0 else 1
    bias = torch.zeros(outputs) if layer.bias is None else layer.bias.float()
    bias = bias.repeat(together) if len(bias) < outputs else bias.contiguous()
    # With several pixels in a run, zeros stand for those that a pixel does not see.
    numbers = weight.numel() if together == 1 else side * runs_seen(side, together) * n * outputs
    filters = fresh((1 if gates is None else b, numbers, 1, 1))
    out = fresh((b, n_out, h // stride, w // stride))
    bands, rows = _bands(out, stride * stride * 2 * weight.shape[1] * out.shape[3])
    parts = outputs // (vectors * n) if bands == 1 else 1
    totals = torch.empty((b, bands, 2, outputs))
    own = (weight.float().contiguous(), 0 if gates is None else gates, filters, bias, 0 if onto is None else laid(onto))
    sizes = (outputs, vectors, side, stride, int(layer.padding_mode == "reflect"), parts, bands, rows, h, w, b, 0, 0)
    team.run("last_convolution", b * bands * parts, *given, before, *own, out, totals, *sizes)
    return Map(out, totals)


def _bands(out: Tensor, bytes_of_row: int) -> tuple[int, int]:
    """Number of bands of a result and rows of each, from what one of its rows sees."""
    if plane_size(out) <= WHOLE:
        return 1, out.shape[2]
    rows = max(1, min(bands_of(out)[1], SEEN_BYTES // bytes_of_row))
    return -(-out.shape[2] // rows), rows


def image_head(x: Tensor, blocks: Sequence[nn.Module], conv: nn.Conv2d, margin: int) -> Tensor:
    """What `blocks.ImageHead` has between its first and its last convolution, padded by reflection for the latter.

    Args:
        x: (B, C, H, W); H and W must be larger than `conv` is wide.
    """
    y = laid(x)
    for block in blocks:
        inside = convolution(block.conv1, block.conv1.weight, y)
        y = norm_leaky(convolution(block.conv2, block.conv2.weight, inside, before=NORM_RELU), onto=y)
    return norm_leaky(convolution(conv, conv.weight, y), LEAKY, margin)


def _plainly(x: Tensor | Map) -> Map:
    """A map whose totals nobody reads."""
    return x if isinstance(x, Map) else Map(laid(x), torch.empty((len(x), 0)))


@functools.cache
def _has_matrix_unit() -> bool:
    from mhvae_kit.kernels.half_products import HAS_MATRIX_UNIT  # needs numba

    return HAS_MATRIX_UNIT
