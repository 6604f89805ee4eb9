"""Finding notebooks and checking the parameters they are given, before anything runs.

A notebook has one cell tagged `parameters`: annotated literals, one a line, such as `seed: int = 0  # random seed`.
papermill would take a misspelt name or the word "false" for a bool without complaint; here both stop the run.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhvae_kit.environment import project_folder, source_folder
from mhvae_kit.errors import DataError, InputError, MissingError, explain
from mhvae_kit.plain import json_safe

PRESETS = ("smoke", "demo", "paper")
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
_TYPES: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "dict": dict}


@dataclass(frozen=True)
class Parameter:
    """One parameter a notebook declares.

    Args:
        name: Its name.
        kind: "bool", "int", "float", "str", "list" or "dict".
        default: Its value in the notebook.
        optional: Whether None is allowed.
        item: Kind of the entries of a list, "" when any.
        help: The comment behind it.
    """

    name: str
    kind: str
    default: Any
    optional: bool = False
    item: str = ""
    help: str = ""

    @property
    def type_name(self) -> str:
        """The declared type as one would write it: int, list[str], float | None."""
        return self.kind + (f"[{self.item}]" if self.item else "") + (" | None" if self.optional else "")


def notebooks_folder() -> Path:
    """The `notebooks/` folder of the project around the working directory, or of the checkout the kit comes from.

    Raises:
        MissingError: There is neither.
    """
    folder = project_folder() or source_folder()
    if folder is None:
        raise MissingError(explain("no notebooks/ folder here", mend="call this inside a clone of mhvae_kit"))
    return folder / "notebooks"


def find_notebook(name: str | Path) -> Path:
    """The path of a notebook given as a path, a name ("02_staged_training") or the start of one ("02").

    Raises:
        MissingError: There is none of that name.
        InputError: Several begin like that.
    """
    path = Path(name).expanduser()
    if path.suffix == ".ipynb" and path.is_file():
        return path.resolve()
    if path.suffix == ".ipynb" and len(path.parts) > 1:
        raise MissingError(explain(f"notebook {name} is not there"))
    folder = notebooks_folder()
    known = sorted(p.stem for p in folder.glob("*.ipynb"))
    stem = path.name.removesuffix(".ipynb")
    fitting = [stem] if stem in known else [k for k in known if k.startswith(stem)]
    if len(fitting) > 1:
        raise InputError(explain(f"{stem!r} could be several notebooks", got=stem, expected=" or ".join(fitting)))
    if not fitting:
        near = difflib.get_close_matches(stem, known, n=1, cutoff=0.5)
        mend = f"the nearest is {near[0]}" if near else f"there are {', '.join(known) or 'none'} in {folder}"
        raise MissingError(explain(f"no notebook is called {stem!r}", mend=mend))
    return folder / f"{fitting[0]}.ipynb"


def read_notebook(path: str | Path) -> dict[str, Any]:
    """Read a notebook file (format 4) as plain JSON, each cell's source as one text.

    nbformat would do the same and check the schema, but importing it takes longer than all the rest of a command.

    Raises:
        MissingError: It is not there.
        DataError: It is no notebook of format 4.
    """
    if not Path(path).is_file():
        raise MissingError(explain(f"notebook {path} is not there"))
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
        if notebook["nbformat"] != 4:
            raise ValueError(f"format {notebook['nbformat']}")
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
        return notebook
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(explain(f"{path} is not a readable notebook of format 4", got=str(error))) from error


def tags(cell: Mapping[str, Any]) -> list[str]:
    """The tags of a cell."""
    return cell.get("metadata", {}).get("tags", [])


def declared_parameters(notebook: Mapping[str, Any], name: str = "the notebook") -> dict[str, Parameter]:
    """The parameters declared by the cell tagged `parameters`.

    Raises:
        DataError: There is not exactly one such cell, or a line of it is no literal with a known type.
    """
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code" and "parameters" in tags(c)]
    if len(cells) != 1:
        raise DataError(
            explain(f"{name} cannot be given parameters", got=f"{len(cells)} cells tagged `parameters`", expected="one")
        )
    source = cells[0]["source"]
    lines = source.splitlines()
    found = {}
    for node in _parsed(source, name).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        parameter = _declared(node, lines[node.end_lineno - 1])
        if parameter is None:
            raise DataError(
                explain(
                    f"a line in the parameters cell of {name} declares no parameter",
                    got=lines[node.lineno - 1].strip(),
                    expected="`name: type = literal`",
                )
            )
        found[parameter.name] = parameter
    return found


def _parsed(source: str, name: str) -> ast.Module:
    """The syntax tree of a parameters cell; DataError when it is no Python."""
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise DataError(explain(f"the parameters cell of {name} is not Python", got=str(error))) from error


def _declared(node: ast.stmt, line: str) -> Parameter | None:
    """One assignment as a Parameter; None when it is anything else."""
    if isinstance(node, ast.AnnAssign):
        target, annotation = node.target, ast.unparse(node.annotation)
    elif isinstance(node, ast.Assign) and len(node.targets) == 1:
        target, annotation = node.targets[0], ""
    else:
        return None
    try:
        default = ast.literal_eval(node.value) if node.value is not None else None
    except ValueError:
        return None
    named = [part.strip() for part in annotation.split("|") if part.strip()]
    optional = "None" in named
    kind = next((part for part in named if part != "None"), type(default).__name__)
    kind, _, item = kind.partition("[")
    kind, item = {"tuple": "list"}.get(kind, kind), item.rstrip("]").split(",")[0].strip()
    if not isinstance(target, ast.Name) or kind not in _TYPES:
        return None
    comment = line.rpartition("#")[2].strip() if "#" in line else ""
    return Parameter(target.id, kind, default, optional, item if item in _TYPES and kind == "list" else "", comment)


def check_parameters(declared: Mapping[str, Parameter], given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Check names and types of given parameters; text, as it comes from a command line or table, is read by type.

    Args:
        declared: What the notebook declares.
        given: Name -> value, or name -> text.
        name: The notebook's name, for the messages.
    Returns:
        Name -> value of the declared type, JSON-safe.
    Raises:
        InputError: A name is unknown (the nearest is suggested), or a value is not of the declared type.
    """
    checked = {}
    for key, value in given.items():
        if key not in declared:
            near = difflib.get_close_matches(key, declared, n=1)
            mend = f"the nearest is {near[0]}" if near else None
            raise InputError(
                explain(f"{name} has no parameter {key!r}", expected="one of " + ", ".join(declared), mend=mend)
            )
        checked[key] = _converted(declared[key], value, name)
    if "preset" in checked and checked["preset"] not in PRESETS:
        raise InputError(
            explain("unknown preset", got=repr(checked["preset"]), expected="one of " + ", ".join(PRESETS))
        )
    return checked


def _converted(parameter: Parameter, value: Any, name: str) -> Any:
    """`value` in the declared type of `parameter`."""
    problem = f"parameter {parameter.name} of {name} has the wrong type"
    wrong = InputError(explain(problem, got=repr(value), expected=_expected(parameter)))
    try:
        if isinstance(value, str):
            return _from_text(value, parameter)
        return _from_value(json_safe(value), parameter)
    except (ValueError, TypeError):
        raise wrong from None


def _expected(parameter: Parameter) -> str:
    """What a parameter accepts, with an example."""
    example = {
        "bool": "true or false",
        "int": "e.g. 3",
        "float": "e.g. 0.5",
        "list": "e.g. [a, b]",
        "dict": "e.g. {a: 1}",
    }
    return parameter.type_name + (f", {example[parameter.kind]}" if parameter.kind in example else "")


def _from_text(text: str, parameter: Parameter) -> Any:
    """Read text as the declared type; ValueError when it is not of it."""
    word = text.strip()
    if parameter.kind == "str":
        return None if parameter.optional and word.lower() in ("none", "null") else text
    if parameter.optional and word.lower() in ("none", "null", ""):
        return None
    if parameter.kind == "bool":
        if word.lower() in _TRUE + _FALSE:
            return word.lower() in _TRUE
        raise ValueError(text)
    if parameter.kind in ("int", "float"):
        return _from_value(_TYPES[parameter.kind](word), parameter)
    import yaml

    try:
        return _from_value(yaml.safe_load(word), parameter)
    except yaml.YAMLError as error:
        raise ValueError(text) from error


def _from_value(value: Any, parameter: Parameter) -> Any:
    """Check a Python value against the declared type; ValueError when it is not of it."""
    if value is None:
        if parameter.optional:
            return None
        raise ValueError("None")
    if parameter.kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, _TYPES[parameter.kind]) or (isinstance(value, bool) and parameter.kind != "bool"):
        raise ValueError(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(value)
    if parameter.item:
        return [_from_value(item, Parameter(parameter.name, parameter.item, None)) for item in value]
    return value
