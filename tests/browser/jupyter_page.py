"""JupyterLab as a person uses it, in words: open, run all, move a slider, look."""

from __future__ import annotations

import contextlib
import json
import re
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

# All limits are long: they end what hangs, and a test that passes never waits for them.
RUN_S = 400
PAGE_MS = 120_000
PICTURE_S = 120
# Of the notebook itself: cells out of view have no element on the page. A cell that waits or runs has no count.
_CELLS = """() => {
    const panel = window.jupyterapp.shell.currentWidget;
    const all = [...panel.content.model.cells].filter((c) => c.type === 'code' && c.sharedModel.getSource().trim());
    const outputs = all.flatMap((c) => c.outputs.toJSON());
    const error = outputs.find((o) => o.output_type === 'error');
    const idle = panel.sessionContext.session?.kernel?.status === 'idle';
    const ran = all.every((c) => c.executionCount !== null);
    return error ? {error: error.ename + ': ' + error.evalue} : idle && ran && {error: null};
}"""
# Written by the page itself: when a key went down, and when each new picture was there to be seen.
_WATCH = """(image) => {
    window.mhvae = {keys: [], pictures: []};
    document.addEventListener('keydown', () => window.mhvae.keys.push(performance.now()), true);
    image.addEventListener('load', () => window.mhvae.pictures.push(performance.now()));
}"""
_COMPLAINT = re.compile(r"Traceback \(most recent call last\)|^\[E |^\[C |\bERROR\b|no picture:", re.MULTILINE)


@dataclass
class LabServer:
    """A running JupyterLab: its address, token, folder of notebooks and log."""

    url: str
    token: str
    root: Path
    log: Path

    def get(self, path: str, method: str = "GET") -> Any:
        """An answer of the server's API."""
        request = urllib.request.Request(f"{self.url}/api/{path}", method=method)
        request.add_header("Authorization", f"token {self.token}")
        with urllib.request.urlopen(request, timeout=20) as answer:
            content = answer.read()
        return json.loads(content) if content else None


@dataclass
class Lab:
    """One browser page on a server."""

    page: Any
    server: LabServer
    artifacts: Path
    name: str
    errors: list[str] = field(default_factory=list)
    notebook: str = ""
    _log_start: int = 0
    _shots: int = 0

    def __post_init__(self) -> None:
        self._log_start = self.server.log.stat().st_size
        self.page.on("pageerror", lambda error: self.errors.append(f"error on the page: {error}"))

    def open(self, source: Path, **parameters: str) -> None:
        """Copy a notebook into the server's folder, with parameters of its own, and open the copy."""
        node = json.loads(source.read_text(encoding="utf-8"))
        for cell in node["cells"]:
            if cell["cell_type"] == "code":  # nothing that is kept in the file can be taken for what was run here
                cell |= {"outputs": [], "execution_count": None}
            if "parameters" in cell["metadata"].get("tags", ()):
                cell["source"] = _with_values("".join(cell["source"]), parameters)
        self.notebook = source.name
        (self.server.root / source.name).write_text(json.dumps(node), encoding="utf-8")
        address = f"{self.server.url}/lab/tree/{source.name}?reset&token={self.server.token}"
        self.page.goto(address, wait_until="domcontentloaded")
        self.page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=PAGE_MS)
        self.page.locator("#jupyterlab-splash").wait_for(state="detached", timeout=PAGE_MS)

    def start_all(self) -> None:
        """Run > Run All Cells, once there is a kernel to run them: before that JupyterLab drops the command."""
        self.page.locator(".jp-StatusBar-Left, #jp-main-statusbar").get_by_text("| Idle").wait_for(timeout=PAGE_MS)
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    def run_all(self) -> None:
        """Run all cells, and wait until all have run."""
        self.start_all()
        self.wait_for_rest()

    def wait_for_rest(self) -> None:
        """Wait until every cell has run and the kernel rests; an error in a cell fails the test at once."""
        found = self.page.wait_for_function(_CELLS, timeout=RUN_S * 1000, polling=200).json_value()
        assert found["error"] is None, f"{self.notebook}: {found['error']}"

    def saved(self) -> dict[str, Any]:
        """The notebook as it is after saving."""
        path = self.server.root / self.notebook
        before = path.stat().st_mtime_ns
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("Control+s")
        end = time.monotonic() + PAGE_MS / 1000
        while time.monotonic() < end:
            if path.stat().st_mtime_ns != before:
                with contextlib.suppress(nbformat.reader.NotJSONError):  # half written: look again
                    return nbformat.read(path, as_version=4)
            time.sleep(0.2)
        raise AssertionError(f"{self.notebook} was not saved")

    def explorers(self) -> list[Explorer]:
        """All explorers of the notebook, brought onto the page one after the other."""
        self.page.locator(".mhvae-explorer img").first.wait_for(timeout=RUN_S * 1000)
        count = self.page.locator(".mhvae-explorer").count()
        return [Explorer(self, i) for i in range(count)]

    def screenshot(self, what: str) -> Path:
        """Keep what the page looks like now."""
        path = self.shot_path(what)
        self.page.screenshot(path=path)
        return path

    def shot_path(self, what: str) -> Path:
        """Where the next screenshot goes: numbered within the test."""
        self._shots += 1
        name = re.sub(r"[^A-Za-z0-9]+", "_", f"{self.name}_{self._shots}_{what}").strip("_")
        return self.artifacts / f"{name}.png"

    def shut_down(self) -> None:
        """End the kernel, so that the next test has the processors for itself; its last words come before it begins."""
        for kernel in self.server.get("kernels"):
            self.server.get(f"kernels/{kernel['id']}", method="DELETE")
        time.sleep(1)

    def complaints(self) -> list[str]:
        """Errors on the page, and what server and kernel wrote of errors since the page was opened."""
        with self.server.log.open("rb") as log:
            log.seek(self._log_start)
            text = log.read().decode(errors="replace")
        found = [f"log: {text[max(0, m.start() - 200) : m.start() + 1500]}" for m in [_COMPLAINT.search(text)] if m]
        return [*self.errors, *found]


def _with_values(source: str, parameters: dict[str, str]) -> str:
    """The parameters cell with these strings as values."""
    for name, value in parameters.items():
        source, found = re.subn(rf'^({name}: str = )"[^"]*"', rf'\1"{value}"', source, flags=re.MULTILINE)
        assert found == 1, f"no parameter {name}"
    return source


@dataclass
class Explorer:
    """One explorer on the page."""

    lab: Lab
    index: int

    @property
    def box(self) -> Any:
        return self.lab.page.locator(".mhvae-explorer").nth(self.index)

    @property
    def image(self) -> Any:
        return self.box.locator("img").first

    @property
    def title(self) -> str:
        """The description of the picture that is shown: it comes in one message with the picture."""
        return self.image.get_attribute("title") or ""

    @property
    def source(self) -> str:
        return self.image.get_attribute("src") or ""

    @property
    def status(self) -> str:
        return self.box.locator(".mhvae-status").inner_text()

    def screenshot(self, what: str) -> None:
        """Keep what the whole explorer looks like now."""
        self.box.screenshot(path=self.lab.shot_path(f"explorer {self.index} {what}"))

    def row(self, label: str) -> Any:
        """The slider with that description."""
        exact = self.lab.page.locator(".widget-label", has_text=re.compile(rf"^{re.escape(label)}$"))
        return self.box.locator(".widget-slider", has=exact).first

    def labels(self) -> list[str]:
        """Descriptions of all sliders that are on the page."""
        texts = self.box.locator(".widget-slider:visible .widget-label").all_inner_texts()
        return [text.strip() for text in texts if text.strip()]

    def value(self, label: str) -> str:
        """What a slider's readout says, its typographic minus as a plain one."""
        return self.row(label).locator(".widget-readout").inner_text().strip().replace("−", "-")

    def watch(self) -> None:
        """Have the page write down key presses and pictures from now on."""
        self.image.scroll_into_view_if_needed()
        self.image.evaluate(_WATCH)

    def pictures(self) -> int:
        """Pictures shown since `watch`."""
        return self.lab.page.evaluate("window.mhvae.pictures.length")

    def settle(self) -> None:
        """Wait until the status line says that the newest picture is there; an error there fails the test."""
        end = time.monotonic() + PICTURE_S
        calm = 0
        while calm < 3:
            assert time.monotonic() < end, f"still {self.status!r} after {PICTURE_S} s"
            status = self.status
            assert not status.startswith("no picture"), status
            calm = calm + 1 if status.startswith(("ready", "saved")) or not status else 0
            time.sleep(0.1)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until something holds that the page must come to; say what did not when it does not."""
        end = time.monotonic() + PICTURE_S
        while not condition():
            assert time.monotonic() < end, f"{what}: not so after {PICTURE_S} s; {self.title!r}, {self.status!r}"
            time.sleep(0.05)

    def press(self, label: str, key: str) -> float:
        """Press a key on a slider; returns the milliseconds until the new picture was on the page."""
        handle = self.row(label).locator(".noUi-handle").first
        handle.focus()
        before = self.pictures()
        handle.press(key)
        end = time.monotonic() + PICTURE_S
        while self.pictures() == before:
            assert time.monotonic() < end, f"no new picture {PICTURE_S} s after {key} on {label!r}"
            time.sleep(0.01)
        self.settle()
        key_ms, pictures_ms = self.lab.page.evaluate(
            f"[window.mhvae.keys.at(-1), window.mhvae.pictures.slice({before})]"
        )
        return min(at for at in pictures_ms if at >= key_ms) - key_ms

    def drag(self, label: str, start: float, stop: float, steps: int = 50, seconds: float = 2.0) -> None:
        """Drag a slider by mouse between two parts (0 to 1) of its length, fast."""
        track = self.row(label).locator(".noUi-target, .noUi-base").first
        track.scroll_into_view_if_needed()
        area = track.bounding_box()
        handle = self.row(label).locator(".noUi-handle").first.bounding_box()
        mouse, height = self.lab.page.mouse, area["y"] + area["height"] / 2
        mouse.move(handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2)
        mouse.down()
        begun = time.monotonic()
        for i in range(steps):
            part = start + (stop - start) * i / (steps - 1)
            mouse.move(area["x"] + part * area["width"], height)
            time.sleep(max(0.0, begun + seconds * (i + 1) / steps - time.monotonic()))
        mouse.up()
