"""One file per checkpoint: safetensors, written atomically, verified by a digest when read; no pickled code, ever."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from facm.core.files import atomically
from facm.core.hashing import digest
from facm.core.state_dict import CheckpointError
from facm.core.untrusted.door import open_regular, parse_json
from facm.core.untrusted.safetensors_header import Header, read_header
from facm.core.utf8 import in_utf8

FORMAT = "facm-checkpoint-1"
PICKLED = (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")  # how such files start, but a safetensors file may, too


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors, a JSON-able record about them, and the tensors' digest."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    sha256: str

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under ``prefix/``, without it."""
        start = f"{prefix}/"
        return {name[len(start) :]: value for name, value in self.tensors.items() if name.startswith(start)}


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically. Raises CheckpointError, the older files untouched, if it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = _unshared(tensors)
    record = json.dumps(meta)
    header = {"format": FORMAT, "sha256": digest(contiguous), "meta": record, "meta_sha256": _sha256(record)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomically(path) as partial:
            save_file(contiguous, partial, metadata=header)
    except (OSError, SafetensorError) as error:
        need = sum(value.nbytes for value in contiguous.values()) / 1e6
        free = shutil.disk_usage(next(p for p in path.parents if p.exists())).free / 1e6
        raise CheckpointError(
            f"could not save {path}: {error} ({need:.1f} MB needed, {free:.1f} MB free on the disk); "
            "earlier checkpoints are untouched: make room and resume"
        ) from error


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors in main memory; tied weights are written once for each name, as the format has no ties."""
    taken: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        result[name] = value.clone() if storage in taken else value
        taken.add(storage)
    return result


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and verify it. Raises CheckpointError naming the file and what is wrong with it."""
    from safetensors import SafetensorError, safe_open

    said = _header(path).metadata
    try:
        with in_utf8(path) as readable, safe_open(readable, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error})") from error
    if digest(tensors) != said.get("sha256"):
        raise CheckpointError(f"{path} is damaged: its content does not match its digest")
    return Checkpoint(tensors, _meta(path, said), said["sha256"])


def load_meta(path: Path) -> dict[str, Any]:
    """The record about a checkpoint's tensors, without reading these. Raises CheckpointError."""
    return _meta(path, _header(path).metadata)


def _header(path: Path) -> Header:
    try:
        with open_regular(path, links=False) as file:
            start = file.read(2)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    try:
        header = read_header(path, links=False)
    except (ValueError, OSError) as error:
        if start in PICKLED:
            raise CheckpointError(
                f"{path} is a pickled file (torch.save), which may carry code: refused; expected safetensors"
            ) from error
        raise CheckpointError(f"{path} is truncated or damaged ({error})") from error
    if header.metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of this package (format = {header.metadata.get('format')!r})"
        )
    return header


def _meta(path: Path, said: Mapping[str, str]) -> dict[str, Any]:
    meta = said.get("meta", "")
    if said.get("meta_sha256") != _sha256(meta):
        raise CheckpointError(f"{path} is damaged: its content does not match its digest")
    try:
        return dict(parse_json(meta, f"the record in {path}"))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} does not hold a checkpoint's record ({error})") from error
