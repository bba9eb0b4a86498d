"""The files of prepared data: safetensors, read through memory maps, each sample with a checksum.

``prompts_*.safetensors`` of n samples hold ``text`` (bytes) and ``text.ends`` (n,), and for each part of the condition
``part.NAME``: (n, ...), or, for a part that is a sequence of tokens, the tokens of all samples one after the other
without their padding, (sum, ...), with ``ends.NAME`` (n,). ``samples_*.safetensors`` hold ``latents`` (n, ...). Both
hold ``crc32`` (n,) int64, the checksum of all bytes of each sample.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facm.core.files import atomically
from facm.core.hashing import file_sha256
from facm.core.untrusted.door import open_regular
from facm.core.untrusted.safetensors_header import read_header

PROMPTS, SAMPLES, NULL = "prompts", "samples", "null.safetensors"
CHECKSUMS = "crc32"
TYPES: dict[str, tuple[type[np.generic], torch.dtype]] = {
    "F32": (np.float32, torch.float32),
    "F16": (np.float16, torch.float16),
    "BF16": (np.uint16, torch.bfloat16),  # numpy has no bfloat16
    "BOOL": (np.bool_, torch.bool),
    "I64": (np.int64, torch.int64),
    "I32": (np.int32, torch.int32),
    "U8": (np.uint8, torch.uint8),
}
"""Type in safetensors' notation -> how its bytes are read, and what they are."""
NAMES = {kind: name for name, (_, kind) in TYPES.items()}
"""torch's type -> safetensors' notation."""


def write(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a file atomically, and return its sha256."""
    from safetensors.torch import save_file

    with atomically(path) as partial:
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
        return file_sha256(partial)


def prompt_tensors(
    texts: Sequence[str], rows: Sequence[Mapping[str, Tensor]], tokens: frozenset[str]
) -> dict[str, Any]:
    """What a shard of these prompts holds.

    rows: the parts of each sample by name: of tokens (L, ...) without padding, others (...).
    tokens: names of the parts that are sequences of tokens.
    """
    encoded = [np.frombuffer(text.encode(), np.uint8) for text in texts]
    ends = np.cumsum([len(text) for text in encoded])
    tensors = {"text": torch.from_numpy(np.concatenate(encoded)), "text.ends": torch.from_numpy(ends)}
    for name in sorted(rows[0]):
        values = [row[name] for row in rows]
        if name in tokens:
            tensors[f"part.{name}"] = torch.cat(values)
            tensors[f"ends.{name}"] = torch.from_numpy(np.cumsum([len(value) for value in values]))
        else:
            tensors[f"part.{name}"] = torch.stack(values)
    sums = [
        checksum([text, *(_bytes(row[name]) for name in sorted(row))]) for text, row in zip(encoded, rows, strict=True)
    ]
    tensors[CHECKSUMS] = torch.tensor(sums, dtype=torch.int64)
    return tensors


def sample_tensors(latents: Tensor) -> dict[str, Tensor]:
    """What a shard of latents (n, ...) holds."""
    sums = [checksum([_bytes(value)]) for value in latents]
    return {"latents": latents, CHECKSUMS: torch.tensor(sums, dtype=torch.int64)}


def checksum(parts: Sequence[np.ndarray]) -> int:
    """The CRC-32 of all bytes of a sample."""
    total = 0
    for part in parts:
        total = zlib.crc32(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data, total)
    return total


def _bytes(value: Tensor) -> np.ndarray:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def as_tensor(raw: np.ndarray, dtype: str) -> Tensor:
    """Values as they are read -> a tensor of its type, in memory of its own."""
    copied = torch.from_numpy(np.array(raw))
    return copied.view(torch.bfloat16) if dtype == "BF16" else copied


@dataclass(frozen=True, eq=False)
class Shard:
    """One file, whose header has been read.

    path: the file.
    n: number of samples.
    types: type of each tensor in safetensors' notation.
    shapes: shape of each tensor.
    places: first byte of each tensor.
    stamp: which file it was, for another may take its name.
    """

    path: Path
    n: int
    types: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    places: dict[str, int]
    stamp: tuple[int, ...]

    def raw(self, name: str) -> np.ndarray:
        """A tensor as it lies in the file, through a memory map."""
        kind = TYPES[self.types[name]][0]
        size = math.prod(self.shapes[name]) * np.dtype(kind).itemsize
        place = self.places[name]
        return _mapped(self.path, self.stamp)[place : place + size].view(kind).reshape(self.shapes[name])

    @cached_property
    def checksums(self) -> np.ndarray:
        return np.array(self.raw(CHECKSUMS))

    @cached_property
    def ends(self) -> dict[str, np.ndarray]:
        """Where each sample ends in the text ("text") and in each part of tokens, (n,) int64."""
        found = {name[len("ends.") :]: name for name in self.types if name.startswith("ends.")}
        if "text.ends" in self.types:
            found["text"] = "text.ends"
        return {part: np.array(self.raw(name)) for part, name in found.items()}

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the condition's parts."""
        return tuple(sorted(name[len("part.") :] for name in self.types if name.startswith("part.")))

    def row(self, name: str, tensor: str, row: int) -> np.ndarray:
        """The values of one sample: of a part of tokens or the text without its padding."""
        value, ends = self.raw(tensor), self.ends.get(name)
        if ends is None:
            found: np.ndarray = value[row]
            return found
        return value[(ends[row - 1] if row else 0) : ends[row]]

    def prompt(self, row: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Text (bytes,) and parts by name of one sample of a shard of prompts, compared with their checksum.

        Raises ValueError for a sample that is not the one that was written.
        """
        text = self.row("text", "text", row)
        parts = {name: self.row(name, f"part.{name}", row) for name in self.parts}
        self._check(row, [text, *parts.values()])
        return text, parts

    def latent(self, row: int) -> np.ndarray:
        """One latent, compared with its checksum. Raises ValueError as :meth:`prompt` does."""
        value: np.ndarray = self.raw("latents")[row]
        self._check(row, [value])
        return value

    def longest(self) -> dict[str, int]:
        """The number of tokens of the longest sample in each part of tokens."""
        return {name: int(np.diff(ends, prepend=0).max()) for name, ends in self.ends.items() if name != "text"}

    def _check(self, row: int, values: Sequence[np.ndarray]) -> None:
        if checksum(values) != self.checksums[row]:
            raise ValueError(f"{self.path}: damaged: row {row} is not the one that was written")


def read_shard(path: Path, kind: str) -> Shard:
    """The header of a shard of PROMPTS or SAMPLES; no sample is read but the places where they end.

    Raises ValueError naming the file and its fault.
    """
    stamp = stamp_of(path)
    entries = read_header(path).tensors
    wanted = {CHECKSUMS, "latents"} if kind == SAMPLES else {CHECKSUMS, "text", "text.ends"}
    if not wanted <= entries.keys():
        raise ValueError(f"{path} holds {', '.join(sorted(entries)[:20])}, expected {', '.join(sorted(wanted))}")
    if unknown := {entry.dtype for entry in entries.values()} - TYPES.keys():
        raise ValueError(f"{path}: tensors of type {min(unknown)}, expected {', '.join(TYPES)}")
    shapes = {name: entry.shape for name, entry in entries.items()}
    types = {name: entry.dtype for name, entry in entries.items()}
    n = shapes[CHECKSUMS][0] if shapes[CHECKSUMS] else 0
    whole = {name for name in types if name in (CHECKSUMS, "text.ends") or name.startswith("ends.")}
    for name in whole:
        if (types[name], shapes[name]) != ("I64", (n,)) or n < 1:
            raise ValueError(f"{path}: {name} is {types[name]} {shapes[name]}, expected I64 ({n},), of at least one")
    shard = Shard(path, n, types, shapes, {name: entry.begin for name, entry in entries.items()}, stamp)
    for name in types.keys() - whole:
        ends = shard.ends.get(name.removeprefix("part."))
        rows = n
        if ends is not None:
            if (np.diff(ends, prepend=0) < 0).any():
                raise ValueError(f"{path}: samples of {name} end before they begin")
            rows = int(ends[-1])
        if shapes[name][:1] != (rows,):
            raise ValueError(f"{path}: {name} is {types[name]} {shapes[name]}, expected ({rows}, ...)")
    return shard


@lru_cache(maxsize=256)  # each map keeps a file open, and a process may open only so many
def _mapped(path: Path, stamp: tuple[int, ...]) -> np.ndarray:
    with open_regular(path) as file:
        if _stamp(os.fstat(file.fileno())) != stamp:
            raise ValueError(f"{path} is another file than the one that was opened")
        return np.asarray(np.memmap(file, np.uint8, "r"))


def stamp_of(path: Path) -> tuple[int, ...]:
    """What changes where a file is replaced or written. Raises ValueError where there is none."""
    try:
        return _stamp(path.stat())
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
