"""Turning what libraries hand out into plain JSON values."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

from mhvae_kit.errors import InputError, explain


def json_safe(value: Any) -> Any:
    """Turn NumPy and torch numbers and arrays, tuples, sets, paths, dates and dataclasses into plain JSON values.

    NaN and infinity become None, as JSON has neither.

    Raises:
        InputError: The value holds something that has no JSON form.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [json_safe(item) for item in sorted(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (date, datetime)):
        return value.isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return json_safe(dataclasses.asdict(value))
    if hasattr(value, "tolist"):  # NumPy scalars and arrays, torch tensors
        return json_safe(value.tolist())
    raise InputError(
        explain(
            f"a value of type {type(value).__name__} cannot be written to JSON",
            expected="numbers, text, lists, dicts, paths or dates",
        )
    )
