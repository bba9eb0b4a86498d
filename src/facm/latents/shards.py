"""Shards of latents: safetensors files, read through memory maps.

A file holds ``latents`` and optionally ``latents_flip``, both (N, C, H, W), and ``labels`` (N,).
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

PATTERN = "latents_*.safetensors"
RAW: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}  # numpy has no bfloat16
LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library


@dataclass(frozen=True, eq=False)
class Shard:
    """The places of the tensors in one file.

    path: The file.
    n: Number of samples.
    shape: (C, H, W) of one latent.
    dtype: Type of the latents, a key of ``RAW``.
    latents: Offset of the latents in bytes.
    latents_flip: Offset of the latents of mirrored images in bytes; None without them.
    labels: Class labels (n,) int64.
    """

    path: Path
    n: int
    shape: tuple[int, ...]
    dtype: str
    latents: int
    latents_flip: int | None
    labels: np.ndarray


def shard_files(folder: Path) -> list[Path]:
    """The shards in ``folder``, sorted by name, which is the order of the samples."""
    return sorted(path for path in folder.glob(PATTERN) if path.is_file())


def read_shard(path: Path) -> Shard:
    """The header and the labels of one shard. Raises ValueError naming the file and its fault."""
    entries, start = _header(path)
    latents, labels, mirrored = (entries.get(name) for name in ("latents", "labels", "latents_flip"))
    if latents is None or labels is None:
        raise ValueError(f"{path} holds {', '.join(sorted(entries)) or 'nothing'}, expected latents and labels")
    shape = tuple(latents["shape"])
    if latents["dtype"] not in RAW or len(shape) != 4 or 0 in shape:
        raise ValueError(f"{path}: latents are {latents['dtype']} {shape}, expected {', '.join(RAW)} (N, C, H, W)")
    if mirrored is not None and (mirrored["dtype"], tuple(mirrored["shape"])) != (latents["dtype"], shape):
        raise ValueError(
            f"{path}: latents_flip are {mirrored['dtype']} {tuple(mirrored['shape'])}, expected {latents['dtype']} "
            f"{shape} as latents are"
        )
    if (labels["dtype"], tuple(labels["shape"])) != ("I64", shape[:1]):
        raise ValueError(
            f"{path}: labels are {labels['dtype']} {tuple(labels['shape'])}, expected I64 ({shape[0]},): one per latent"
        )
    values = np.fromfile(path, "<i8", shape[0], offset=start + labels["data_offsets"][0])
    return Shard(
        path,
        shape[0],
        shape[1:],
        latents["dtype"],
        start + latents["data_offsets"][0],
        None if mirrored is None else start + mirrored["data_offsets"][0],
        values.astype(np.int64, copy=False),
    )


@lru_cache(maxsize=256)  # each map keeps a file open, and a process may open only so many
def mapped(shard: Shard) -> tuple[np.ndarray, np.ndarray | None]:
    """Memory maps of ``latents`` and ``latents_flip`` (N, C, H, W) in the types of ``RAW``; nothing is read yet."""
    content = np.asarray(np.memmap(shard.path, np.uint8, "r"))
    raw = RAW[shard.dtype]
    size = shard.n * math.prod(shard.shape) * np.dtype(raw).itemsize

    def at(offset: int) -> np.ndarray:
        return content[offset : offset + size].view(raw).reshape(shard.n, *shard.shape)

    return at(shard.latents), None if shard.latents_flip is None else at(shard.latents_flip)


def as_float32(raw: np.ndarray, dtype: str) -> Tensor:
    """Values in the type of ``RAW`` for ``dtype`` -> float32, exact; float32 values keep their memory."""
    values = torch.from_numpy(raw)
    return (values.view(torch.bfloat16) if dtype == "BF16" else values).float()


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The entries of a safetensors file and the offset of its data. Raises ValueError unless the file's size fits."""
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        text = file.read(length) if length <= LONGEST_HEADER else b""
    try:
        if not text or len(text) != length:
            raise ValueError("its header is cut short")
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        spans = [_span(entry) for entry in entries.values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    for begin, end, dtype, count in spans:
        if end - begin != count * {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}.get(dtype, (end - begin) / max(count, 1)):
            raise ValueError(
                f"{path}: not a whole safetensors file ({end - begin} bytes for {count} values of {dtype})"
            )
    expected = 8 + length + max((end for _, end, _, _ in spans), default=0)
    if path.stat().st_size != expected:
        raise ValueError(
            f"{path}: {path.stat().st_size} bytes, expected {expected} by its header: truncated or damaged"
        )
    return entries, 8 + length


def _span(entry: dict[str, Any]) -> tuple[int, int, str, int]:
    """Begin and end of the data of a header's entry, their type and the number of values."""
    (begin, end), dtype, shape = entry["data_offsets"], entry["dtype"], entry["shape"]
    if not isinstance(dtype, str):
        raise TypeError(f"dtype = {dtype!r:.40}, expected text")
    if any(type(number) is not int or number < 0 for number in (begin, end, *shape)):
        raise TypeError(f"data_offsets = {[begin, end]!r:.40}, shape = {shape!r:.40}, expected numbers from 0")
    return begin, end, dtype, math.prod(shape)
