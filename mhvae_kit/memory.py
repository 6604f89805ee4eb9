"""Let the C library keep freed memory, so that large tensors are not returned to the system and faulted in again.

On Linux, glibc serves each large buffer by a fresh mapping and unmaps it when freed; the kernel then clears every
page anew. For a network whose activations are tens of megabytes that costs as much time as the arithmetic.
"""

from __future__ import annotations

import ctypes
import functools
import platform

# Parameter numbers of mallopt in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


@functools.cache
def keep_freed_memory() -> bool:
    """Raise glibc's thresholds for this process; memory freed by one tensor is then reused by the next.

    The peak of memory stays the same; what the process has reached it keeps until it ends. Called by training and
    evaluation; calling it again does nothing.

    Returns:
        Whether it took effect (False where the C library is not glibc).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    largest = 2**31 - 1
    settings = ((_M_MMAP_THRESHOLD, 2**30), (_M_TRIM_THRESHOLD, largest), (_M_TOP_PAD, 64 * 2**20))
    return all(libc.mallopt(number, value) == 1 for number, value in settings)
