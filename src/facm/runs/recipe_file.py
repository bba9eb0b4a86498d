"""A user's recipe file as a module."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_module(file: Path, name: str, folder: Path | None = None) -> ModuleType:
    """A user's recipe file as a module whose name holds its content's hash, so that the copy in a run folder gives
    the same classes. ``folder``: where its own imports are found. Raises ValueError if it cannot be read or run."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the recipe file {file}: {error.strerror or error}") from error
    unique = f"facm_recipe_{name}_{hashlib.sha256(content).hexdigest()[:12]}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is not a Python file")
    home = str((folder or file.parent).resolve())
    if home not in sys.path:
        sys.path.append(home)
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module
