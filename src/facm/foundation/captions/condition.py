"""Prompts as a run's condition, and their null: the embedding of the negative prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm.core.component import component
from facm.core.cond import Cond, chosen, repeated, size
from facm.core.hashing import file_sha256
from facm.core.objective import Condition
from facm.foundation.captions.dataset import padded, part_faults
from facm.foundation.captions.manifest import read_manifest
from facm.foundation.captions.shards import NULL, PROMPTS, read_shard, stamp_of

Kind = tuple[str, torch.device, torch.dtype]
"""Name, device and type of a part of the condition."""


@dataclass(frozen=True)
@component
class Captions(Condition):
    """Prompts as named tensors (B, ...); the null is the embedding of the negative prompt that the data were prepared
    with, as the pipeline guides with it.

    ``null`` raises ValueError where the folder has none, or another one than its manifest says.
    """

    path: str
    """Folder of prepared data, of which null.safetensors and manifest.json are read."""

    def null(self, cond: Any) -> Cond:
        """The null for as many samples as ``cond``, on its device and in its types, without memory for the copies."""
        cond = self._named(cond)
        n = size(cond)
        assert n is not None
        kinds = tuple((name, value.device, value.dtype) for name, value in sorted(cond.items()))
        return repeated(_null(self.path, self._stamp(), kinds), n)

    def check(self, cond: Any, n: int) -> None:
        cond = self._named(cond)
        if size(cond) != n:
            raise ValueError(f"Captions: embeddings of {size(cond)} prompts, expected {n}")
        null = _stored(self.path, self._stamp())
        if cond.keys() != null.keys():
            raise ValueError(f"Captions: parts {', '.join(sorted(cond))}, expected {', '.join(sorted(null))}")
        for name, value in cond.items():
            if value.shape[min(2, value.ndim) :] != null[name].shape[min(2, value.ndim) :] or (
                value.ndim != null[name].ndim
            ):
                raise ValueError(
                    f"Captions: {name} has shape {tuple(value.shape)}, expected that of the null in {self.path}, "
                    f"{tuple(null[name].shape)}, for {n} prompts"
                )

    def drop(self, cond: Any, dropped: Tensor) -> Cond:
        return chosen(dropped, self.null(cond), cond)

    def _stamp(self) -> tuple[int, ...]:
        """Which null it is: the folder may have been prepared anew."""
        return stamp_of(Path(self.path).expanduser() / NULL)

    def _named(self, cond: Any) -> dict[str, Tensor]:
        if not isinstance(cond, Mapping) or not cond:
            raise ValueError(
                f"Captions: cond is {type(cond).__name__}, expected named tensors, as Captioned({self.path!r}) has them"
            )
        return dict(cond)


@lru_cache(maxsize=16)
def _null(path: str, stamp: tuple[int, ...], kinds: tuple[Kind, ...]) -> dict[str, Tensor]:
    """The null of one sample, (1, ...) each, of these devices and types."""
    stored = _stored(path, stamp)
    names = {name for name, _, _ in kinds}
    if names != stored.keys():
        raise ValueError(f"Captions: parts {', '.join(sorted(names))}, expected {', '.join(sorted(stored))}")
    return {name: stored[name].to(device, dtype) for name, device, dtype in kinds}


@lru_cache(maxsize=16)
def _stored(path: str, stamp: tuple[int, ...]) -> dict[str, Tensor]:
    folder = Path(path).expanduser()
    manifest = read_manifest(folder)
    file = folder / NULL
    found = file_sha256(file)
    if found != manifest.null_sha256:
        raise ValueError(f"{file}: sha256 {found[:16]}..., expected {manifest.null_sha256[:16]}... by manifest.json")
    shard = read_shard(file, PROMPTS)
    faults = part_faults(shard, manifest)
    if faults or shard.n != 1:
        raise ValueError(f"{file}: {faults[0] if faults else f'{shard.n} prompts, expected 1'}")
    row = shard.prompt(0)[1]
    return {part.name: padded([row[part.name]], part) for part in manifest.parts}
