"""What all explorers share: one picture, one thread that makes it, a state, and a button that saves it.

Callbacks only write the wanted state down and return; a thread of the explorer makes the picture of the newest one.
With ipykernel 7 callbacks run beside cells, so nothing here uses pyplot, an Output widget or a global random number.
"""

from __future__ import annotations

import copy
import hashlib
import html
import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure
from traitlets import Unicode

from mhvae_kit.errors import InputError, KitError, RunError, explain
from mhvae_kit.files import atomic_path
from mhvae_kit.runs import default_root
from mhvae_kit.widgets.latest import Latest
from mhvae_kit.widgets.pictures import Picture

State = dict[str, Any]
_log = logging.getLogger("mhvae_kit.widgets")
_STATIC = "run this cell in Jupyter to bring the controls to life"
# Plain dicts: a Layout made here would be a widget of its own as soon as the module is imported.
SLIDER = {"layout": {"width": "24rem"}, "style": {"description_width": "8rem"}}
WIDE = {**SLIDER, "layout": {"width": "32rem"}}
TICK = {"indent": False, "layout": {"width": "auto", "margin": "2px .6rem"}}  # apart, or a box seems its neighbour's


class DescribedImage(widgets.Image):
    """An image widget with a text for those who cannot see it.

    The front end has no alt text for images; it writes `tooltip` as the title, which screen readers take in its
    place, but only where the model has a description that is empty. An image widget has none, so this adds it.
    """

    description = Unicode("", read_only=True).tag(sync=True)


class Explorer(ABC):
    """Base of the explorers; a subclass says how controls, states and pictures belong together.

    Args:
        controls: What the reader sees above the picture.
        inputs: The controls among them whose value is part of the state.
        save_to: Folder of saved pictures; None = `pictures/` in the folder of all runs.
    Attributes:
        box: The widget.
        latest: The thread's counts of what was asked for and what was made.
    """

    name = "explorer"

    def __init__(
        self, controls: Sequence[widgets.Widget], inputs: Iterable[widgets.Widget], save_to: str | Path | None = None
    ) -> None:
        self.latest: Latest[State] = Latest(self._work)
        self._save_to = Path(save_to) if save_to is not None else None
        self._quiet = False
        self._picture: tuple[State, Picture] | None = None
        self.image = DescribedImage(format="png")
        self.beside = widgets.HTML()
        self.caption = widgets.HTML()
        self.status = widgets.HTML()
        self.save_button = widgets.Button(description="save PNG", icon="save", layout=widgets.Layout(width="auto"))
        self.save_button.on_click(self._save_clicked)
        for control in inputs:
            control.observe(self._changed, "value")
        # Not stretched, as a row does by itself: the picture would be drawn out to the height of what stands beside it.
        place = widgets.Layout(flex_flow="row wrap", align_items="flex-start")
        shown = widgets.HBox([self.image, self.beside], layout=place)
        foot = widgets.HBox([self.save_button, self.status], layout=widgets.Layout(align_items="center"))
        self.box = widgets.VBox([*controls, shown, self.caption, foot]).add_class("mhvae-explorer")
        state = self.state
        self._show(state, self._render(state))
        self.status.value = _said("ready")

    @abstractmethod
    def _read(self) -> State:
        """The state of the controls, as JSON types."""

    @abstractmethod
    def _write(self, state: State) -> None:
        """Put a checked state into the controls."""

    @abstractmethod
    def _check(self, state: State) -> State:
        """The state, complete and usable. Raises InputError where it is not."""

    @abstractmethod
    def _render(self, state: State) -> Picture:
        """Make the picture of a state. Runs in any thread; touches no widget."""

    @abstractmethod
    def figure(self, *changes: Mapping[str, Any], title: str | None = None) -> Figure:
        """A static figure of the state, or of several: a row for each dict of changes from it."""

    @property
    def state(self) -> State:
        """What is set now; assign a dict with some or all of its keys to set them and ask for the picture."""
        return self._read()

    @state.setter
    def state(self, changes: Mapping[str, Any]) -> None:
        wanted = self._changed_state(changes)
        with self._quietly():
            self._write(wanted)
        self._ask()

    def picture(self, **changes: Any) -> bytes:
        """The picture of the state, or of the state with these changes, as PNG. The widget stays as it is."""
        return self._render(self._changed_state(changes)).png

    def description(self, **changes: Any) -> str:
        """What that picture shows, in a sentence: the alt text of a static figure of the same state."""
        return self._render(self._changed_state(changes)).alt

    def wait(self, timeout_s: float = 60) -> None:
        """Wait until the picture of the newest state is shown.

        Raises:
            RunError: It took longer.
        """
        if not self.latest.wait(timeout_s):
            raise RunError(explain("the picture is still being computed", got=f"{timeout_s:g} s of waiting"))

    def save(self, path: str | Path | None = None) -> Path:
        """Save the picture of the newest state; its settings are kept inside the file under the name mhvae_kit.

        Args:
            path: A .png file; None = a name made of the settings, in the folder given at the start.
        """
        self.wait()
        return self._save(path)

    def close(self) -> None:
        """Take the widget off the page and end its thread."""
        self.latest.close()
        self.box.close()

    def __repr__(self) -> str:
        alt = self._picture[1].alt if self._picture else ""
        return f"{type(self).__name__}: {alt} ({_STATIC})"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = dict(self.box._repr_mimebundle_(**options) or {})
        bundle["text/plain"] = repr(self)
        return bundle

    def _changed_state(self, changes: Mapping[str, Any]) -> State:
        state = self._read()
        if unknown := sorted(set(changes) - set(state)):
            raise InputError(
                explain(f"{type(self).__name__} has no setting {', '.join(unknown)}", expected=", ".join(state))
            )
        return self._check(merged(state, changes))

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Change several controls as one change."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _changed(self, change: Any = None) -> None:
        """A control has moved."""
        if not self._quiet:
            self._ask()

    def _ask(self) -> None:
        """Want the picture of what is set now. Before the request goes out, so that "ready" is always said last."""
        self.status.value = _said("computing…")
        self.latest.ask(self._read())

    def _work(self, state: State) -> None:
        """In the explorer's thread: make one picture and show it. An error is shown and logged, never swallowed."""
        started = time.perf_counter()
        try:
            self._show(state, self._render(state))
        except KitError as error:
            _log.warning("%s: %s", type(self).__name__, error)
            self.status.value = _said(f"no picture: {error}", alert=True)
        except Exception as error:  # whatever it is, it belongs on the page: nobody reads a thread's traceback
            _log.exception("%s could not make its picture", type(self).__name__)
            self.status.value = _said(f"no picture: {type(error).__name__}: {error}", alert=True)
        else:
            if not self.latest.waiting:
                self.status.value = _said(f"ready in {1000 * (time.perf_counter() - started):.0f} ms")

    def _show(self, state: State, picture: Picture) -> None:
        """Put a picture on the page: size, content and description in one message."""
        with self.image.hold_sync():
            self.image.width, self.image.height = str(picture.size[0]), str(picture.size[1])
            self.image.value = picture.png
            self.image.tooltip = picture.alt
        self.caption.value = f'<p style="margin:0;line-height:1.4">{html.escape(picture.caption)}</p>'
        self.beside.value = picture.beside
        self._picture = (state, picture)

    def _save_clicked(self, button: widgets.Button) -> None:
        """Save what is on the page now, even while a newer picture is being made."""
        try:
            path = self._save(None)
        except (KitError, OSError) as error:
            _log.warning("%s: %s", type(self).__name__, error)
            self.status.value = _said(f"not saved: {error}", alert=True)
        else:
            self.status.value = _said(f"saved as {path.parent.name}/{path.name}")

    def _save(self, path: str | Path | None) -> Path:
        state, picture = self._picture
        if path is None:
            mark = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:8]
            path = (self._save_to or default_root() / "pictures") / f"{self._file_stem(state)}-{mark}.png"
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise InputError(explain("pictures are saved as PNG", got=path.name, expected="a name that ends in .png"))
        with atomic_path(path) as temporary:
            temporary.write_bytes(picture.png)
        return path

    def _file_stem(self, state: State) -> str:
        """Start of the name of a saved picture."""
        return self.name


def merged(state: Mapping[str, Any], changes: Mapping[str, Any]) -> State:
    """The state with changes; a dict inside it is changed key by key."""
    result = copy.deepcopy(dict(state))
    for key, value in changes.items():
        inside = isinstance(value, Mapping) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if inside else copy.deepcopy(value)
    return result


def number_between(name: str, value: Any, low: float, high: float) -> float:
    """A state's number, refused by name when it is none or outside its slider."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value <= high:
        raise InputError(
            explain(f"{name} cannot be set", got=repr(value), expected=f"a number from {low:g} to {high:g}")
        )
    return float(value)


def whole_between(name: str, value: Any, low: int, high: int) -> int:
    """A state's whole number, refused by name when it is none or out of bounds."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:
        raise InputError(explain(f"{name} cannot be set", got=repr(value), expected=f"a whole number, {low} to {high}"))
    return int(value)


def one_of(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """A state's choice, refused by name when there is none such."""
    if value not in choices:
        some = ", ".join(map(str, choices[:6])) + (", …" if len(choices) > 6 else "")
        raise InputError(explain(f"{name} cannot be set", got=repr(value), expected=f"one of {some}"))
    return value


def _said(text: str, alert: bool = False) -> str:
    """The status line."""
    style = "color:var(--jp-error-color1,#9a2a1d)" if alert else "color:var(--jp-ui-font-color2,#5a6775)"
    role = "alert" if alert else "status"
    return f'<span role="{role}" class="mhvae-status" style="{style}">{html.escape(text)}</span>'
