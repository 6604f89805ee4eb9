"""Colours, sizes and the empty figure that all others start from."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mhvae_kit.errors import InputError, explain
from mhvae_kit.gaussian import FusionRule

# Okabe and Ito's colours, told apart by colour-blind readers; one for each modality everywhere.
MODALITY_COLOURS = {"us": "#0072B2", "t2": "#D55E00", "cet1": "#009E73", "flair": "#CC79A7"}
_OTHER_COLOURS = ("#E69F00", "#56B4E9", "#8C6D31", "#7F3C8D")
STAGE_COLOURS = ("#FFFFFF", "#F0F0F0", "#DDE6EE", "#EFE6DA")

RULE_NAMES: dict[FusionRule, str] = {"precision": "product", "scale": "released rule"}
RULE_COLOURS: dict[FusionRule, str] = {"precision": "#000000", "scale": "#8C6D31"}
RULE_STYLES: dict[FusionRule, Any] = {"precision": "-", "scale": "--"}
# Told apart without colour too.
_EXPERT_STYLES = ("-", "-.", (0, (6, 2)), (0, (3, 1, 1, 1, 1, 1)))
PRIOR_STYLE = ":"

FOV_COLOUR = "#56B4E9"
TUMOUR_COLOUR = "#F0E442"
NEUTRAL_COLOUR = "#4D4D4D"

TITLE_PT = 11
LABEL_PT = 9
SMALL_PT = 8


def modality_colour(name: str) -> str:
    """The colour of a modality: fixed for the kit's own, always the same one for any other name."""
    return MODALITY_COLOURS.get(name) or _OTHER_COLOURS[zlib.crc32(name.encode()) % len(_OTHER_COLOURS)]


def modality_label(name: str) -> str:
    """A modality as it is written for readers: T2, US; names longer than three letters stay as they are."""
    return name.upper() if len(name) <= 3 else name


def factor_looks(experts: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and line of the prior and of each expert; the line differs too, so that colour is not all there is."""
    looks: dict[str, dict[str, Any]] = {"prior": {"color": NEUTRAL_COLOUR, "linestyle": PRIOR_STYLE}}
    for i, name in enumerate(experts):
        looks[name] = {"color": modality_colour(name), "linestyle": _EXPERT_STYLES[i % len(_EXPERT_STYLES)]}
    return looks


def level_order(levels: Iterable[str]) -> list[str]:
    """Latent levels from coarsest to finest: z7 ... z1.

    Raises:
        InputError: A name that is not "z" and a number.
    """
    names = list(levels)
    wrong = [n for n in names if not (n[:1] == "z" and n[1:].isdigit())]
    if wrong:
        raise InputError(explain("not a latent level", got=", ".join(wrong), expected='"z1", "z2", ...'))
    return sorted(names, key=lambda n: -int(n[1:]))


def level_colours(levels: Iterable[str]) -> dict[str, tuple[float, float, float, float]]:
    """One colour per level, from dark (coarsest) to light (finest), on a perceptually uniform map."""
    names = level_order(levels)
    ramp = matplotlib.colormaps["viridis"]
    return {n: ramp(0.9 * i / max(len(names) - 1, 1)) for i, n in enumerate(names)}


def new_figure(width: float, height: float, *, title: str, data: str) -> Figure:
    """An empty figure in inches with its title, which names the data: "Loss curves (phantom-demo data)".

    Raises:
        InputError: `data` is empty: no figure goes out without saying what it is of.
    """
    if not isinstance(data, str) or not data.strip():
        raise InputError(
            explain("the figure does not say what data it shows", got=repr(data), expected='for example data="phantom"')
        )
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    name = data.strip()
    figure.suptitle(f"{title} ({name if 'data' in name.split() else name + ' data'})", fontsize=TITLE_PT)
    return figure


def plain_axes(axes: Axes) -> None:
    """Axes for curves: light grid, no frame above and to the right, small figures."""
    axes.grid(True, color="#E3E3E3", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=SMALL_PT)
