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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from facm.core.files import PARTIAL, sync, write_text
from facm.core.hashing import file_sha256
from facm.core.serialize import is_fingerprint_of
from facm.core.state_dict import CheckpointError
from facm.core.untrusted.door import read_json
from facm.core.untrusted.safetensors_header import read_header
from facm.distributed.collectives import by_first, gathered, meet
from facm.distributed.process_group import ALONE, World
from facm.distributed.wrap import fill, is_sharded
from facm.runs import checkpoint
from facm.runs.checkpoint import Checkpoint
from facm.runs.config import Run
from facm.runs.folder import REMOVED, RunFolder

T = TypeVar("T")
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

    partial = target.with_name(f".{target.name}{PARTIAL}")

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
            hashes[file.name] = file_sha256(file, links=False)
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
    if not _is_directory(path):
        saved = checkpoint.load(path)
        return Stored(path, saved.meta, saved.sha256, {n: (v.shape, v.dtype) for n, v in saved.tensors.items()}, saved)
    record = _record(path)
    wrong = ""
    for name in sorted(record["files"])[world.rank :: world.ranks]:
        wrong = wrong or _wrong(path, name, record["files"][name])
    for found in gathered(world, wrong):
        if found:
            raise CheckpointError(found)
    import torch.distributed.checkpoint as dcp

    try:
        metadata = dcp.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        shapes = {name: (entry.size, entry.properties.dtype) for name, entry in sorted(metadata.items())}  # type: ignore[union-attr]
    except OSError as error:
        raise CheckpointError(f"{path} is incomplete ({error})") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: its files do not say how they belong together ({error})") from error
    return Stored(path, record["meta"], record["sha256"], shapes)


def _is_directory(path: Path) -> bool:
    if path.is_symlink():
        raise CheckpointError(f"{path} is a symbolic link, expected the checkpoint itself")
    return path.is_dir()


def _record(path: Path) -> dict[str, Any]:
    """The record in a directory, and the files that are there are those that it names."""
    try:
        record = read_json(path / RECORD, links=False)
        content = {"meta": record["meta"], "files": record["files"]}
        whole = record["format"] == FORMAT and record["sha256"] == _hash(content)
        hashes = {str(name): str(value) for name, value in dict(record["files"]).items()}
        others = {file.name for file in path.glob("*.safetensors")} - hashes.keys()
        meta = dict(record["meta"])
    except OSError as error:
        raise CheckpointError(f"{path} is incomplete: cannot read its {RECORD} ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: its {RECORD} is not a checkpoint's record ({error})") from error
    if not whole:
        raise CheckpointError(f"{path} is damaged: its {RECORD} does not match its digest")
    if others:
        raise CheckpointError(f"{path} is damaged: {min(others)} is not of it")
    return {"meta": meta, "files": hashes, "sha256": record["sha256"]}


def _wrong(folder: Path, name: str, sha256: str) -> str:
    """What is wrong with a file of a directory; empty where it is what it was."""
    file = folder / name
    if file.parent != folder or name in ("", ".", ".."):
        return f"{folder} is damaged: its {RECORD} names {name!r}, expected files in it"
    try:
        if file_sha256(file, links=False) != sha256:
            return f"{folder} is damaged: {name} does not match its digest"
        read_header(file, links=False)
    except FileNotFoundError:
        return f"{folder} is incomplete: {name} is missing"
    except (OSError, ValueError) as error:
        return f"{folder} is damaged: {error}"
    return ""


def open_of_run(path: Path, run: Run, world: World = ALONE) -> Stored:
    """A checkpoint of this run, verified. Raises CheckpointError, also for one of another run or clock."""
    stored = open_stored(path, world)
    _check_belongs(path, stored.meta, clock_of(path), None, run)
    return stored


def of_newest(folder: RunFolder, read: Callable[[Path], T]) -> T | None:
    """What ``read`` makes of the newest checkpoint; where the run goes on meanwhile and deletes it, of the next one.

    None where there is no checkpoint yet. Raises CheckpointError where ``read`` does and the checkpoint is there.
    """
    while checkpoints := folder.checkpoints():
        try:
            return read(checkpoints[-1])
        except CheckpointError:
            if checkpoints[-1].exists():
                raise
    return None


def reached(folder: RunFolder, run: Run) -> int:
    """The clock of the newest checkpoint, by its name and its record alone; 0 where there is none yet.

    Raises CheckpointError for one of another run or clock, or whose record cannot be read.
    """

    def clock(path: Path) -> int:
        meta = _record(path)["meta"] if _is_directory(path) else checkpoint.load_meta(path)
        _check_belongs(path, meta, clock_of(path), None, run)
        return clock_of(path)

    return of_newest(folder, clock) or 0


def load_snapshot(path: Path, images: int, sigma_rel: float, run: Run) -> Checkpoint:
    """The averages of a run at a clock. Raises CheckpointError, also for those of another run, clock or length."""
    saved = load(path)
    _check_belongs(path, saved.meta, images, sigma_rel, run)
    return saved


def clock_of(path: Path) -> int:
    """The images seen that a checkpoint's name says."""
    return int(path.name.partition(".")[0])


def _check_belongs(path: Path, meta: Mapping[str, Any], images: int, sigma_rel: float | None, run: Run) -> None:
    """What is stored at ``path`` is what its name says, and of this run: snapshots of version 0.1 do not say of which.

    sigma_rel: the length of the EMA, None for a checkpoint.
    """
    said = {"images": meta.get("images"), "sigma_rel": meta.get("sigma_rel")}
    named = {"images": images, "sigma_rel": sigma_rel}
    for what, value in named.items():
        if said[what] != value or isinstance(said[what], bool):
            expected = "none" if value is None else value
            raise CheckpointError(
                f"{path} holds {what} = {said[what]!r}, and its name says {expected}: another file has taken its place"
            )
    if (sigma_rel is None or "run" in meta) and not is_fingerprint_of(meta.get("run"), run):
        raise CheckpointError(
            f"{path} belongs to another recipe than this run's, which is in {path.parent.parent / 'run.json'}: resume "
            "it in its own folder"
        )


def load(path: Path) -> Checkpoint:
    """A checkpoint of either kind, all of it in main memory. Raises CheckpointError."""
    if not _is_directory(path):
        return checkpoint.load(path)
    stored = open_stored(path)
    return Checkpoint(stored.part(""), stored.meta, stored.sha256)


def remove(path: Path) -> None:
    """Delete a checkpoint of either kind, if it is there. A directory loses its name first: it is never half one.

    A link is deleted itself, and never what it leads to.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    elif path.name.endswith(REMOVED):
        shutil.rmtree(path)
    else:
        gone = path.with_name(f".{path.name.strip('.')}{REMOVED}")
        remove(gone)  # of a removal that was cut short
        os.replace(path, gone)
        shutil.rmtree(gone)


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
