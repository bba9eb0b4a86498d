"""A recipe file for a run that was started from Python: it imports the parts that are not this package's, so that the
run can be opened from anywhere, as one that was started from a recipe file."""

from __future__ import annotations

import sys
from pathlib import Path

from facm.core.public_names import PUBLIC
from facm.core.serialize import to_json, types_in
from facm.runs.config import Run
from facm.runs.recipe_file import RecipeSource

HEAD = '"""Written by facm.train: imports the parts of this run that are not facm\'s."""\n\n'


def recipe_of_parts(run: Run) -> RecipeSource | None:
    """The file; None for a run of this package's parts alone, and where no part is from a module with a file."""
    lines, homes = list[str](), list[Path]()
    for name in sorted(_own(run)):
        module, _, qualified = name.partition(":")
        if (home := _home(module)) is not None:
            lines.append(f"from {module} import {qualified.partition('.')[0]}\n")
            homes.append(home)
    if not lines:
        return None
    elsewhere = [home for home in homes if "site-packages" not in home.parts]
    return RecipeSource("parts", (elsewhere or homes)[0], (HEAD + "".join(dict.fromkeys(lines))).encode())


def defined_here(run: Run) -> list[str]:
    """Names of parts that only this process can find: those of a notebook, or of the script that it runs."""
    return [name.partition(":")[2] for name in sorted(_own(run)) if _home(name.partition(":")[0]) is None]


def _own(run: Run) -> set[str]:
    return types_in(to_json(run)) - set(PUBLIC.values())


def _home(module: str) -> Path | None:
    """The folder that a module is imported from; None for one that cannot be imported by its name."""
    found = sys.modules.get(module)
    file = getattr(found, "__file__", None)
    if module == "__main__" or module.startswith("facm_recipe_") or file is None:
        return None
    parents = Path(file).resolve().parents
    depth = module.count(".") + (Path(file).stem == "__init__")
    return parents[depth] if depth < len(parents) else None
