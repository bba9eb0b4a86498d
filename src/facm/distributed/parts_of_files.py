"""Safetensors into tensors that have no values yet: whole, or each rank its own part of each tensor."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


@torch.no_grad()
def read_parts(folder: Path, targets: Mapping[str, Tensor]) -> None:
    """Read ``targets`` by their names from all safetensors in ``folder``.

    Of a sharded tensor a rank reads the rows that it holds; what has another type is converted as it is read. No rank
    waits for another. Raises ValueError naming a tensor that is missing, unknown, or of another shape.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} has no .safetensors, expected weights in it")
    try:
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        _check(folder, targets, {name: tuple(entry.size) for name, entry in found.items()})  # type: ignore[union-attr]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that this is a single process, which each rank is here
            load(dict(targets), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except ValueError:
        raise
    except Exception as error:  # safetensors has errors of its own, and DCP wraps what a file did
        text = " ".join(str(error).split())[:400]
        raise ValueError(f"{folder}: {type(error).__name__}: {text}; expected whole safetensors") from error


def _check(folder: Path, targets: Mapping[str, Tensor], found: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [f"{name} is missing" for name in targets if name not in found]
    wrong += [f"{name} is unknown" for name in found if name not in targets]
    for name, target in targets.items():
        if name in found and found[name] != tuple(target.shape):
            wrong.append(f"{name} is {found[name]}, expected {tuple(target.shape)}")
    if wrong:
        raise ValueError(f"{folder}: weights do not fit config.json: {'; '.join(wrong[:5])}")
