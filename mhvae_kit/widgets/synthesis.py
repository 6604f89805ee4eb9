"""`SynthesisExplorer`: what the model makes of the images it is shown, with the noise held still."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np

from mhvae_kit.config import Level, Modality
from mhvae_kit.data.slices import CaseVolumes
from mhvae_kit.figures.style import modality_label as shown
from mhvae_kit.networks.mhvae import MHVAE
from mhvae_kit.widgets.base import TICK, WIDE, State, number_between, one_of, whole_between
from mhvae_kit.widgets.pictures import Panel
from mhvae_kit.widgets.slice_explorer import MAX_NOISE, ROW, SliceExplorer

MAX_FACTOR = 2.0
DIFFERENCE_LIMIT = 0.5


class SynthesisExplorer(SliceExplorer):
    """Choose patient, slice, observed images and target; move the temperature of all levels or of one.

    The noise is fixed until you ask for new noise, so what changes on moving τ is due to τ alone. A level's τ is the
    common τ times that level's factor: factor 0 holds a level at its mean, so speckle can be drawn while the layout
    stays. A frozen level keeps its noise when new noise is asked for; "resample" redraws one level alone.

    State: case, slice, observed, target, temperature, level_factors {level: 0 to 2}, noise {level: number},
    frozen [level, ...], difference.

    Args:
        model: The model.
        dataset: Slices at the model's size, such as the phantom.
        case, slice_index: What is shown first; None = a test patient if there is one, and its middle slice.
        observed: Modalities that the model is shown; None = all but the target, () = none: the prior alone.
        target: Modality that it makes.
        temperature: Spread of all draws, 0 to 1.2.
        seed: Number of the first noise.
        save_to: Folder of saved pictures; None = `pictures/` in the folder of all runs.
    """

    name = "synthesis"

    def __init__(
        self,
        model: MHVAE,
        dataset: CaseVolumes,
        *,
        case: str | None = None,
        slice_index: int | None = None,
        observed: Iterable[Modality] | None = None,
        target: Modality = "us",
        temperature: float = 0.7,
        seed: int = 0,
        save_to: str | Path | None = None,
    ) -> None:
        number = whole_between("seed", seed, 0, MAX_NOISE)
        self._noise: dict[Level, int] = dict.fromkeys(model.config.level_names, number)
        super().__init__(
            model,
            dataset,
            case=case,
            slice_index=slice_index,
            observed=observed,
            target=target,
            temperature=temperature,
            save_to=save_to,
        )

    def _extra_controls(self) -> dict[str, list[widgets.Widget]]:
        auto = widgets.Layout(width="auto")
        self._factors = {
            level: widgets.FloatSlider(
                description=f"{level}: factor on τ", value=1.0, min=0, max=MAX_FACTOR, step=0.05, **WIDE
            )
            for level in self.latents.levels
        }
        self._frozen = {level: widgets.Checkbox(description=f"freeze {level}", **TICK) for level in self.latents.levels}
        self._difference = widgets.Checkbox(description="difference from the truth", **TICK)
        self._new_noise = widgets.Button(description="new noise", icon="refresh", layout=auto)
        self._new_noise.on_click(lambda _: self.new_noise())
        rows = []
        for level in self.latents.levels:
            redraw = widgets.Button(description=f"resample {level}", layout=auto)
            redraw.on_click(partial(lambda name, _: self.resample([name]), level))
            rows.append(widgets.HBox([self._factors[level], self._frozen[level], redraw], layout=ROW))
        fold = widgets.Accordion([widgets.VBox(rows)], selected_index=None)
        fold.set_title(0, f"level by level: {self.latents.levels[0]} (coarsest) to {self.latents.levels[-1]} (finest)")
        buttons = widgets.HBox([self._new_noise, self._difference], layout=ROW)
        return {
            "rows": [buttons, fold],
            "inputs": [*self._factors.values(), *self._frozen.values(), self._difference],
        }

    def new_noise(self) -> None:
        """Redraw every level that is not frozen."""
        self.resample([level for level in self.latents.levels if not self._frozen[level].value])

    def resample(self, levels: Iterable[Level]) -> None:
        """Redraw these levels, frozen or not; all others keep their noise."""
        for level in levels:
            one_of("level", level, self.latents.levels)
            self._noise = {**self._noise, level: (self._noise[level] + 1) % (MAX_NOISE + 1)}
        self._ask()

    def _read(self) -> State:
        return {
            **super()._read(),
            "level_factors": {level: slider.value for level, slider in self._factors.items()},
            "noise": dict(self._noise),
            "frozen": [level for level, box in self._frozen.items() if box.value],
            "difference": self._difference.value,
        }

    def _write(self, state: State) -> None:
        super()._write(state)
        for level, slider in self._factors.items():
            slider.value = state["level_factors"][level]
            self._frozen[level].value = level in state["frozen"]
        self._noise = dict(state["noise"])
        self._difference.value = state["difference"]

    def _check(self, state: State) -> State:
        levels = self.latents.levels
        for key in ("level_factors", "noise", "frozen"):
            for level in state[key]:
                one_of(key, level, levels)
        factors = {k: number_between(f"factor of {k}", state["level_factors"][k], 0, MAX_FACTOR) for k in levels}
        noise = {k: whole_between(f"noise of {k}", state["noise"][k], 0, MAX_NOISE) for k in levels}
        frozen = [k for k in levels if k in state["frozen"]]
        one_of("difference", state["difference"], (True, False))
        return {**super()._check(state), "level_factors": factors, "noise": noise, "frozen": frozen}

    def _temperatures(self, state: State) -> dict[Level, float]:
        """The temperature of each level."""
        return {level: state["temperature"] * factor for level, factor in state["level_factors"].items()}

    def image_of(self, state: State | None = None) -> np.ndarray:
        """What the model makes of a complete state (None = the present one), (H, W) in [-1, 1]."""
        state = state or self.state
        encoding = self.latents.encoding(state["case"], state["slice"], state["observed"])
        noise = {level: self.latents.noise(level, number) for level, number in state["noise"].items()}
        return self.latents.decode(encoding, state["target"], self._temperatures(state), noise).numpy()

    def panels(self, state: State) -> list[Panel]:
        """The real images, what was made, and, if wanted, the difference inside the field of view."""
        made = self.image_of(state)
        target = state["target"]
        # The real target stands beside what was made; nothing moves its place when another image is observed.
        real = sorted(self.slices.modalities, key=lambda m: m == target)
        panels = [Panel(_role(m, state), self.slices.plane(state["case"], state["slice"], m)) for m in real]
        panels.append(Panel(f"made: {shown(target)}", made))
        if state["difference"]:
            truth = self._truth(state)
            gap = None if truth is None else np.where(self._inside(state), made - truth, np.nan)
            title = "no truth to compare" if gap is None else "made - truth"
            panels.append(Panel(title, gap, "difference", DIFFERENCE_LIMIT))
        return panels

    def _caption(self, state: State, panels: Sequence[Panel]) -> str:
        made = panels[len(self.slices.modalities)].values
        factors = {k: f for k, f in state["level_factors"].items() if f != 1}
        parts = [note] if (note := super()._caption(state, panels)) else []
        parts += ["factors on τ: " + ", ".join(f"{k} × {f:.2f}" for k, f in factors.items())] if factors else []
        parts += [score] if (score := self._score(made, state)) else []
        return " · ".join(parts)

    def _row_label(self, given: Mapping[str, Any], state: State) -> str:
        return super()._row_label({k: v for k, v in given.items() if k != "difference"}, state)


def _role(modality: Modality, state: State) -> str:
    """What a real image is to the model in this state."""
    if modality in state["observed"]:
        return f"{shown(modality)}, observed"
    return f"{shown(modality)}, {'the truth (hidden)' if modality == state['target'] else 'hidden'}"
