"""Loops over maps on CPUs, compiled by numba: over single images' channels ("planes") in float32, rows in bfloat16.

A plane is one channel of one image of a contiguous map (B, C, H, W): H * W neighbouring floats, few enough to stay in a
core's cache, so that a norm and what follows it read and write main memory once instead of once each.

- `team` says whether kernels can be used and runs them;
- `wide` has those for the maps inside top-down cells, `heads` and `large_filters` those for the image heads,
  `winograd`, `winograd_large` and `winograd_gradient` 3x3 convolutions, `pointwise` 1x1 ones, `gaussians` the algebra
  of latents;
- `channels_last`, `gates` and `layouts` have those for bfloat16 maps, whose pixels' channels lie together;
- `vectors`, `lanes`, `tiles`, `large_tiles`, `windows` and `halves` have what they are put together from.

Kernels take addresses and sizes as integers and check nothing; `mhvae_kit.networks` calls them with tensors. What both
must agree on stands here, as kernels cannot be imported without numba.
"""

EPSILON = 1e-5  # added to the variance
BAND = 16  # rows that it convolves at once, few enough for what they read to stay in a core's own cache
RUN = 4096  # values that a thread takes at once of a map that it goes through value by value
FILTER = 7  # height and width of a large filter
OUTPUTS = 4  # output channels of a convolution that are summed up side by side, in registers
POSITIONS = 16  # of Winograd's scheme, for which it has a product each
LARGE_POSITIONS = 36  # likewise with tiles of 4 x 4 pixels
GAP = 16  # values between filters of one position and the next, as a power of two apart they share few cache lines
PLAIN, NORM, NORM_SILU, NORM_RELU, DOUBLED = range(5)  # what is done to a map before it is convolved


def runs_seen(side: int, together: int) -> int:
    """How many runs, of so many pixels, filters see of a row for all pixels of a run; the first need not begin one."""
    return (side + 2 * together - 2) // together
