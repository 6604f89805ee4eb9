"""`ProductOfExpertsExplorer`: one-dimensional Gaussians by hand, and what their product is under either rule."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mhvae_kit.errors import InputError, explain
from mhvae_kit.figures.style import (
    LABEL_PT,
    RULE_COLOURS,
    RULE_NAMES,
    RULE_STYLES,
    SMALL_PT,
    factor_looks,
    modality_label,
    new_figure,
    plain_axes,
)
from mhvae_kit.gaussian import Gaussian, kl_divergence, product_of_experts
from mhvae_kit.widgets.base import SLIDER, TICK, Explorer, State, number_between, one_of
from mhvae_kit.widgets.pictures import Picture, to_png

Rule = Literal["precision", "scale", "both"]
_RULES: dict[Rule, str] = {
    "precision": "1/variance adds (exact)",
    "scale": "1/std adds (released code)",
    "both": "both rules",
}
MEAN_LIMIT, STD_LIMITS = 5.0, (0.1, 3.0)
_GRID = np.linspace(-2 * MEAN_LIMIT, 2 * MEAN_LIMIT, 1201)
_SIZE_IN, _DPI = (6.4, 3.5), 90
_BAR_EM, _BAR_PRECISION = 20.0, 8.0  # width of the bars; what it stands for at the least
_EXAMPLE = {"t2": (1.0, 0.5), "us": (-1.0, 0.7)}


class ProductOfExpertsExplorer(Explorer):
    """A prior and one expert per modality as curves on one axis, with their product and the numbers.

    Move mean and standard deviation of each; untick an expert and its factor is left out. State: prior [mean, std],
    experts {name: {mean, std, present}}, rule.

    Args:
        prior: Mean and standard deviation of the prior.
        experts: By modality, mean and standard deviation of its expert; any number of them.
        rule: "precision" (the exact product), "scale" (the authors' released code) or "both".
        save_to: Folder of saved pictures; None = `pictures/` in the folder of all runs.
    Raises:
        InputError: A mean outside -5 to 5, a standard deviation outside 0.1 to 3, or an unknown rule.
    """

    name = "product_of_experts"

    def __init__(
        self,
        prior: tuple[float, float] = (0.0, 1.0),
        experts: Mapping[str, tuple[float, float]] = _EXAMPLE,
        rule: Rule = "precision",
        *,
        save_to: str | Path | None = None,
    ) -> None:
        wanted = self._check(
            {
                "prior": list(prior),
                "experts": {name: {"mean": mean, "std": std, "present": True} for name, (mean, std) in experts.items()},
                "rule": rule,
            }
        )
        self._sliders = {"prior": _pair("prior"), **{name: _pair(name) for name in wanted["experts"]}}
        self._present = {
            name: widgets.Checkbox(description=f"{modality_label(name)} is observed", **TICK)
            for name in wanted["experts"]
        }
        self._rule = widgets.Dropdown(description="rule", options=[(t, r) for r, t in _RULES.items()], **SLIDER)
        wrap = widgets.Layout(flex_flow="row wrap", align_items="center")
        rows = [self._rule, widgets.HBox(self._sliders["prior"], layout=wrap)]
        rows += [widgets.HBox([*self._sliders[n], box], layout=wrap) for n, box in self._present.items()]
        self._write(wanted)
        sliders = [slider for pair in self._sliders.values() for slider in pair]
        super().__init__(rows, [*sliders, *self._present.values(), self._rule], save_to)

    def results(self, state: State | None = None) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of the product by rule, for a complete state (None = the present one)."""
        state = state or self.state
        prior = _gaussian(*state["prior"])
        experts = [_gaussian(e["mean"], e["std"]) for e in state["experts"].values() if e["present"]]
        rules = ("precision", "scale") if state["rule"] == "both" else (state["rule"],)
        fused = {rule: product_of_experts(prior, experts, rule) for rule in rules}
        return {rule: (float(g.mean), float(g.std)) for rule, g in fused.items()}

    def figure(self, *changes: Mapping[str, Any], title: str | None = None) -> Figure:
        """A static figure of the state, or of several: a panel for each dict of changes from it."""
        states = [self._changed_state(c) for c in (changes or ({},))]
        height = _SIZE_IN[1] * (0.8 if len(states) > 1 else 1)
        figure = new_figure(
            _SIZE_IN[0] * min(len(states), 2) * (0.8 if len(states) > 1 else 1),
            height * -(-len(states) // 2),
            title=title or "Product of experts",
            data="hand-set",
        )
        grid = figure.subplots(-(-len(states) // 2), min(len(states), 2), squeeze=False).ravel()
        for axes, state in zip(grid, states, strict=False):
            self._draw(axes, state)
            if len(states) > 1:
                axes.set_title(self._summary(state), fontsize=SMALL_PT)
        for spare in grid[len(states) :]:
            spare.set_visible(False)
        return figure

    def _read(self) -> State:
        values = {name: (mean.value, std.value) for name, (mean, std) in self._sliders.items()}
        return {
            "prior": list(values["prior"]),
            "experts": {
                name: {"mean": values[name][0], "std": values[name][1], "present": box.value}
                for name, box in self._present.items()
            },
            "rule": self._rule.value,
        }

    def _write(self, state: State) -> None:
        values = {"prior": state["prior"]} | {n: (e["mean"], e["std"]) for n, e in state["experts"].items()}
        for name, (mean, std) in self._sliders.items():
            mean.value, std.value = values[name]
        for name, box in self._present.items():
            box.value = state["experts"][name]["present"]
        self._rule.value = state["rule"]

    def _check(self, state: State) -> State:
        known = getattr(self, "_present", state["experts"])
        if "prior" in state["experts"] or set(known) != set(state["experts"]):
            names = ", ".join(n for n in state["experts"] if n == "prior" or n not in known)
            raise InputError(explain(f"there is no expert {names}", expected=f"{', '.join(known)}"))
        mean, std = state["prior"]
        experts = {}
        for name, expert in state["experts"].items():
            for key in expert:
                one_of(f"setting of expert {name}", key, ("mean", "std", "present"))
            experts[name] = {
                **dict(zip(("mean", "std"), _checked(name, expert["mean"], expert["std"]), strict=True)),
                "present": bool(one_of(f"present of {name}", expert["present"], (True, False))),
            }
        rule = one_of("rule", state["rule"], list(_RULES))
        return {"prior": list(_checked("prior", mean, std)), "experts": experts, "rule": rule}

    def _render(self, state: State) -> Picture:
        figure = new_figure(*_SIZE_IN, title="Product of experts", data="hand-set")
        # A fixed frame: a laid-out one takes twice the time, and moves as the numbers on the axis change.
        figure.set_layout_engine("none")
        self._draw(figure.add_axes((0.09, 0.14, 0.89, 0.74)), state)
        figure.set_dpi(_DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        summary = self._summary(state)
        png = to_png(picture, {"explorer": type(self).__name__, **state})
        return Picture(
            png, picture.size, summary, f"Curves of the factors and their product. {summary}", _table(self, state)
        )

    def _draw(self, axes: Any, state: State) -> None:
        """All curves on one axis."""
        plain_axes(axes)
        looks = factor_looks(state["experts"])
        curves = [("prior", *state["prior"], {**looks["prior"], "linewidth": 1.4})]
        curves += [
            (modality_label(name), e["mean"], e["std"], {**looks[name], "linewidth": 1.4})
            for name, e in state["experts"].items()
            if e["present"]
        ]
        curves += [
            (RULE_NAMES[rule], *result, {"color": RULE_COLOURS[rule], "linestyle": RULE_STYLES[rule], "linewidth": 2.4})
            for rule, result in self.results(state).items()
        ]
        highest = 0.0
        for label, mean, std, look in curves:
            density = np.exp(-0.5 * ((_GRID - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
            highest = max(highest, float(1 / (std * np.sqrt(2 * np.pi))))
            axes.plot(_GRID, density, label=label, **look)
        axes.set_xlim(-MEAN_LIMIT, MEAN_LIMIT)
        axes.set_ylim(0, next(top for top in (0.5, 1, 2, 4, 8, 16) if highest <= 0.98 * top))
        axes.set_xlabel("z", fontsize=LABEL_PT)
        axes.set_ylabel("density", fontsize=LABEL_PT)
        axes.legend(fontsize=SMALL_PT, loc="upper right", handlelength=3)

    def _summary(self, state: State) -> str:
        present = [modality_label(name) for name, e in state["experts"].items() if e["present"]]
        named = [
            f"{RULE_NAMES[rule]}: mean {mean:.3f}, std {std:.3f}" for rule, (mean, std) in self.results(state).items()
        ]
        return (
            f"prior × {' × '.join(present)} · {' · '.join(named)}" if present else f"prior alone · {' · '.join(named)}"
        )


def _pair(name: str) -> tuple[widgets.FloatSlider, widgets.FloatSlider]:
    """Sliders for mean and standard deviation of one Gaussian."""
    low, high = STD_LIMITS
    options = {"layout": widgets.Layout(width="20rem"), "style": {"description_width": "6rem"}, "step": 0.05}
    shown = modality_label(name)
    mean = widgets.FloatSlider(description=f"{shown} mean", value=0.0, min=-MEAN_LIMIT, max=MEAN_LIMIT, **options)
    return mean, widgets.FloatSlider(description=f"{shown} std", value=1.0, min=low, max=high, **options)


def _checked(name: str, mean: Any, std: Any) -> tuple[float, float]:
    return (
        number_between(f"mean of {name}", mean, -MEAN_LIMIT, MEAN_LIMIT),
        number_between(f"std of {name}", std, *STD_LIMITS),
    )


def _gaussian(mean: float, std: float) -> Gaussian:
    return Gaussian(torch.tensor([[mean]]), torch.tensor([[std]]).log())


def _table(explorer: ProductOfExpertsExplorer, state: State) -> str:
    """The numbers beside the picture: each factor's precision as a number and as a bar, and what becomes of them."""
    rows = [("prior", *state["prior"], True)]
    rows += [(name, e["mean"], e["std"], e["present"]) for name, e in state["experts"].items()]
    lines, divergences = [], []
    for name, mean, std, present in rows:
        numbers = (f"{mean:.2f}", f"{std:.2f}", f"{1 / std**2:.3f}") if present else ("absent", "–", "0")
        lines.append((modality_label(name), *numbers))
    prior, results = _gaussian(*state["prior"]), explorer.results(state)
    for rule, (mean, std) in results.items():
        lines.append((RULE_NAMES[rule], f"{mean:.3f}", f"{std:.3f}", f"{1 / std**2:.3f}"))
        nats = float(kl_divergence(_gaussian(mean, std), prior))
        divergences.append(f"{RULE_NAMES[rule]} {nats:.3f} nats")
    head = "".join(f'<th scope="col" style="padding:0 .6rem">{cell}</th>' for cell in ("", "mean", "std", "1/variance"))
    body = "".join(
        f'<tr><th scope="row" style="text-align:left">{html.escape(name)}</th>'
        + "".join(f'<td style="text-align:right;padding:0 .6rem">{cell}</td>' for cell in cells)
        + "</tr>"
        for name, *cells in lines
    )
    table = f'<table style="line-height:1.6"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    factors = {name: 1 / std**2 for name, _, std, present in rows if present}
    bars = _bars(factors, {rule: 1 / std**2 for rule, (_, std) in results.items()})
    return f"{table}{bars}<p>KL from the prior:<br>{'<br>'.join(map(html.escape, divergences))}</p>"


def _bars(factors: Mapping[str, float], results: Mapping[str, float]) -> str:
    """Precisions as bars: the factors' end to end, under them each result's. The table has the same as numbers."""
    scale = _BAR_EM / max(_BAR_PRECISION, sum(factors.values()), *results.values())
    looks = factor_looks([name for name in factors if name != "prior"])

    def bar(parts: Iterable[tuple[str, float]]) -> str:
        style = "display:inline-block;height:.9rem;box-sizing:border-box;border-right:1px solid #fff"
        return "".join(f'<span style="{style};width:{scale * v:.3f}rem;background:{c}"></span>' for c, v in parts)

    rows = [("factors, end to end", bar((looks[name]["color"], value) for name, value in factors.items()))]
    rows += [(RULE_NAMES[rule], bar([(RULE_COLOURS[rule], value)])) for rule, value in results.items()]
    lines = "".join(f'<div style="line-height:1.2">{name}</div><div>{drawn}</div>' for name, drawn in rows)
    return f'<div aria-hidden="true" style="white-space:nowrap;margin:.5rem 0"><b>1/variance</b>{lines}</div>'
