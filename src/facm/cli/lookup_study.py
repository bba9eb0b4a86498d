"""Finding a study: one of the package's by name, or a function in any file."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from facm.runs.folder import load_module
from facm.studies.rows import Bench
from facm.studies.study import Study

NAMES = ("stability", "weights", "teacher", "duration", "anchor", "strategies", "collapse", "rivals")


@dataclass(frozen=True)
class Found:
    """A function that makes a study for one seed, and its name."""

    name: str
    function: Callable[[Bench], Study]


def built_in() -> dict[str, str]:
    """The package's studies, name -> first line of what they say, without importing them."""
    said = {}
    for name in NAMES:
        tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
        said[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return said


def find_study(spec: str) -> Found:
    """``spec`` is a name such as stability, or path/to/file.py:function.

    Raises ValueError with what comes close, or with the functions that the file has.
    """
    path, _, function = spec.partition(":")
    if path.endswith(".py"):
        return _from_file(spec, Path(path), function)
    if spec not in NAMES:
        close = difflib.get_close_matches(spec, NAMES)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"unknown study {spec!r}: {hint}expected one of {', '.join(NAMES)}, or a function in a file, mine.py:study"
        )
    return Found(spec, getattr(importlib.import_module(f"facm.studies.{spec}"), spec))


def _from_file(spec: str, path: Path, function: str) -> Found:
    if not path.exists():
        raise ValueError(f"study {spec!r}: there is no file {path}")
    module = load_module(path, path.stem)
    own = [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    if function not in own:
        raise ValueError(f"study {spec!r}: expected {path}:FUNCTION, with one of {', '.join(own) or 'its functions'}")
    return Found(function, getattr(module, function))
