"""Requirements on a shipped model: numbers by hand, met and not met."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mhvae_kit.errors import InputError
from mhvae_kit.evaluation.requirements import score_requirements, speckle_requirements

PATHS = ("t2", "us", "t2+us")


def rows(values: dict[tuple[str, str], float], temperature: float = 0.0) -> pd.DataFrame:
    """One slice of each of two patients, 1 dB apart, around a mean."""
    return pd.DataFrame(
        {
            "data": "phantom-test",
            "case": case,
            "slice": 3,
            "observed": observed,
            "target": target,
            "temperature": temperature,
            "psnr_fov_db": mean + shift,
        }
        for (observed, target), mean in values.items()
        for case, shift in (("a", -0.5), ("b", 0.5))
    )


def model(**changes: float) -> pd.DataFrame:
    values = {(o, t): 25.0 if o == "t2+us" else 20.0 for o in PATHS for t in ("us", "t2")}
    values[("t2", "us")] = 21.0
    named = {"t2_us": ("t2", "us"), "both_us": ("t2+us", "us"), "both_t2": ("t2+us", "t2")}
    return rows(values | {named[k]: v for k, v in changes.items()})


REFERENCES = rows({("oracle", "us"): 22.0, ("constant image", "us"): 18.0, ("constant image", "t2"): 12.0})


def test_each_requirement_is_measured_against_its_bound():
    table = score_requirements(model(), REFERENCES)
    assert table["measured"].tolist() == [
        "1.00 dB below it",
        "3.00 dB above it",
        "25.00 dB for the worse one",
        "+4.00 dB for the smallest gain",
    ]
    assert table["met"].tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({"t2_us": 20.4, "both_us": 31.0, "both_t2": 31.0}, [False, True, True, True]),
        ({"t2_us": 19.9}, [False, False, False, True]),
        ({"both_us": 20.5}, [True, True, False, False]),
    ],
)
def test_what_is_missed_is_not_met(changes, met):
    assert score_requirements(model(**changes), REFERENCES)["met"].tolist() == met


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (model().query("observed != 't2'"), "no score of t2 to us"),
        (pd.concat([model(), model().assign(temperature=0.7)]), "several temperatures"),
    ],
)
def test_incomplete_scores_are_refused(scores, message):
    with pytest.raises(InputError, match=message):
        score_requirements(scores, REFERENCES)


def test_texture_is_held_against_the_real_one():
    texture = pd.DataFrame({"kind": ["real", "sample", "mean"], "envelope_snr": [2.0, 2.2, 4.0]})
    spectra = {"real": np.ones((2, 8)), "sample": np.full((2, 8), 1.5), "mean": np.full((2, 8), 0.01)}
    assert speckle_requirements(texture, spectra, "sample", "mean")["met"].tolist() == [True, True, True]
    swapped = speckle_requirements(texture, spectra, "mean", "sample")
    assert swapped["met"].tolist() == [False, False, False]
    assert swapped["measured"][0] == "20.0 dB from the real one"
    with pytest.raises(InputError, match="no texture of other"):
        speckle_requirements(texture, spectra, "other", "mean")
