"""Imports point one way: a module imports from its own layer or from below, and never in a circle."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "mhvae_kit"
# From the ground up. A module that is new has to be given its place here.
LAYERS = (
    {"errors", "files", "plain", "processes", "environment", "memory", "progress", "launch"},
    {"kernels"},
    {"gaussian", "gaussian_kernels", "normals", "config", "config_base", "training_presets"},
    {"networks", "baselines"},
    {"losses", "metrics", "data", "runs", "recording", "parameters"},
    {"training", "evaluation", "synthesis", "segmentation", "figures", "levels", "exercises"},
    {"runner", "notebook_process", "sweeps", "report", "report_style", "run_tables", "commands", "widgets"}
    | {"table1", "degradation"},
    {"gallery", "preparation", "commands_volumes", "cli_errors", "bench"},
    {"cli", "cli_degradation", "cli_prepare", "cli_volumes"},
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}


def unit(path: Path) -> str:
    """The module or subpackage directly below mhvae_kit that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The units of mhvae_kit that a file imports, wherever in the file; relative imports are made absolute."""
    package = ["mhvae_kit", *path.relative_to(PACKAGE).parent.parts]
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            names += [f"{module}.{alias.name}" for alias in node.names] if module == "mhvae_kit" else [module]
    parts = [name.split(".") for name in names if name.split(".")[0] == "mhvae_kit"]
    return {part[1] for part in parts if len(part) > 1 and part[1] != "__version__"}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_module_has_a_place():
    assert {unit(path) for path in FILES} <= set(LAYER_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    above = {name for name in imported(path) if LAYER_OF.get(name, 0) > LAYER_OF[unit(path)]}
    assert not above, f"{path.name} imports from above: {sorted(above)}"


def test_there_are_no_circles():
    graph: dict[str, set[str]] = {}
    for path in FILES:
        graph.setdefault(unit(path), set()).update(imported(path) - {unit(path)})
    while graph:
        free = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert free, f"a circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


def test_no_file_is_longer_than_400_lines():
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_every_library_that_is_imported_is_declared():
    """What is imported by name must be asked for by name, not come along with something else."""
    from test_packaging import pip_requirements

    aliases = {"skimage": "scikit-image", "yaml": "pyyaml", "PIL": "pillow", "SimpleITK": "simpleitk"}
    # These come with a declared library that cannot do without them.
    along = {"traitlets", "nbclient", "IPython", "pygments", "mistune", "jupyter_client", "llvmlite"}
    names = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.split(".")[0])
    outside = {aliases.get(n, n) for n in names - set(sys.stdlib_module_names) - along - {"mhvae_kit"}}
    assert outside <= set(pip_requirements())
