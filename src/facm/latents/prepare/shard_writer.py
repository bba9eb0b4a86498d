"""Writing one shard, and the record that confirms that it is complete."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facm.core.files import atomically, write_text
from facm.core.preparation import read_record, record_path, record_text, unreadable_record
from facm.latents.manifest import ShardRecord, shard_record
from facm.latents.prepare.moments import Moments, sums
from facm.latents.shards import CHECKSUMS, checksums_of


def write_shard(path: Path, latents: Tensor, latents_flip: Tensor, labels: np.ndarray) -> ShardRecord:
    """Write latents and latents_flip (n, C, h, w) float32 and labels (n,) into ``path``, and then the record.

    Each of the two files is complete or absent, and there is no record without its shard.
    """
    from safetensors.torch import save_file

    record_path(path).unlink(missing_ok=True)
    moments = Moments.of_all([sums(latents), sums(latents_flip)])
    labels = labels.astype(np.int64)
    checksums = np.stack([checksums_of(x) for x in (labels[:, None], latents.numpy(), latents_flip.numpy())], 1)
    tensors = {"latents": latents, "latents_flip": latents_flip, "labels": torch.from_numpy(labels)}
    tensors[CHECKSUMS] = torch.from_numpy(checksums)
    with atomically(path) as partial:
        save_file(tensors, partial)
        with partial.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    total, squares = tuple(moments.sum.tolist()), tuple(moments.squares.tolist())
    record = ShardRecord(path.name, len(latents), path.stat().st_size, sha256, total, squares)
    write_text(record_path(path), record_text(dataclasses.asdict(record)))
    return record


def finished(path: Path, n: int) -> ShardRecord | None:
    """The record of the shard ``path`` if it has n samples and the size that was recorded; otherwise None.

    Raises ValueError for a damaged record, since the records determine the statistics of all latents.
    """
    content = read_record(path)
    if content is None:
        return None
    try:
        record = shard_record(content)
    except (KeyError, TypeError) as error:
        raise unreadable_record(path, error) from error
    return record if (record.file, record.n, record.bytes) == (path.name, n, path.stat().st_size) else None
