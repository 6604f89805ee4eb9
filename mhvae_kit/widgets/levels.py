"""`LevelExplorer`: what one latent level holds, by changing it alone and looking at what moves in the image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ipywidgets as widgets
import numpy as np
import torch

from mhvae_kit.config import Level, Modality
from mhvae_kit.data.slices import CaseVolumes
from mhvae_kit.figures.style import modality_label as shown
from mhvae_kit.levels import experiments
from mhvae_kit.networks.mhvae import MHVAE
from mhvae_kit.widgets.base import SLIDER, State, one_of, whole_between
from mhvae_kit.widgets.pictures import Panel, round_limit
from mhvae_kit.widgets.slice_explorer import MAX_NOISE, ROW, SliceExplorer

Action = Literal["resample", "swap", "prior"]
_ACTIONS: dict[Action, str] = {
    "resample": "redraw it, all else fixed",
    "swap": "take it from another slice",
    "prior": "leave its experts out",
}
MAX_DRAWS = 32


class LevelExplorer(SliceExplorer):
    """Choose a level and change it alone; the noise of all other levels stays what it is.

    Levels above (coarser) stay exactly as they are. Levels below answer through their prior and experts, which depend
    on what is above them; their noise is the same. So what moves in the image is what this level decides.

    - "resample": the level is drawn again `draws` times; the map is the standard deviation of each pixel over them.
    - "swap": the level's latent of another slice, drawn with the same noise, is put in; the map is the change.
    - "prior": the level is drawn from its prior, without what the observed images say; the map is the change.

    State: case, slice, observed, target, temperature, level, action, draws, donor, donor_slice, noise.

    Args:
        model: The model.
        dataset: Slices at the model's size, such as the phantom.
        case, slice_index: What is shown first; None = a test patient if there is one, and its middle slice.
        observed: Modalities that the model is shown; None = all but the target.
        target: Modality that it makes.
        level: "z1" (finest) to "z7" (coarsest); None = the finest.
        action: "resample", "swap" or "prior".
        draws: How often the level is drawn again, 2 to 32.
        temperature: Spread of all draws, 0 to 1.2; 1 is the model as it was trained.
        seed: Number of the first noise.
        save_to: Folder of saved pictures; None = `pictures/` in the folder of all runs.
    """

    name = "level"

    def __init__(
        self,
        model: MHVAE,
        dataset: CaseVolumes,
        *,
        case: str | None = None,
        slice_index: int | None = None,
        observed: Iterable[Modality] | None = None,
        target: Modality = "us",
        level: Level | None = None,
        action: Action = "resample",
        draws: int = 8,
        temperature: float = 1.0,
        seed: int = 0,
        save_to: str | Path | None = None,
    ) -> None:
        levels = model.config.level_names
        self._first = {
            "level": one_of("level", levels[-1] if level is None else level, levels),
            "action": one_of("action", action, list(_ACTIONS)),
            "draws": whole_between("draws", draws, 2, MAX_DRAWS),
        }
        self._noise = whole_between("seed", seed, 0, MAX_NOISE)
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
        levels, auto = self.latents.levels, widgets.Layout(width="auto")
        self._level = widgets.SelectionSlider(
            description="level", options=levels, value=self._first["level"], continuous_update=True, **SLIDER
        )
        self._action = widgets.Dropdown(
            description="what to do", options=[(text, name) for name, text in _ACTIONS.items()], **SLIDER
        )
        self._draws = widgets.IntSlider(description="draws", value=self._first["draws"], min=2, max=MAX_DRAWS, **SLIDER)
        cases = self.slices.cases
        first = self.slices.first_case()
        donor = cases[(cases.index(first) + 1) % len(cases)]
        self._donor = widgets.Dropdown(description="other patient", options=cases, value=donor, **SLIDER)
        self._donor_slice = widgets.IntSlider(description="other slice", min=0, **SLIDER)
        self._donor_slice.max = self.slices.count(donor) - 1
        self._donor_slice.value = self.slices.count(donor) // (2 if donor != first else 4)
        self._donor.observe(self._donor_changed, "value")
        self._donor_row = widgets.HBox([self._donor, self._donor_slice], layout=widgets.Layout(flex_flow="row wrap"))
        self._action.observe(self._show_what_counts, "value")
        self._action.value = self._first["action"]
        self._show_what_counts()
        self._new_noise = widgets.Button(description="new noise", icon="refresh", layout=auto)
        self._new_noise.on_click(lambda _: self.new_noise())
        return {
            "rows": [
                widgets.HBox([self._level, self._action], layout=ROW),
                self._donor_row,
                widgets.HBox([self._draws, self._new_noise], layout=ROW),
            ],
            "inputs": [self._level, self._action, self._draws, self._donor_slice],
        }

    def new_noise(self) -> None:
        """Draw the noise of every level anew."""
        self._noise = (self._noise + 1) % (MAX_NOISE + 1)
        self._ask()

    def _show_what_counts(self, change: Any = None) -> None:
        """Only the controls that the chosen action uses are on the page."""
        self._donor_row.layout.display = None if self._action.value == "swap" else "none"
        self._draws.layout.visibility = "visible" if self._action.value == "resample" else "hidden"

    def _donor_changed(self, change: Mapping[str, Any]) -> None:
        if not self._quiet:
            with self._quietly():
                self._donor_slice.max = self.slices.count(change["new"]) - 1
            self._ask()

    def _read(self) -> State:
        return {
            **super()._read(),
            "level": self._level.value,
            "action": self._action.value,
            "draws": self._draws.value,
            "donor": self._donor.value,
            "donor_slice": self._donor_slice.value,
            "noise": self._noise,
        }

    def _write(self, state: State) -> None:
        super()._write(state)
        self._level.value = state["level"]
        self._action.value = state["action"]
        self._draws.value = state["draws"]
        self._donor.value = state["donor"]
        self._donor_slice.max = self.slices.count(state["donor"]) - 1
        self._donor_slice.value = state["donor_slice"]
        self._noise = state["noise"]

    def _check(self, state: State) -> State:
        one_of("level", state["level"], self.latents.levels)
        one_of("action", state["action"], list(_ACTIONS))
        one_of("donor", state["donor"], self.slices.cases)
        last = self.slices.count(state["donor"]) - 1
        return {
            **super()._check(state),
            "draws": whole_between("draws", state["draws"], 2, MAX_DRAWS),
            "donor_slice": whole_between("donor_slice", state["donor_slice"], 0, last),
            "noise": whole_between("noise", state["noise"], 0, MAX_NOISE),
        }

    def images_of(self, state: State | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The images of a complete state (None = the present one): before (H, W), and after the change (n, H, W).

        n is `draws` for "resample", and 1 otherwise.
        """
        state = state or self.state
        model, level = self.latents.model, state["level"]
        encoding = self.latents.encoding(state["case"], state["slice"], state["observed"])
        noise = {k: self.latents.noise(k, state["noise"]) for k in self.latents.levels}
        options = {"noise": noise, "temperature": state["temperature"]}
        target = state["target"]
        with self.latents.lock, torch.inference_mode():
            before = model.decode(encoding, targets=[target], **options).images[target]
            if state["action"] == "resample":
                generator = torch.Generator().manual_seed(state["noise"])
                options |= {"target": target, "generator": generator}
                after = experiments.redraw(model, encoding, [level], state["draws"], **options)[:, 0]
            elif state["action"] == "swap":
                donor = self.latents.encoding(state["donor"], state["donor_slice"], state["observed"])
                after = experiments.swap(model, encoding, donor, level, target=target, **options)
            else:
                made = experiments.drop_experts(model, encoding, [level], targets=[target], **options)
                after = made.images[target]
        return before[0, 0].cpu().numpy(), after[:, 0].cpu().numpy()

    def panels(self, state: State) -> list[Panel]:
        """The truth, the image before, one after the change, and the map of what moved."""
        before, after = self.images_of(state)
        truth, level, target = self._truth(state), state["level"], shown(state["target"])
        inside = self._inside(state)
        panels = [Panel(f"{target}, the truth" if truth is not None else "no truth", truth), Panel("before", before)]
        if state["action"] == "resample":
            moved = np.where(inside, after.std(axis=0, ddof=1), np.nan)
            panels.append(Panel(f"{level} drawn again", after[0]))
            panels.append(Panel(f"std over {state['draws']} draws", moved, "deviation", round_limit(moved)))
            return panels
        change = np.where(inside, after[0] - before, np.nan)
        word = "of the other slice" if state["action"] == "swap" else "from its prior"
        panels.append(Panel(f"{level} {word}", after[0]))
        panels.append(Panel("after - before", change, "difference", round_limit(change)))
        return panels

    def _caption(self, state: State, panels: Sequence[Panel]) -> str:
        level, moved = state["level"], panels[-1].values
        inside = self._inside(state)
        action = {
            "resample": f"{level} drawn {state['draws']} times",
            "swap": f"{level} of {state['donor']}, slice {state['donor_slice']}",
            "prior": f"{level} from its prior",
        }[state["action"]]
        number = float(np.sqrt((moved[inside] ** 2).mean()))
        parts = [note] if (note := super()._caption(state, panels)) else []
        return " · ".join([*parts, action, f"pixels move by {number:.3f} (root mean square)"])

    def _row_label(self, given: Mapping[str, Any], state: State) -> str:
        words = {"resample": "drawn again", "swap": "swapped", "prior": "from prior"}
        return f"{state['level']} {words[state['action']]}"
