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

    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, ValueError, OSError) as error:
        if start in PICKLED:
            raise CheckpointError(
                f"{path} is a pickled file (torch.save), which may carry code: refused; expected safetensors"
            ) from error
        raise CheckpointError(f"{path} is truncated or damaged ({error})") from error
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this package (format = {header.get('format')!r})")
    meta = header.get("meta", "")
    if digest(tensors) != header.get("sha256") or header.get("meta_sha256") != _sha256(meta):
        raise CheckpointError(f"{path} is damaged: its content does not match its digest")
    return Checkpoint(tensors, json.loads(meta), header["sha256"])
