"""Importing from torch-fidelity, and what imports it, without torchvision."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator

_PACKAGE = "torch_fidelity"


@contextlib.contextmanager
def torch_fidelity_importable() -> Iterator[None]:
    """While modules of torch-fidelity are imported that do not need torchvision.

    The package imports torchvision when it is imported, for networks and data sets that are not used here, and
    torchvision cannot be imported beside every build of PyTorch. So, unless the package is loaded already, its modules
    are imported under an empty package of the same name and folder, which is taken away again: a later
    ``import torch_fidelity`` gives the real one, or its own error. Nothing happens where it is not installed.
    """
    spec = None if _PACKAGE in sys.modules else importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        yield
        return
    stand_in = types.ModuleType(_PACKAGE)
    stand_in.__path__ = list(spec.submodule_search_locations)
    stand_in.__spec__ = spec
    sys.modules[_PACKAGE] = stand_in
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name == _PACKAGE or name.startswith(f"{_PACKAGE}.")]:
            del sys.modules[name]
