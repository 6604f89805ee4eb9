"""What a training run will do, before it does it: the stages, the weight of the KL and the learning rate."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from mhvae_kit.errors import InputError, explain
from mhvae_kit.figures.style import LABEL_PT, SMALL_PT, STAGE_COLOURS, new_figure, plain_axes

_PANELS = {"kl_weight": "weight of the KL", "learning_rate": "learning rate"}


def schedule_plot(schedule: pd.DataFrame, *, data: str, title: str = "Schedule") -> Figure:
    """The KL's weight and the learning rate over the steps, with the stages as named bands.

    Args:
        schedule: One row a step: step, stage, kl_weight, learning_rate.
        data: What will be trained on, such as "phantom".
        title: Title of the figure.
    Raises:
        InputError: A column is missing, or there is no row.
    """
    missing = [c for c in ("step", "stage", *_PANELS) if c not in schedule]
    if missing or schedule.empty:
        raise InputError(
            explain(
                "this is not a schedule",
                got=f"{len(schedule)} rows without column {', '.join(missing)}" if missing else "no rows",
                expected="one row a step with step, stage, kl_weight and learning_rate",
            )
        )
    stages = schedule.groupby("stage", sort=False)["step"].min()
    ends = [*stages.iloc[1:], schedule["step"].max() + 1]
    figure = new_figure(9.0, 2.9, title=title, data=data)
    for axes, (column, label) in zip(figure.subplots(1, 2), _PANELS.items(), strict=True):
        plain_axes(axes)
        for i, (name, begin, end) in enumerate(zip(stages.index, stages, ends, strict=True)):
            axes.axvspan(begin, end, color=STAGE_COLOURS[i % len(STAGE_COLOURS)], zorder=0, linewidth=0)
            place = {"xycoords": axes.get_xaxis_transform(), "xytext": (0, 3), "textcoords": "offset points"}
            axes.annotate(
                # Narrow bands leave no room for a word on one line.
                name.replace("_", "\n") if end - begin < 0.15 * ends[-1] else name.replace("_", " "),
                ((begin + end) / 2, 1.0),
                ha="center",
                fontsize=SMALL_PT - 1,
                **place,
            )
        axes.plot(schedule["step"], schedule[column], color="#000000", linewidth=1.4)
        axes.set_xlim(0, ends[-1])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step", fontsize=LABEL_PT)
        axes.set_ylabel(label, fontsize=LABEL_PT)
    return figure
