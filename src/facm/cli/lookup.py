"""Recipes and studies by name: the package's own, or a function in any file."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import facm

PACKAGE = Path(facm.__file__).parent
STUDIES = ("stability", "weights", "teacher", "duration", "anchor", "strategies", "collapse", "rivals", "order")
"""In the order of the paper, then our own."""


SPELLED = {"wan22-t2i": "wan2.2-t2i"}
"""Names of recipes that no function can have."""


@dataclass(frozen=True)
class Recipe:
    """A function that returns a Run."""

    function: Callable[..., Any]
    """The function; its arguments are the recipe's options."""
    spec: str
    """The name that the user typed."""
    file: Path | None = None
    """The user's file that defines it; None for one of the package's."""

    @property
    def name(self) -> str:
        """As in ``digits-teacher``."""
        return _spelled(self.function.__name__)


@dataclass(frozen=True)
class FoundStudy:
    """A function that makes a study for one seed."""

    name: str
    """Name of the study and of its folder."""
    function: Callable[..., Any]
    """Takes a :class:`facm.studies.rows.Bench`, returns a :class:`facm.studies.study.Study`."""


def recipes() -> dict[str, tuple[str, str]]:
    """The package's recipes, name -> (module, first line of the docstring), without importing them."""
    found = {}
    for file in sorted((PACKAGE / "recipes").glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                summary = (ast.get_docstring(node) or "").partition("\n")[0]
                found[_spelled(node.name)] = (f"facm.recipes.{file.stem}", summary)
    return found


def _spelled(function: str) -> str:
    name = function.replace("_", "-")
    return SPELLED.get(name, name)


def studies() -> dict[str, str]:
    """The package's studies, name -> first line of the docstring, without importing them."""
    found = {}
    for name in STUDIES:
        tree = ast.parse((PACKAGE / "studies" / "tables" / f"{name}.py").read_text(encoding="utf-8"))
        found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def is_name_of_a_recipe(word: str) -> bool:
    """Whether ``word`` is a recipe of the package, or names a Python file, as a recipe outside it does."""
    return _file_and_function(word) is not None or _spelled(word) in recipes()


def _file_and_function(spec: str) -> tuple[Path, str] | None:
    """The parts of path/to/file.py:function, whose path may have colons of its own; None for a name. Without a function
    its name is empty."""
    path, _, function = (spec, "", "") if spec.endswith(".py") else spec.rpartition(":")
    return (Path(path), function) if path.endswith(".py") else None


def find_recipe(spec: str) -> Recipe:
    """The recipe called ``spec``, a name such as digits-teacher, or path/to/file.py:function.

    Raises ValueError with the names that come close, or with the functions that the file has.
    """
    if (found := _file_and_function(spec)) is not None:
        return Recipe(_function_in_file("recipe", spec, *found), spec, found[0])
    known = recipes()
    name = _spelled(spec)
    if name not in known and ("/" in spec or Path(spec).exists()):
        raise ValueError(
            f"recipe {spec!r}: expected no folder, but a name, such as digits-student (facm list shows all), or a "
            "function in a file, mine.py:run"
        )
    if name not in known:
        raise ValueError(
            f"unknown recipe {spec!r}: {did_you_mean(name, known)}choose one of {', '.join(known)}, or a function "
            "in a file, mine.py:run"
        )
    function = {spelled: plain for plain, spelled in SPELLED.items()}.get(name, name).replace("-", "_")
    return Recipe(getattr(importlib.import_module(known[name][0]), function), name)


def find_object(spec: str) -> Any:
    """What path/to/file.py:NAME is, called where it is a function that needs no arguments; None for anything else.

    Raises ValueError with the names that the file has, or with what the function found missing.
    """
    from facm.runs.recipe_file import load_module

    found = _file_and_function(spec)
    if found is None:
        return None
    path, name = found
    if not path.exists():
        raise ValueError(f"{spec!r}: there is no file {path}")
    module = load_module(path, path.stem)
    own = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    if name not in own:
        raise ValueError(f"{spec!r}: {did_you_mean(name, own)}expected {path}:NAME, with a name that it defines")
    value = own[name]
    if not (inspect.isfunction(value) or inspect.isclass(value)):
        return value
    needed = [p.name for p in inspect.signature(value).parameters.values() if p.default is p.empty and p.kind < 2]
    if needed:
        raise ValueError(
            f"{spec!r} needs the arguments {', '.join(needed)}, expected an object, or a function that needs none and "
            "returns one"
        )
    try:
        return value()
    except (OSError, ValueError) as error:
        raise ValueError(f"{spec!r} raised {type(error).__name__}: {error}") from error


def find_study(spec: str) -> FoundStudy:
    """The study called ``spec``, a name such as stability, or path/to/file.py:function.

    Raises ValueError with what comes close, or with the functions that the file has.
    """
    if (found := _file_and_function(spec)) is not None:
        return FoundStudy(found[1], _function_in_file("study", spec, *found))
    if spec not in STUDIES:
        raise ValueError(
            f"unknown study {spec!r}: {did_you_mean(spec, STUDIES)}expected one of {', '.join(STUDIES)}, or a function "
            "in a file, mine.py:study"
        )
    return FoundStudy(spec, getattr(importlib.import_module(f"facm.studies.tables.{spec}"), spec))


def _function_in_file(kind: str, spec: str, path: Path, function: str) -> Callable[..., Any]:
    from facm.runs.recipe_file import load_module

    if not path.exists():
        raise ValueError(f"{kind} {spec!r}: there is no file {path}")
    module = load_module(path, path.stem)
    own = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    if function not in own:
        raise ValueError(
            f"{kind} {spec!r}: {did_you_mean(function, own)}expected {path}:FUNCTION, with one of "
            f"{', '.join(own) or 'its functions'}"
        )
    found: Callable[..., Any] = own[function]
    return found


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Words of an error that suggest what comes close to ``name``; empty where nothing does."""
    close = difflib.get_close_matches(name, known)
    return f"did you mean {' or '.join(close)}? " if close else ""
