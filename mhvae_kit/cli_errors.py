"""How the `mhvae` command tells an error: one sentence and an exit code."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from mhvae_kit.errors import KitError, RunError, explain

EXIT_RUN_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn errors a user can mend into one sentence on stderr and an exit code; MHVAE_DEBUG=1 shows the traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (KitError, OSError, KeyboardInterrupt) as error:
            told = _told(error)
            if told is None or os.environ.get("MHVAE_DEBUG") == "1":
                raise
            print(f"mhvae: {told[0]}", file=sys.stderr)
            raise SystemExit(told[1]) from None

    return wrapped


def _told(error: BaseException) -> tuple[str, int] | None:
    """The sentence and exit code for an error; None for one that is a fault of the kit."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; what was finished is kept, and the same command goes on from there.", EXIT_INTERRUPTED
    if isinstance(error, RunError):
        return str(error), EXIT_RUN_FAILED
    if isinstance(error, KitError):
        return str(error), EXIT_BAD_INPUT
    place = f" ({error.filename})" if getattr(error, "filename", None) else ""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        mend = "free some space or set MHVAE_CACHE and --root to another disk"
        return explain(f"the disk is full{place}", mend=mend), EXIT_RUN_FAILED
    if isinstance(error, PermissionError):
        mend = "choose a folder you may write to with --root or MHVAE_CACHE"
        return explain(f"no permission{place}", mend=mend), EXIT_BAD_INPUT
    return None
