"""What the explorers of a model share: choosing patient, slice, observed images and target, and naming the result."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from mhvae_kit.config import Modality
from mhvae_kit.data.slices import CaseVolumes
from mhvae_kit.errors import InputError, explain
from mhvae_kit.figures.style import modality_label as shown
from mhvae_kit.metrics import psnr
from mhvae_kit.networks.mhvae import MHVAE
from mhvae_kit.widgets.base import SLIDER, TICK, WIDE, Explorer, State, number_between, one_of, whole_between
from mhvae_kit.widgets.latents import Latents
from mhvae_kit.widgets.pictures import Panel, Picture, panel_figure, strip
from mhvae_kit.widgets.sources import NiftiVolumes, Paths, Slices

MAX_TEMPERATURE = 1.2
MAX_NOISE = 10**6
ROW = {"flex_flow": "row wrap", "align_items": "center"}
_ONE_CASE = "own patient"
AnyExplorer = TypeVar("AnyExplorer", bound="SliceExplorer")


class SliceExplorer(Explorer):
    """An explorer of what a model makes of one slice.

    Args:
        model: The model.
        dataset: Where the slices come from, at the model's size; see `from_nifti` for other volumes.
        case, slice_index: What is shown first; None = a test patient if there is one, and its middle slice.
        observed: Modalities that the model is shown; None = all but the target.
        target: Modality that it makes.
        temperature: Spread of all draws, 0 to 1.2; 0 takes every level's mean.
        save_to: Folder of saved pictures; None = `pictures/` in the folder of all runs.
    Raises:
        InputError: The data do not fit the model, or a setting does not exist; the message names it.
    """

    def __init__(
        self,
        model: MHVAE,
        dataset: CaseVolumes,
        *,
        case: str | None,
        slice_index: int | None,
        observed: Iterable[Modality] | None,
        target: Modality,
        temperature: float,
        save_to: str | Path | None,
    ) -> None:
        self.slices = Slices(dataset, model.config)
        self.latents = Latents(model, self.slices)
        one_of("target", target, model.config.modalities)
        rest = [m for m in self.slices.modalities if m != target]
        observed = (observed,) if isinstance(observed, str) else observed
        self._make_controls(rest or list(self.slices.modalities), target)
        extra = self._extra_controls()
        inputs = [self._slice, *self._observed.values(), self._target, self._temperature]  # the patient: see below
        state = {"temperature": temperature}
        state |= {"case": self.slices.first_case() if case is None else case}
        state |= {} if observed is None else {"observed": list(observed)}
        self._case_known(state["case"])
        state["slice"] = self.slices.count(state["case"]) // 2 if slice_index is None else slice_index
        self._write(self._changed_state(state))
        self._case.observe(self._case_changed, "value")
        super().__init__([*self._shared_rows(), *extra["rows"]], [*inputs, *extra["inputs"]], save_to)

    @classmethod
    def from_nifti(
        cls: type[AnyExplorer],
        volumes: Paths | Mapping[str, Paths],
        model: MHVAE,
        *,
        axes: tuple[int, int, int] = (0, 1, 2),
        fov: str | Path | Mapping[str, str | Path] | None = None,
        **options: Any,
    ) -> AnyExplorer:
        """The explorer on your own volumes: {"t2": path, ...} of one patient, or {"name": {"t2": path, ...}, ...}.

        Slices are cut or filled with background to the model's size, never resampled; volumes that are not 8-bit are
        mapped from the smallest to the 99.95th percentile of what is above 0. What was done stands under the picture.

        Args:
            volumes: NIfTI files of one grid for each patient, background 0.
            model: The model; the volumes should have the pixel size it was trained at.
            axes: Which array axes are rows (along the beam), columns and slices.
            fov: NIfTI mask of the field of view, or one by patient; without it scores are of the full frame.
            options: As for the class.
        Raises:
            MissingError, DataError, InputError: See `NiftiVolumes`.
        """
        nested = bool(volumes) and all(isinstance(v, Mapping) for v in volumes.values())
        cases = volumes if nested else {_ONE_CASE: volumes}
        masks = fov if fov is None or isinstance(fov, Mapping) else {_ONE_CASE: fov}
        unknown = sorted({m for paths in cases.values() for m in paths} - set(model.config.modalities))
        if unknown:
            raise InputError(
                explain("the model knows no such modality", got=unknown, expected=", ".join(model.config.modalities))
            )
        return cls(model, NiftiVolumes(cases, model.config.image_size, axes=axes, fov=masks), **options)

    @abstractmethod
    def _extra_controls(self) -> dict[str, list[widgets.Widget]]:
        """The subclass's own controls: "rows" as they are laid out, and "inputs" among them."""

    @abstractmethod
    def panels(self, state: State) -> list[Panel]:
        """The images of a state, left to right."""

    def figure(self, *changes: Mapping[str, Any], title: str | None = None) -> Figure:
        """A static figure of the state, or of several: a row for each dict of changes from it.

        Args:
            changes: For example {"temperature": 0.2}, {"temperature": 0.7}; none = the state as it is.
            title: Title; the name of the data is added.
        """
        states = [self._changed_state(c) for c in (changes or ({},))]
        rows: dict[str, list[Panel]] = {}
        for given, state in zip(changes or ({},), states, strict=True):
            label = self._row_label(given, state)
            rows[label if label not in rows else f"{label} ({len(rows) + 1})"] = self.panels(state)
        rows = _one_scale(rows)
        first = title or f"{type(self).__name__.removesuffix('Explorer')}: {self._direction(states[0])}"
        return panel_figure(rows, data=self.slices.name, title=first, spacing_mm=self.slices.spacing_mm)

    def _make_controls(self, observed: Sequence[Modality], target: Modality) -> None:
        """Patient, slice, observed, target and temperature."""
        seen = set(self.latents.model.card.get("training_cases", ()))
        cases = [(f"{case} (trained on)" if case in seen else case, case) for case in self.slices.cases]
        self._case = widgets.Dropdown(description="patient", options=cases, **SLIDER)
        self._slice = widgets.IntSlider(description="slice", min=0, max=self.slices.count(cases[0][1]) - 1, **SLIDER)
        self._observed = {
            m: widgets.Checkbox(description=f"observe {shown(m)}", value=m in observed, **TICK)
            for m in self.slices.modalities
        }
        models = self.latents.model.config.modalities
        self._target = widgets.Dropdown(
            description="make", options=[(shown(m), m) for m in models], value=target, **SLIDER
        )
        self._temperature = widgets.FloatSlider(
            description="temperature τ", min=0, max=MAX_TEMPERATURE, step=0.05, readout_format=".2f", **WIDE
        )

    def _shared_rows(self) -> list[widgets.Widget]:
        return [
            widgets.HBox([self._case, self._slice], layout=ROW),
            widgets.HBox([self._target, *self._observed.values()], layout=ROW),
            self._temperature,
        ]

    def _read(self) -> State:
        return {
            "case": self._case.value,
            "slice": self._slice.value,
            "observed": [m for m, box in self._observed.items() if box.value],
            "target": self._target.value,
            "temperature": self._temperature.value,
        }

    def _write(self, state: State) -> None:
        self._case.value = state["case"]
        self._slice.max = self.slices.count(state["case"]) - 1
        self._slice.value = state["slice"]
        for m, box in self._observed.items():
            box.value = m in state["observed"]
        self._target.value = state["target"]
        self._temperature.value = state["temperature"]

    def _check(self, state: State) -> State:
        self._case_known(state["case"])
        observed = state["observed"]
        observed = [observed] if isinstance(observed, str) else list(observed)
        for m in observed:
            one_of("observed", m, self.slices.modalities)
        one_of("target", state["target"], self.latents.model.config.modalities)
        checked = {
            "slice": whole_between("slice", state["slice"], 0, self.slices.count(state["case"]) - 1),
            "observed": [m for m in self.slices.modalities if m in observed],
            "temperature": number_between("temperature", state["temperature"], 0, MAX_TEMPERATURE),
        }
        return {**state, **checked}

    def _case_known(self, case: str) -> None:
        one_of("case", case, self.slices.cases)

    def _case_changed(self, change: Mapping[str, Any]) -> None:
        """Another patient may have fewer slices: the slider is mended before the picture is asked for."""
        if not self._quiet:
            with self._quietly():
                self._slice.max = self.slices.count(change["new"]) - 1
            self._ask()

    def _render(self, state: State) -> Picture:
        panels = self.panels(state)
        caption, footer = self._caption(state, panels), self._footer(state)
        png, size = strip(
            panels,
            footer,
            shape=self.slices.shape,
            spacing_mm=self.slices.spacing_mm,
            record={"explorer": type(self).__name__, "data": self.slices.name, **state},
        )
        seen = "; ".join(panel.title for panel in panels)
        return Picture(png, size, caption, f"{footer}. Left to right: {seen}. {caption}".strip())

    def _footer(self, state: State) -> str:
        """The line inside the picture, which a saved one carries along: what it is of and how it was made."""
        what = f"{self.slices.name} · {state['case']}, slice {state['slice']}"
        return f"{what} · {self._direction(state)} · τ = {state['temperature']:.2f}"

    def _caption(self, state: State, panels: Sequence[Panel]) -> str:
        """The line under the picture: what the footer has no room for, and what came out."""
        return self.slices.note(state["case"])

    def _direction(self, state: State) -> str:
        """T2 + US → US."""
        return f"{' + '.join(shown(m) for m in state['observed']) or 'nothing (prior)'} → {shown(state['target'])}"

    def _row_label(self, given: Mapping[str, Any], state: State) -> str:
        """Title of a row of a figure: what differs in it."""
        words = {"temperature": "τ", "case": "", "target": "make", "level_factors": "factor"}
        parts = [f"{words.get(k, k)} {_plain(v)}".strip() for k, v in given.items()]
        return ", ".join(parts) or f"slice {state['slice']}"

    def _truth(self, state: State) -> np.ndarray | None:
        """The real image of the target; None when the data have none."""
        if state["target"] not in self.slices.modalities:
            return None
        return self.slices.plane(state["case"], state["slice"], state["target"])

    def _inside(self, state: State) -> np.ndarray:
        """Where differences and scores are taken: the field of view, or the full frame where none is known."""
        fov = self.slices.fov(state["case"], state["slice"])
        return np.ones(self.slices.shape, bool) if fov is None or not fov.any() else fov

    def _score(self, image: np.ndarray, state: State) -> str:
        """PSNR against the truth; "" without one."""
        truth = self._truth(state)
        if truth is None:
            return ""
        inside = self._inside(state)
        where = "full frame" if inside.all() else "in fan"
        return f"PSNR {psnr(image, truth, data_range=2.0, mask=inside)[0]:.1f} dB {where}"

    def _file_stem(self, state: State) -> str:
        return f"{self.name}-{state['case']}-slice{state['slice']}-{state['target']}".replace(" ", "_")


def _one_scale(rows: Mapping[str, Sequence[Panel]]) -> dict[str, list[Panel]]:
    """The rows of a figure with one colour scale for each kind of map, so that they can be compared."""
    limits: dict[str, float] = {}
    for panel in (panel for panels in rows.values() for panel in panels):
        limits[panel.kind] = max(limits.get(panel.kind, 0.0), panel.limit)
    return {name: [replace(panel, limit=limits[panel.kind]) for panel in panels] for name, panels in rows.items()}


def _plain(value: Any) -> str:
    """A changed setting for a row title."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} × {_plain(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return "+".join(map(str, value)) or "nothing"
    return f"{value:g}" if isinstance(value, float) else str(value)
