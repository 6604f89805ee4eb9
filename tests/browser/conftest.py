"""A real browser on a real JupyterLab: what the browser tests share.

    pytest -m browser tests/browser

They need Playwright's Python package and any Chromium that is installed (nothing is downloaded); without either they
are skipped, and the last lines of the test run say so. Screenshots go to MHVAE_BROWSER_ARTIFACTS, or to pytest's
temporary folder. They run in a process of their own: Playwright's event loop upsets other tests.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_page import Lab, LabServer

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
START_S = 180
_said: list[str] = []


def browser_path() -> str | None:
    """The Chromium to use: MHVAE_BROWSER, or the first that is found."""
    named = os.environ.get("MHVAE_BROWSER")
    return named or next((found for name in CHROMIUMS if (found := shutil.which(name))), None)


def missing() -> str | None:
    """Why there is no browser test on this machine; None when there can be."""
    if browser_path() is None:
        return f"no Chromium found ({', '.join(CHROMIUMS)}); on Debian: apt-get install chromium"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "Playwright is not installed; pip install playwright (its own browsers are not needed)"
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What must not be overlooked: that nothing was tested, or how long the pictures took."""
    for line in _said:
        terminalreporter.write_line(line, bold=True)


@pytest.fixture(scope="session")
def measured() -> list[str]:
    """Lines for the end of the test run."""
    return _said


@pytest.fixture(scope="session")
def executable() -> str:
    reason = missing()
    if reason is not None:
        _said.append(f"BROWSER TESTS DID NOT RUN: {reason}")
        pytest.skip(reason)
    return browser_path()


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory) -> Path:
    """Folder of the screenshots."""
    named = os.environ.get("MHVAE_BROWSER_ARTIFACTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    _said.append(f"browser screenshots: {folder}")
    return folder


@pytest.fixture(scope="module")
def server(executable, tmp_path_factory) -> Iterator[LabServer]:
    """JupyterLab on loopback, with a token, a folder of its own and none of the user's settings."""
    home = tmp_path_factory.mktemp("lab")
    root = home / "root"
    root.mkdir()
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    # Or the first thing on the page is a question about news.
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    folders |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "MHVAE_RUNS": "runs"}
    given = {name: str(home / folder) for name, folder in folders.items()}
    environment = {k: v for k, v in os.environ.items() if k != "MHVAE_HEADLESS"} | given
    options = ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--no-browser"]
    options += ["--LabApp.expose_app_in_browser=True"]  # how tests ask the notebook which cells have run
    options += [f"--ServerApp.root_dir={root}", f"--IdentityProvider.token={token}", "--allow-root"]
    log = home / "lab.log"
    with log.open("w") as sink:
        command = [sys.executable, "-m", "jupyterlab", *options]
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment, cwd=root)
        try:
            running = LabServer(f"http://127.0.0.1:{port}", token, root, log)
            wait_until_it_answers(running, process)
            yield running
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_it_answers(server: LabServer, process: subprocess.Popen) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.fail(f"JupyterLab ended at once:\n{server.log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"{server.url}/api/status?token={server.token}", timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not answer within {START_S} s:\n{server.log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def chromium(executable) -> Iterator[object]:
    """The browser; gone at the end of the file, for while it lives no other test can use an event loop."""
    from playwright.sync_api import sync_playwright

    # Chromium's own sandbox does not work for root.
    root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=[*root, "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def lab(chromium, server, artifacts, request) -> Iterator[Lab]:
    """One page of the browser; what it and the server complained of is looked at when the test is over."""
    page = chromium.new_page(viewport={"width": 1400, "height": 1000})
    opened = Lab(page, server, artifacts, request.node.name)
    yield opened
    opened.screenshot("end")
    complaints = opened.complaints()  # before a kernel that may be at work is ended
    opened.shut_down()
    page.close()
    assert not complaints, "\n".join(complaints)
