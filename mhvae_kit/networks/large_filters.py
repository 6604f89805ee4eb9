"""7x7 convolutions of few channels (the image heads'), by `mhvae_kit.kernels.large_filters`, where that is quicker."""

from __future__ import annotations

from torch import Tensor

from mhvae_kit.kernels import FILTER, OUTPUTS, team

FEWER_THAN = 16  # channels, from which torch's convolutions are quicker
WIDTH_FROM = 48  # what a kernel computes at once, with the widest vectors
WIDTH_OF = 16  # a gradient's width must be a multiple of it, likewise


def is_quick_for(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolution` can work on a padded map and its filters, and is quicker than torch's."""
    n_out, n_in, *size = weight.shape
    height, width = x.shape[2] - FILTER + 1, x.shape[3] - FILTER + 1
    return (
        size == [FILTER, FILTER]
        and max(n_out, n_in) < FEWER_THAN
        and (n_out % OUTPUTS == 0 or (n_out == 1 and height % OUTPUTS == 0))
        and width >= WIDTH_FROM
        and team.apply_to(x, weight)
    )


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 7x7 convolution without padding, for what `is_quick_for` admits.

    Of a single output channel, the OUTPUTS rows that are computed together all lack a number where one does.

    Args:
        x: (B, C, H + 6, W + 6).
        weight: (D, C, 7, 7), D a multiple of 4, or 1.
        bias: (D,) or None.
    Returns:
        (B, D, H, W).
    """
    x, (n_out, n_in) = x.contiguous(), weight.shape[:2]
    height, width = x.shape[2] - FILTER + 1, x.shape[3] - FILTER + 1
    together = OUTPUTS if n_out == 1 else 1
    filters = _shifted(weight) if n_out == 1 else weight
    tall = filters.shape[2]
    filters = filters.unflatten(0, (-1, OUTPUTS)).permute(0, 2, 3, 4, 1).contiguous()
    bias = x.new_zeros(n_out) if bias is None else bias
    y = x.new_empty(len(x), n_out, height, width)
    sizes = (n_in, n_out, together, tall, height, width)
    team.run("large_filters", len(x) * height // together, x, filters, bias, y, *sizes)
    return y


def _shifted(weight: Tensor) -> Tensor:
    """One filter (1, C, K, K) as those of OUTPUTS neighbouring rows, which all see the same window."""
    rows = weight.new_zeros(OUTPUTS, weight.shape[1], FILTER + OUTPUTS - 1, FILTER)
    for shift in range(OUTPUTS):
        rows[shift, :, shift : shift + FILTER] = weight[0]
    return rows


def is_quick_for_gradient(x: Tensor, weight: Tensor) -> bool:
    """Whether `weight_gradient` can work on a padded map and its filters, and is quicker than torch's."""
    n_out, n_in, *size = weight.shape
    fits = size == [FILTER, FILTER] and (x.shape[3] - FILTER + 1) % WIDTH_OF == 0
    return fits and max(n_out, n_in) < FEWER_THAN and team.apply_to(x, weight)


def weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the filters of `convolution`.

    Args:
        x: (B, C, H + 6, W + 6), what was convolved.
        grad: (B, D, H, W), the gradient of what came out.
    Returns:
        (D, C, 7, 7).
    """
    n_in, n_out = x.shape[1], grad.shape[1]
    of_images = x.new_empty(len(x), n_out, n_in, FILTER, FILTER)
    sizes = (n_in, n_out, *grad.shape[2:])
    team.run("large_filters_gradient", len(x), x.contiguous(), grad.contiguous(), of_images, *sizes)
    return of_images.sum(0)
