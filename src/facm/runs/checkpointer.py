"""Checkpoints of any engine, read by any other: a single file where tensors are whole, a directory where sharded.

A directory holds safetensors files written by torch.distributed.checkpoint, one a rank, and ``checkpoint.json`` with
the record and the sha256 of every file. It is written beside and renamed, so it is there whole or not at all. Neither
kind has pickled code in it; reading needs no process group.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm.core.files import sync, write_text
from facm.core.state_dict import CheckpointError
from facm.distributed.collectives import by_first, gathered, meet
from facm.distributed.process_group import ALONE, World
from facm.distributed.wrap import fill, is_sharded
from facm.runs import checkpoint
from facm.runs.checkpoint import Checkpoint

FORMAT = "facm-sharded-checkpoint-1"
RECORD = "checkpoint.json"


@dataclass(frozen=True)
class Stored:
    """A verified checkpoint on disk: its record, the tensors' shapes and types, and a hash of all of it."""

    path: Path
    meta: dict[str, Any]
    sha256: str
    shapes: dict[str, tuple[torch.Size, torch.dtype]]
    whole: Checkpoint | None = None  # of a single file, which is read at once

    def names(self, prefix: str) -> list[str]:
        """Of the tensors under ``prefix/``, without it."""
        return [name[len(prefix) + 1 :] for name in self.shapes if name.startswith(f"{prefix}/")]

    def fill(self, targets: Mapping[str, Tensor]) -> None:
        """Copy the named tensors into ``targets``, whole or sharded, reading no more than this rank's part.

        Raises CheckpointError for names it does not have and for other shapes.
        """
        for name, target in targets.items():
            found = self.shapes.get(name, (None,))[0]
            if found != target.shape:
                what = "is missing" if found is None else f"has shape {tuple(found)} instead of {tuple(target.shape)}"
                raise CheckpointError(f"{self.path}: {name} {what}")
        if self.whole is not None:
            for name, target in targets.items():
                fill(target, self.whole.tensors[name])
            return
        import torch.distributed.checkpoint as dcp

        with _dcp(f"could not read {self.path}"):
            dcp.load(dict(targets), storage_reader=dcp.HuggingFaceStorageReader(str(self.path)), no_dist=True)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The whole tensors under ``prefix/``, without it; all of them for ''."""
        start = f"{prefix}/" if prefix else ""
        names = [name for name in self.shapes if name.startswith(start)]
        if self.whole is not None:
            return {name[len(start) :]: self.whole.tensors[name] for name in names}
        tensors = {name: torch.empty(self.shapes[name][0], dtype=self.shapes[name][1]) for name in names}
        self.fill(tensors)
        return {name[len(start) :]: value for name, value in tensors.items()}


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], world: World = ALONE) -> Path:
    """Write a checkpoint: ``path`` itself where all tensors are whole (by the first rank), else the directory of that
    name without its suffix (by all). Returns what was written, when it is there for all ranks.

    Raises CheckpointError, the older ones untouched, where it cannot be written.
    """
    if not any(is_sharded(value) for value in tensors.values()):
        by_first(world, lambda: checkpoint.save(path, tensors, meta))
        return path
    target = directory_of(path)
    try:
        _save_sharded(target, tensors, meta, world)
    except OSError as error:
        raise CheckpointError(f"could not save {target}: {error}; earlier checkpoints are untouched") from error
    return target


def directory_of(path: Path) -> Path:
    """The directory that stands for the single file ``path``."""
    return path.with_name(path.name.removesuffix(".safetensors"))


def _save_sharded(target: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], world: World) -> None:
    import torch.distributed.checkpoint as dcp

    partial = target.with_name(f".{target.name}.partial")

    def begin() -> None:
        remove(partial)
        partial.mkdir(parents=True)

    by_first(world, begin)
    try:
        with _dcp(f"could not save {target}, earlier checkpoints are untouched"):
            writer = dcp.HuggingFaceStorageWriter(str(partial), save_distributed=True)
            dcp.save(dict(tensors), storage_writer=writer)
        mine = sorted(partial.glob(f"shard-{world.rank + 1:05d}-*.safetensors"))
        hashes = {}
        for file in mine:
            hashes[file.name] = _sha256(file)
            sync(file)
        meet(world)
        files = {name: value for rank in gathered(world, hashes) for name, value in rank.items()}

        def end() -> None:
            content = {"meta": dict(meta), "files": files}
            write_text(partial / RECORD, json.dumps({"format": FORMAT, "sha256": _hash(content), **content}))
            remove(target)  # the same clock again; a directory cannot be renamed over another
            os.replace(partial, target)
            sync(target.parent)

        by_first(world, end)
    except BaseException:
        if world.first:
            with contextlib.suppress(OSError):
                remove(partial)
        raise


def open_stored(path: Path, world: World = ALONE) -> Stored:
    """A checkpoint, verified; of a directory's files each rank reads its share for that.

    Raises CheckpointError naming the file and what is wrong with it.
    """
    if not path.is_dir():
        saved = checkpoint.load(path)
        return Stored(path, saved.meta, saved.sha256, {n: (v.shape, v.dtype) for n, v in saved.tensors.items()}, saved)
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        content = {"meta": record["meta"], "files": record["files"]}
        whole = record["format"] == FORMAT and record["sha256"] == _hash(content)
    except OSError as error:
        raise CheckpointError(f"{path} is incomplete: cannot read its {RECORD} ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: its {RECORD} is not a checkpoint's record ({error})") from error
    if not whole:
        raise CheckpointError(f"{path} is damaged: its {RECORD} does not match its digest")
    wrong = ""
    for name in sorted(record["files"])[world.rank :: world.ranks]:
        file = path / Path(name).name
        if not file.exists():
            wrong = wrong or f"{path} is incomplete: {name} is missing"
        elif _sha256(file) != record["files"][name]:
            wrong = wrong or f"{path} is damaged: {name} does not match its digest"
    for found in gathered(world, wrong):
        if found:
            raise CheckpointError(found)
    import torch.distributed.checkpoint as dcp

    metadata = dcp.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    shapes = {name: (entry.size, entry.properties.dtype) for name, entry in sorted(metadata.items())}  # type: ignore[union-attr]
    return Stored(path, record["meta"], record["sha256"], shapes)


def load(path: Path) -> Checkpoint:
    """A checkpoint of either kind, all of it in main memory. Raises CheckpointError."""
    if not path.is_dir():
        return checkpoint.load(path)
    stored = open_stored(path)
    return Checkpoint(stored.part(""), stored.meta, stored.sha256)


def remove(path: Path) -> None:
    """Delete a checkpoint of either kind, if it is there. A directory loses its name first: it is never half one."""
    if path.is_dir():
        gone = path.with_name(f".{path.name.strip('.')}.removed")
        shutil.rmtree(gone, ignore_errors=True)  # of a removal that was cut short
        os.replace(path, gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _dcp(what: str) -> Iterator[None]:
    """DCP's errors, which hold every rank's and are no ``Exception``, as ours; without its warning that one process
    reads alone, which is meant."""
    from torch.distributed.checkpoint.api import CheckpointException

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            yield
        except CheckpointException as error:
            causes = "; ".join(f"rank {rank}: {cause[0]}" for rank, cause in sorted(error.failures.items()))
            raise CheckpointError(f"{what}: {causes}") from error
