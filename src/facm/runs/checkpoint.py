"""One file per checkpoint: safetensors, written atomically, verified by a digest when read; no pickled code, ever."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = "facm-checkpoint-1"
PICKLED = (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")  # how such files start, but a safetensors file may, too


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or must not be read."""


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


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, independent of order, device and memory layout."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


UMASK = os.umask(0)  # which can only be read by setting it
os.umask(UMASK)


@contextlib.contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Write to the yielded path; ``path`` then has either its old content or all of the new, whatever happens."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.chmod(0o666 & ~UMASK)  # some writers make files that only their owner can read
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)  # the rename itself must survive a power cut
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk must get its space back; the error in flight says more
            partial.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    with atomically(path) as partial:
        partial.write_text(text, encoding="utf-8")


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


def load_strictly(
    module: torch.nn.Module, state: Mapping[str, Tensor], source: str, may_miss: tuple[str, ...] = ()
) -> None:
    """Load weights, listing every missing, unexpected or misshapen one in the error.

    may_miss: prefixes of parameters that have no effect as initialised, so that they may be absent from ``state``.
    """
    check_fits(module, {name: value.shape for name, value in state.items()}, source, may_miss)
    module.load_state_dict({**module.state_dict(), **state}, strict=True)


def check_fits(
    module: torch.nn.Module, shapes: Mapping[str, Sequence[int]], source: str, may_miss: tuple[str, ...] = ()
) -> None:
    """Raise CheckpointError unless weights of these shapes fit ``module``; see :func:`load_strictly`."""
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    missing = [n for n in own if n not in shapes and not n.startswith(may_miss)]
    unexpected = [n for n in shapes if n not in own]
    misshapen = [
        f"{n} {tuple(shapes[n])} instead of {own[n]}" for n in own if n in shapes and tuple(shapes[n]) != own[n]
    ]
    wrong = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if wrong:
        raise CheckpointError(f"{source} does not fit {type(module).__name__}: {'; '.join(wrong)}")
