"""What lies between the convolutions of bfloat16 maps without gradients, by `mhvae_kit.kernels.channels_last`, `gates`.

Under `torch.autocast("cpu", torch.bfloat16)` a processor with bfloat16 instructions computes convolutions so quickly
that most of the time would go into norms, activations and copies. The functions compute what the cells of
`mhvae_kit.networks.blocks` say, in float32 inside, and round once where a map is written.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mhvae_kit.kernels import team
from mhvae_kit.kernels.team import plane_size

BANDS = 8  # into which an image is cut at most, so that threads share it; not by threads, as sums would change
ROWS = 4  # of a band at least
BAND = 24  # rows that a depthwise filter goes through at once: 192 pixels of 96 channels, in and out, are 1.8 MB
NARROW = 64  # pixels of a row, up to which a depthwise filter works on two vectors of channels at a time
LEAKY, LINEAR = 2, 10  # slopes below 0, in tenths


class Map(NamedTuple):
    """A bfloat16 map (B, C, H, W), stored channels-last, with the totals of its channels as the kernels write them."""

    values: Tensor
    totals: Tensor


def values_of(x: Tensor | Map) -> Tensor:
    """A map without its totals."""
    return x.values if isinstance(x, Map) else x


def is_on(x: Tensor) -> bool:
    """Whether the kernels are wanted: bfloat16 by autocast on a CPU, and no gradient will be asked for."""
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and team.can_run()
    )


def applies_to(x: Tensor | Map, *parameters: Tensor) -> bool:
    """Whether the kernels can take a bfloat16 map (B, C, H, W), and parameters, which must be float32."""
    x = values_of(x)
    return x.dtype == torch.bfloat16 and team.are_plain(*parameters) and is_on(x) and fits(x)


def fits(x: Tensor) -> bool:
    """Whether a map's rows can be cut into vectors of whole pixels or of one pixel's channels."""
    channels, n = x.shape[1], team.lanes()
    return channels % n == 0 or (n % channels == 0 and x.shape[3] * channels % n == 0)


def seen(x: Tensor | Map) -> Map:
    """A map (B, C, H, W) with its totals."""
    if isinstance(x, Map):
        return x
    x = laid(x)
    bands, rows = bands_of(x)
    totals = torch.empty((len(x), bands, 2, _around(x)))
    team.run("last_totals", len(x) * bands, x, totals, bands, rows, *_size(x))
    return Map(x, totals)


def norm_silu(x: Tensor | Map, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """SiLU of the instance norm, and the sums of its channels in every band of rows.

    Args:
        x: (B, C, H, W).
        out: Where to write it: as many channels of a wider map; None = a new map.
    Returns:
        (B, C, H, W) in bfloat16, and float32 (B, bands, ...) for `gates`.
    """
    values, totals = seen(x)
    bands, rows = bands_of(values)
    out = torch.empty_like(values) if out is None else out
    sums = torch.empty((len(values), bands, _around(values)))
    given = (values, totals, totals.shape[1], out, out.stride(3), sums)
    team.run("last_norm_silu", len(values) * bands, *given, bands, rows, *_size(values))
    return out, sums


def norm_silu_of_both(x: Tensor, y: Tensor) -> Tensor:
    """`norm_silu` of two maps behind each other, (B, C, H, W) each to (B, 2 C, H, W)."""
    b, c, h, w = x.shape
    if c % team.lanes():  # a vector would hold pixels of both
        return norm_silu(torch.cat((x, y), 1))[0]
    out = fresh((b, 2 * c, h, w))
    for part, place in zip((x, y), out.chunk(2, 1), strict=True):
        norm_silu(part, place)
    return out


def norm_silu_depthwise(x: Tensor | Map, depthwise: nn.Conv2d) -> Map:
    """A 5x5 depthwise convolution of SiLU of the instance norm; of at least `team.lanes()` channels."""
    (values, totals), n = seen(x), team.lanes()
    b, c, h, w = values.shape
    group = 2 * n if c % (2 * n) == 0 and w <= NARROW else n
    bands = max(1, h // BAND)  # rows on either side of a band are activated twice
    rows = -(-h // bands)
    bands = -(-h // rows)
    parts = math.gcd(c // group, max(1, BANDS // bands))
    out, new = torch.empty_like(values), torch.empty((b, bands, 2, c))
    given = (values, totals, totals.shape[1], depthwise.weight.contiguous(), depthwise.bias, out, new)
    sizes = (group, parts, bands, rows, *_size(values))
    team.run("last_norm_silu_depthwise", b * bands * parts, *given, *sizes)
    return Map(out, new)


def norm_leaky(x: Tensor | Map, slope: int = LINEAR, margin: int = 0, onto: Tensor | None = None) -> Tensor:
    """Instance norm, times `slope` tenths where it is negative, plus `onto`.

    Args:
        x: (B, C, H, W).
        slope: LEAKY or LINEAR.
        margin: Pixels by which the result is padded on each side, by reflection.
        onto: (B, C, H, W), bfloat16 and channels-last, which is added, without a margin; None = nothing.
    Returns:
        (B, C, H + 2 margin, W + 2 margin), bfloat16.
    """
    values, totals = seen(x)
    return _scaled(values, totals, totals.shape[1], slope, margin, onto)


def _scaled(x: Tensor, totals: Tensor, of_bands: int, slope: int, margin: int, onto: Tensor | None) -> Tensor:
    b, c, h, w = x.shape
    bands, rows = bands_of(x)
    out = fresh((b, c, h + 2 * margin, w + 2 * margin))
    given = (x, totals, of_bands, slope, 0 if onto is None else onto, out, margin)
    team.run("last_norm_leaky", b * bands, *given, bands, rows, *_size(x))
    return out


def gated_onto(x: Tensor, y: Tensor | Map, squeeze: nn.Linear, excite: nn.Linear) -> Tensor:
    """x + y times the gates of its channels (`blocks.SqueezeExcitation`), (B, C, H, W) each."""
    values, totals = seen(y)
    return _scaled(values, gates(values, totals, squeeze, excite), 0, LINEAR, 0, laid(x))


def gates(x: Tensor, sums: Tensor, squeeze: nn.Linear, excite: nn.Linear) -> Tensor:
    """Gates of a map's channels, float32 (B, C).

    Args:
        x: (B, C, H, W).
        sums: Of its channels, from `norm_silu`, or its totals.
        squeeze: First layer of the gate, as `excite` the second.
    """
    out = torch.empty(x.shape[:2])
    layers = (squeeze.weight.contiguous(), squeeze.bias, excite.weight.contiguous(), excite.bias, squeeze.out_features)
    given = (sums, sums.shape[1], sums[0, 0].numel(), _around(x), plane_size(x), *layers, out, x.shape[1])
    team.run("last_gate", len(x), *given)
    return out


def soft_clamp(x: Tensor, limit: float) -> Tensor:
    """limit * tanh(x / limit) of a map (B, C, H, W), in float32 and stored plainly."""
    x = laid(x)
    bands, rows = bands_of(x)
    out = torch.empty(x.shape)
    given = (x, out.new_tensor([limit]), out)
    team.run("last_soft_clamp", len(x) * bands, *given, bands, rows, *_size(x))
    return out


def laid(x: Tensor) -> Tensor:
    """A map (B, C, H, W), bfloat16 or float32, in bfloat16, stored channels-last."""
    if x.dtype == torch.bfloat16:
        return x.contiguous(memory_format=torch.channels_last)
    bands, rows = bands_of(x)
    out = fresh(tuple(x.shape))
    team.run("last_laid", len(x) * bands, x.float().contiguous(), out, bands, rows, *_size(x))
    return out


def fresh(shape: tuple[int, ...]) -> Tensor:
    """Room for a map."""
    return torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)


def bands_of(x: Tensor) -> tuple[int, int]:
    """Number of bands and rows of each."""
    rows = max(ROWS, -(-x.shape[2] // BANDS))
    return -(-x.shape[2] // rows), rows


def _around(x: Tensor) -> int:
    return max(x.shape[1], team.lanes())


def _size(x: Tensor) -> tuple[int, int, int]:
    return x.shape[2], x.shape[3], x.shape[1]
