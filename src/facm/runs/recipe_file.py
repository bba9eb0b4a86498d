"""A user's recipe file as a module."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from facm.core.untrusted.door import MOST_TEXT, read_bytes


def read_recipe(file: Path, links: bool = True) -> bytes:
    """A recipe file's content. Raises ValueError if it cannot be read, or is no regular file; links: follow one."""
    try:
        return read_bytes(file, MOST_TEXT, links)
    except OSError as error:
        raise ValueError(f"cannot read the recipe file {file}: {error.strerror or error}") from error


@dataclass(frozen=True)
class RecipeSource:
    """What a run's folder keeps of where its parts are defined.

    name: of the file, without suffix.
    home: the folder where its imports are found.
    content: of the file, byte for byte.
    """

    name: str
    home: Path
    content: bytes


def source_of(recipe: Path | RecipeSource) -> RecipeSource:
    """The same of a user's own recipe file. Raises ValueError if it cannot be read."""
    if isinstance(recipe, RecipeSource):
        return recipe
    return RecipeSource(recipe.stem, recipe.parent, read_recipe(recipe))


@dataclass(frozen=True)
class Recipe:
    """A recipe file that was read and not yet executed.

    file: where it is.
    name: the file's name before it was copied into a run folder, without suffix.
    content: what is executed, whatever happens to the file meanwhile, or lies in a cache of byte code next to it.
    """

    file: Path
    name: str
    content: bytes

    @property
    def module_name(self) -> str:
        """Holds the content's hash, so that the copy in a run folder gives the same classes."""
        return f"facm_recipe_{self.name}_{hashlib.sha256(self.content).hexdigest()[:12]}"

    @property
    def loaded(self) -> ModuleType | None:
        """The module, where this process has executed it."""
        return sys.modules.get(self.module_name)

    def load(self, home: Path) -> ModuleType:
        """The module, executed unless it is loaded. home: the folder where its own imports are found.

        Raises ValueError for a file that is not Python, and what executing it raises.
        """
        if self.loaded is not None:
            return self.loaded
        spec = importlib.util.spec_from_file_location(self.module_name, self.file)
        if spec is None:
            raise ValueError(f"{self.file} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        if (folder := str(home.resolve())) not in sys.path:
            sys.path.append(folder)
        sys.modules[self.module_name] = module
        try:
            exec(compile(self.content, self.file, "exec", dont_inherit=True), vars(module))
        except BaseException:
            del sys.modules[self.module_name]
            raise
        return module


def load_module(file: Path, name: str) -> ModuleType:
    """A recipe file that the user names, as a module. Raises ValueError if it cannot be read or run."""
    return Recipe(file, name, read_recipe(file)).load(file.parent)
