"""The two dependency lists, the version, and what git and the packages carry."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from mhvae_kit import __version__

ROOT = Path(__file__).resolve().parent.parent
# The same library under two names.
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def project() -> dict:
    """pyproject.toml, read by the parser that Python or pip brings."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pip_requirements(python: str = "3.12") -> dict[str, str]:
    """Library -> bounds that pyproject.toml asks of a Python version, tests included."""
    table = project()["project"]
    lines = [*table["dependencies"], *table["optional-dependencies"]["test"]]
    wanted = [Requirement(line) for line in lines]
    marked = {"python_version": python}
    return {w.name: bounds(str(w.specifier)) for w in wanted if not w.marker or w.marker.evaluate(marked)}


def bounds(text: str) -> str:
    return ",".join(sorted(text.replace(" ", "").split(",")))


def conda_requirements() -> dict[str, str]:
    """Library (by its pip name) -> bounds that environment.yml asks for."""
    entries = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    pip = next(entry["pip"] for entry in entries if isinstance(entry, dict))
    lines = [e for e in entries if isinstance(e, str)] + [line for line in pip if not line.startswith("-e")]
    pip_names = {conda: name for name, conda in CONDA_NAMES.items()}
    pairs = [re.fullmatch(r"([A-Za-z0-9_-]+)(.*)", line).groups() for line in lines]
    return {pip_names.get(name, name): bounds(rest) for name, rest in pairs if name not in ("python", "pip")}


def test_conda_and_pip_users_get_the_same_libraries_with_the_same_bounds():
    assert conda_requirements() == pip_requirements()


def test_conda_uses_conda_forge_alone_and_installs_this_folder():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    assert "-e ." in environment["dependencies"][-1]["pip"]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.13"])
def test_each_python_gets_one_snakemake(python):
    assert pip_requirements(python)["snakemake"] == ("<8,>=7.32" if python == "3.10" else ">=9.0")


def test_torch_is_a_range_and_nothing_is_pinned():
    wanted = pip_requirements()
    assert {">", "<"} <= set(wanted["torch"]) and {">", "<"} <= set(wanted["torchvision"])
    assert not [name for name, text in wanted.items() if "==" in text or not text]


def test_every_dependency_has_its_reason_in_contributing():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    reasons = set(re.findall(r"^\| `([a-z0-9_-]+)` \|", text, re.MULTILINE))
    assert reasons == set(pip_requirements()) | {"pulp"}


def test_version_and_licence_agree_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "MIT"
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")


def test_shipped_weights_are_part_of_the_package_and_small():
    assert project()["tool"]["hatch"]["build"]["targets"]["wheel"]["artifacts"] == ["mhvae_kit/weights/**"]
    sizes = {p.name: p.stat().st_size for p in (ROOT / "mhvae_kit" / "weights").rglob("*.safetensors")}
    assert all(size <= 8_000_000 for size in sizes.values()), sizes


@pytest.mark.parametrize("made", [".venv/x", "runs/demo-00_quickstart/results.json", "runs/report-demo/index.html"])
def test_git_ignores_what_make_makes(made):
    if not (ROOT / ".git").exists():
        ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
        assert made.split("/")[0] + "/" in ignored
        return
    assert subprocess.run(["git", "check-ignore", "-q", made], cwd=ROOT, check=False).returncode == 0


def test_ci_is_make_test_and_nothing_else():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    code = [line for line in lines if line and not line.startswith("#")]
    before = [line for line in code if "apt-get" in line or line == "fi"]  # a browser for the tests that want one
    assert [line for line in code if line not in before] == [
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."',
        "make test",
    ]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert [s["run"] for s in workflow["jobs"]["test"]["steps"] if "run" in s] == [".ci/run"]
    assert workflow["jobs"]["test"]["timeout-minutes"] <= 25


def test_notebooks_ask_for_the_kernel_that_every_machine_has():
    import nbformat

    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    names = {path.name: nbformat.read(path, as_version=4).metadata.get("kernelspec", {}).get("name") for path in paths}
    assert set(names.values()) <= {"python3"}, names
