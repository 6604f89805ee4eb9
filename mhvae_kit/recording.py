"""A run that is made by a command: whether it is there already, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mhvae_kit.errors import InputError, RunError, explain
from mhvae_kit.plain import json_safe
from mhvae_kit.runs import read_results, run_status, set_status


@contextmanager
def recording(folder: str | Path, **detail: Any) -> Iterator[None]:
    """Write into `status.json` that a run goes on, and how it ended when it did not come to its end.

    Args:
        folder: The run folder.
        detail: As for `set_status`: notebook, preset, seed, parameters.
    """
    set_status(folder, "running", **detail)
    try:
        yield
    except KeyboardInterrupt:
        set_status(folder, "killed", message="interrupted from outside (Ctrl-C or a signal)")
        raise
    except Exception as error:  # whatever it is: a notebook lives on, and must not find its own run "running"
        set_status(folder, "failed", message=str(error) or type(error).__name__)
        raise


def is_done_with(
    folder: str | Path, parameters: Mapping[str, Any], what: str, *, mend: str = "give another --run-id"
) -> bool:
    """Whether a run is done with these parameters.

    Args:
        folder: The run folder.
        parameters: Those that must be the same as in its results.
        what: What is being made, for messages, such as "row pix2pix".
        mend: What to do about a run with other parameters, for messages.
    Raises:
        RunError: It is going on in another process.
        InputError: It is done with other parameters.
    """
    folder = Path(folder)
    status = run_status(folder)
    if status == "running":
        wait = "wait for it, or end that process"
        raise RunError(explain(f"{what} is being made in another process, in {folder}", mend=wait))
    if status != "done":
        return False
    before = read_results(folder)["parameters"]
    changed = [name for name in parameters if before.get(name) != json_safe(parameters[name])]
    if changed:
        raise InputError(
            explain(
                f"{folder} is a finished run with other settings",
                got=", ".join(f"{name}={parameters[name]}" for name in changed),
                expected=", ".join(f"{name}={before.get(name)}" for name in changed),
                mend=mend,
            )
        )
    return True
