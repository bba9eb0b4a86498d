"""Shards of latents: safetensors files, read through memory maps.

A file holds ``latents`` and optionally ``latents_flip``, both (N, C, H, W), and ``labels`` (N,); where this package
wrote it, also ``crc32`` (N, 2 or 3) int64, the checksums of each sample's label, latent and mirrored latent.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facm.core.untrusted.door import open_regular
from facm.core.untrusted.safetensors_header import read_header

PATTERN = "latents_*.safetensors"
RAW: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}  # numpy has no bfloat16
CHECKSUMS = "crc32"


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
    checksums: Of label, latent and mirrored latent of each sample, (n, 2 or 3) int64; None where the file has none.
    """

    path: Path
    n: int
    shape: tuple[int, ...]
    dtype: str
    latents: int
    latents_flip: int | None
    labels: np.ndarray
    checksums: np.ndarray | None = None


def shard_files(folder: Path) -> list[Path]:
    """The shards in ``folder``, sorted by name, which is the order of the samples."""
    return sorted(folder.glob(PATTERN))


def read_shard(path: Path) -> Shard:
    """The header, the labels and the checksums of one shard. Raises ValueError naming the file and its fault."""
    entries = read_header(path).tensors
    latents, labels, mirrored, sums = (entries.get(name) for name in ("latents", "labels", "latents_flip", CHECKSUMS))
    if latents is None or labels is None:
        raise ValueError(f"{path} holds {', '.join(sorted(entries)[:20]) or 'nothing'}, expected latents and labels")
    shape = latents.shape
    if latents.dtype not in RAW or len(shape) != 4 or 0 in shape:
        raise ValueError(f"{path}: latents are {latents.dtype} {shape}, expected {', '.join(RAW)} (N, C, H, W)")
    if mirrored is not None and (mirrored.dtype, mirrored.shape) != (latents.dtype, shape):
        raise ValueError(
            f"{path}: latents_flip are {mirrored.dtype} {mirrored.shape}, expected {latents.dtype} {shape} as latents "
            "are"
        )
    if (labels.dtype, labels.shape) != ("I64", shape[:1]):
        raise ValueError(
            f"{path}: labels are {labels.dtype} {labels.shape}, expected I64 ({shape[0]},): one per latent"
        )
    expected = (shape[0], 2 if mirrored is None else 3)
    if sums is not None and (sums.dtype, sums.shape) != ("I64", expected):
        raise ValueError(f"{path}: {CHECKSUMS} are {sums.dtype} {sums.shape}, expected I64 {expected}")
    with open_regular(path) as file:
        values = np.fromfile(file, "<i8", shape[0], offset=labels.begin).astype(np.int64, copy=False)
        checksums = None
        if sums is not None:
            file.seek(0)
            checksums = np.fromfile(file, "<i8", math.prod(expected), offset=sums.begin).reshape(expected)
            checksums = checksums.astype(np.int64, copy=False)
            wrong = np.flatnonzero(checksums_of(values[:, None]) != checksums[:, 0])
            if len(wrong):
                raise ValueError(f"{path}: damaged: the label of row {wrong[0]} is not the one that was written")
    flip = None if mirrored is None else mirrored.begin
    return Shard(path, shape[0], shape[1:], latents.dtype, latents.begin, flip, values, checksums)


def checksums_of(rows: np.ndarray) -> np.ndarray:
    """The CRC-32 of the bytes of each row, (N,) int64."""
    return np.array([zlib.crc32(row) for row in np.ascontiguousarray(rows)], np.int64)


@lru_cache(maxsize=256)  # each map keeps a file open, and a process may open only so many
def mapped(shard: Shard) -> tuple[np.ndarray, np.ndarray | None]:
    """Memory maps of ``latents`` and ``latents_flip`` (N, C, H, W) in the types of ``RAW``; nothing is read yet."""
    with open_regular(shard.path) as file:
        content = np.asarray(np.memmap(file, np.uint8, "r"))
    raw = RAW[shard.dtype]
    size = shard.n * math.prod(shard.shape) * np.dtype(raw).itemsize

    def at(offset: int) -> np.ndarray:
        return content[offset : offset + size].view(raw).reshape(shard.n, *shard.shape)

    return at(shard.latents), None if shard.latents_flip is None else at(shard.latents_flip)


def as_float32(raw: np.ndarray, dtype: str) -> Tensor:
    """Values in the type of ``RAW`` for ``dtype`` -> float32, exact; float32 values keep their memory."""
    values = torch.from_numpy(raw)
    return (values.view(torch.bfloat16) if dtype == "BF16" else values).float()
