"""Checks of the notebooks' exercises: is an answer right, and if not, where to look.

An answer that is still `...` is passed over, so that a notebook runs from top to bottom before anybody has solved it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mhvae_kit.errors import InputError, explain
from mhvae_kit.gaussian import Gaussian, product_of_experts

Pair = tuple[float, float]


@dataclass(frozen=True)
class Number:
    """One number that an exercise asks for.

    Args:
        what: Its name in a message.
        value: The right answer.
        hint: Where to look when it is wrong.
        mistakes: Wrong answers that tell what went wrong, with the remark for each.
        tolerance: How far off is still right, as a part of the value.
    """

    what: str
    value: float
    hint: str
    mistakes: Mapping[float, str] = field(default_factory=dict)
    tolerance: float = 0.005

    def check(self, given: Any) -> None:
        """Raise InputError with a hint unless `given` is near enough."""
        if isinstance(given, bool) or not isinstance(given, (int, float)):
            try:
                given = float(given)  # numpy and torch numbers
            except (TypeError, ValueError):
                raise InputError(explain(f"{self.what} is not a number", got=repr(given))) from None
        if self._near(given, self.value):
            return
        remarks = [remark for wrong, remark in self.mistakes.items() if self._near(given, wrong)]
        raise InputError(explain(f"{self.what} is not right yet", got=f"{given:.4g}", mend=(remarks or [self.hint])[0]))

    def _near(self, given: float, value: float) -> bool:
        return abs(given - value) <= self.tolerance * abs(value)


def _numbers(*wanted: Number) -> Callable[[Any], None]:
    """A check of one number, or of as many as are wanted."""

    def check(answer: Any) -> None:
        given = (answer,) if len(wanted) == 1 else answer
        if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != len(wanted):
            names = " and ".join(n.what for n in wanted)
            raise InputError(explain("the answer has another form", got=repr(answer), expected=f"({names})"))
        for number, value in zip(wanted, given, strict=True):
            number.check(value)

    return check


def _fuse(answer: Any) -> None:
    """A function (prior, experts) -> (mean, std): right for none, one and several experts in any order."""
    if not callable(answer):
        raise InputError(explain("fuse is not a function", got=repr(answer), expected="def fuse(prior, experts): ..."))
    prior, experts = (0.5, 2.0), [(1.0, 0.5), (-1.0, 0.7), (3.0, 1.5)]
    cases: list[tuple[list[Pair], str]] = [
        ([], "with no expert nothing is multiplied, and the prior comes back as it was"),
        (experts[:1], "precisions add, and σ is 1 / the root of their sum; the prior counts too"),
        (experts, "the mean weighs every mean by its precision, the prior's too, and divides by the sum"),
        (experts[::-1], "the order of the experts must not matter"),
    ]
    for given, hint in cases:
        result = answer(prior, list(given))
        mean, std = _product(prior, given)
        case = f"of prior {prior} and experts {given}"
        _numbers(Number(f"the mean {case}", mean, hint), Number(f"the std {case}", std, hint))(result)


def _product(prior: Pair, experts: Sequence[Pair]) -> Pair:
    """Mean and std of the product, by the kit."""
    gaussians = [Gaussian(torch.tensor([m]), torch.tensor([s]).log()) for m, s in (prior, *experts)]
    product = product_of_experts(gaussians[0], gaussians[1:])
    return float(product.mean), float(product.std)


_ROOT = "σ is 1 / √precision"
_CHECKS: dict[str, Callable[[Any], None]] = {
    "05.1": _numbers(
        Number(
            "the mean",
            1.6,
            "weigh each mean by its precision, then divide by the sum of precisions",
            {1.0: "that is the plain mean", 4 / 3: "that weighs by 1/σ, not by 1/σ²"},
        ),
        Number(
            "the standard deviation",
            5**-0.5,
            "add the two precisions, 1/1² and 1/0.5², then take 1 / √",
            {0.2: f"that is the variance; {_ROOT}", 5.0: f"that is the precision; {_ROOT}", 1 / 3: "1/σ does not add"},
        ),
    ),
    "05.2": _numbers(
        Number(
            "σ of the ultrasound expert",
            11**-0.5,
            "the product needs precision 1/0.25² = 16; see what prior and T2 bring, and let ultrasound bring the rest",
            {
                1 / 11: f"that is the variance; {_ROOT}",
                11.0: f"that is the precision; {_ROOT}",
                12**-0.5: "the prior brings precision too",
                0.25: "then prior and T2 would bring nothing",
            },
        )
    ),
    "05.3": _fuse,
    "05.4": _numbers(
        Number(
            "the mean",
            (1 / 0.25 - 1 / 0.49) / (1 + 1 / 0.25 + 1 / 0.49),
            "weigh the means by their precisions; what the prior has too much is subtracted above and below the line",
            {(1 / 0.25 - 1 / 0.49) / (2 + 1 / 0.25 + 1 / 0.49): "the prior is inside both; divide by it once"},
        ),
        Number(
            "the standard deviation",
            (1 + 1 / 0.25 + 1 / 0.49) ** -0.5,
            "dividing by a density subtracts its precision",
            {(2 + 1 / 0.25 + 1 / 0.49) ** -0.5: "the prior is inside both; divide by it once"},
        ),
    ),
    "05.5": _numbers(
        Number(
            "σ of the expert",
            8**-0.5,
            "the released rule ends with σ = 1/3, which is precision 9; the prior brings 1 of it",
            {
                1 / 3: "that is the result, to which the prior has added",
                1 / 8: f"that is the variance; {_ROOT}",
            },
        )
    ),
    "05.6": _numbers(
        Number(
            "the number of draws",
            4480,
            "the error of an average is the standard deviation of one draw divided by √n",
            {67: "the error shrinks with √n, not with n", 45: "the error shrinks with √n, not with n"},
            tolerance=0.1,
        )
    ),
}
_RIGHT = {
    "05.1": "the sharper factor pulls four times as hard",
    "05.2": "precision is a budget: what is still missing is the expert's share",
    "05.3": "no expert, one or several, in any order: one line does them all",
    "05.4": "a posterior has the prior inside; experts are what is left when it is taken out",
    "05.5": "the released rule hears this expert as if it were twice as precise as it says",
    "05.6": "and that is for one component; a closed form costs nothing",
}


def check(exercise: str, answer: Any, *, required: bool = False) -> None:
    """Print whether an answer is right; stop with a hint when it is wrong.

    Args:
        exercise: Notebook and number, such as "05.1".
        answer: What the exercise asks for; `...`, or a function that returns it, means not answered yet.
        required: Refuse `...` too, as the solutions do.
    Raises:
        InputError: The answer is wrong (the message says where to look), is missing though required, or there is no
            such exercise.
    """
    if exercise not in _CHECKS:
        raise InputError(explain("no such exercise", got=repr(exercise), expected=", ".join(_CHECKS)))
    open_still = answer is ... or (callable(answer) and answer((0.0, 1.0), [(1.0, 0.5)]) is ...)
    if open_still and required:
        raise InputError(explain(f"exercise {exercise} has no answer"))
    if open_still:
        print(f"exercise {exercise}: put your answer in place of the three dots")
        return
    _CHECKS[exercise](answer)
    print(f"exercise {exercise}: right; {_RIGHT[exercise]}")
