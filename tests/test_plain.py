"""What libraries hand out becomes plain JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mhvae_kit.errors import InputError
from mhvae_kit.plain import json_safe


@dataclass
class Point:
    x: int
    where: Path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.arange(3), [0, 1, 2]),
        ((1, "a"), [1, "a"]),
        ({2, 1}, [1, 2]),
        (Path("a/b"), "a/b"),
        ({1: (2,)}, {"1": [2]}),
        (Point(1, Path("p")), {"x": 1, "where": "p"}),
        ([float("nan"), float("inf"), np.float64("nan")], [None, None, None]),
        (True, True),
        (None, None),
    ],
)
def test_values_become_plain_json(value, expected):
    safe = json_safe(value)
    assert safe == expected
    assert type(safe) is type(expected)
    json.dumps(safe, allow_nan=False)


def test_a_value_without_json_form_is_refused():
    with pytest.raises(InputError, match="type object cannot be written to JSON"):
        json_safe({"a": object()})
