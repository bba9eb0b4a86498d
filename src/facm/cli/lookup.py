"""Finding a recipe: one of the package's by name, or a function in any file."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Recipe:
    """A function that returns a Run, the name it was asked for by, and the user's file it is in, if any."""

    function: Callable
    spec: str
    file: Path | None = None

    @property
    def name(self) -> str:
        return self.function.__name__.replace("_", "-")


def built_in() -> dict[str, tuple[str, str]]:
    """The package's recipes, name -> (module, first line of the docstring), without importing them."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.stem in ("__init__", "find"):
            continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                summary = (ast.get_docstring(node) or "").partition("\n")[0]
                found[node.name.replace("_", "-")] = (f"facm.recipes.{file.stem}", summary)
    return found


def find(spec: str) -> Recipe:
    """``spec`` is a name such as digits-teacher, or path/to/file.py:function.

    Raises ValueError with what comes close, or with the functions that the file has.
    """
    path, _, function = spec.partition(":")
    if path.endswith(".py"):
        return _from_file(spec, Path(path), function)
    recipes = built_in()
    name = spec.replace("_", "-")
    if name not in recipes:
        close = difflib.get_close_matches(name, recipes)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"unknown recipe {spec!r}: {hint}choose one of {', '.join(recipes)}, or a function in a file, mine.py:run"
        )
    import importlib

    return Recipe(getattr(importlib.import_module(recipes[name][0]), name.replace("-", "_")), name)


def _from_file(spec: str, path: Path, function: str) -> Recipe:
    from facm.runs.folder import load_module

    if not path.exists():
        raise ValueError(f"recipe {spec!r}: there is no file {path}")
    module = load_module(path, path.stem)
    own = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    }
    if function not in own:
        close = difflib.get_close_matches(function, own)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"recipe {spec!r}: {hint}expected {path}:FUNCTION, with one of {', '.join(own) or 'its functions'}"
        )
    return Recipe(own[function], spec, path)
