"""Errors a user can mend: each says what is wrong, what was given, what was expected and how to mend it."""

from __future__ import annotations


class KitError(Exception):
    """Base of every error raised on purpose; the command line prints its text alone, without a traceback."""


class InputError(KitError, ValueError):
    """An argument, parameter, tensor or option is not what the called function accepts."""


class DataError(KitError, ValueError):
    """A file exists but its content is wrong: truncated, changed, misaligned or not finite."""


class MissingError(KitError, FileNotFoundError):
    """A file, folder, run or program that is needed is not there."""


class RunError(KitError, RuntimeError):
    """A run (training, notebook, generation) could not go on."""

    def __str__(self) -> str:
        return " ".join(str(a) for a in self.args)


def explain(problem: str, *, got: object = None, expected: object = None, mend: str | None = None) -> str:
    """Build one sentence in the kit's order: problem, what was given, what was expected, how to mend it.

    Args:
        problem: What is wrong, without a final full stop.
        got: What was given; left out when None.
        expected: What would have been accepted; left out when None.
        mend: What the user can do; left out when None.
    """
    parts = [problem]
    if got is not None:
        parts.append(f"got {got}")
    if expected is not None:
        parts.append(f"expected {expected}")
    if mend is not None:
        parts.append(mend)
    return "; ".join(parts) + "."
