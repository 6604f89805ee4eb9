"""Standard-normal draws: those of `torch.randn`, to rounding, in a tenth of its time on CPUs.

Latents of a slice at the paper's size are half a million draws, which torch makes one by one on one thread. The words
of a generator, and the state it is left in, are the same bit by bit.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mhvae_kit.kernels import RUN, team

DRAWS_FROM = 16384  # fewer are as quick in torch, and need nothing compiled
BLOCK = 16  # draws that torch makes from as many words
WORDS = 624  # of the twister's state
# Where torch keeps them in a generator's state, in bytes: the number of words left, of the next one, and the words.
LEFT, NEXT, FIRST, STATE = 8, 16, 24, 5056

_one_at_a_time = threading.Lock()


def standard_normal(
    shape: Sequence[int], generator: torch.Generator | None = None, device: torch.device | str | None = None
) -> Tensor:
    """`torch.randn(shape, generator=generator, device=device)`; on a CPU its values to about 1e-6.

    Args:
        shape: Of the draws.
        generator: Source of the draws; None = torch's global one of the device.
        device: None = torch's default; a generator's is of its own device.
    """
    n = torch.Size(shape).numel()
    places = [torch.empty(0, device=device).device, *([] if generator is None else [generator.device])]
    plain = all(place.type == "cpu" for place in places) and torch.get_default_dtype() == torch.float32
    if n < DRAWS_FROM or not plain or not team.can_run() or not _are_torchs():
        return torch.randn(shape, generator=generator, device=device)
    return _drawn(n, torch.default_generator if generator is None else generator).view(shape)


def _drawn(n: int, generator: torch.Generator) -> Tensor:
    words, start, end = _words(n + (BLOCK if n % BLOCK else 0), generator)
    draws, whole = words[start : start + n], n - n % BLOCK
    if whole < n:  # torch makes the last block anew
        last = words[end - BLOCK : end].clone()
        _transform(draws, whole)
        draws[n - BLOCK :] = last
        _transform(draws[n - BLOCK :], BLOCK)
    else:
        _transform(draws, n)
    return draws


def _words(n: int, generator: torch.Generator) -> tuple[Tensor, int, int]:
    """The generator's next n words, between two places of a tensor."""
    with _one_at_a_time:  # kernels let other threads go on, who must not start from the same state
        state = generator.get_state()
        fields = state.numpy()
        left, following = fields[LEFT : LEFT + 4].view(np.int32), fields[NEXT : NEXT + 8].view(np.int64)
        start = WORDS + 1 - int(left[0])  # words of the state that were taken before
        states = -(-(start + n) // WORDS)
        words = torch.empty(states * WORDS)
        team.run("twister_words", 1, state.data_ptr() + FIRST, words, len(words))
        following[0] = start + n - (states - 1) * WORDS
        left[0] = WORDS + 1 - following[0]
        generator.set_state(state)
    return words, start, start + n


def _transform(words: Tensor, n: int) -> None:
    """Make draws of the first n words, in place."""
    team.run("normal_draws", -(-n // RUN), words, n)


@functools.cache
def _are_torchs() -> bool:
    """Whether this torch draws as its versions have so far, so that seeds keep their meaning; it says so if not."""
    ours, theirs = (torch.Generator().manual_seed(1) for _ in range(2))
    n, alike = DRAWS_FROM + 1, ours.get_state().numel() == STATE
    if alike:
        mine, expected = _drawn(n, ours), torch.randn(n, generator=theirs)
        alike = torch.allclose(mine, expected, rtol=1e-4, atol=1e-5)
        alike = alike and torch.equal(ours.get_state(), theirs.get_state())
    if not alike:
        warnings.warn(
            f"torch {torch.__version__} draws in another way than earlier versions, so its own, slower function is "
            "used. To mend: a newer mhvae_kit.",
            stacklevel=3,
        )
    return alike
