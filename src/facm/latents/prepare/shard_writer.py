"""Writing one shard, and the record that confirms that it is complete."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facm.core.files import atomically, write_text
from facm.core.untrusted.door import read_json
from facm.latents.manifest import RECORDS, ShardRecord, digest_of, shard_record
from facm.latents.prepare.moments import Moments, sums
from facm.latents.shards import CHECKSUMS, checksums_of


def write_shard(path: Path, latents: Tensor, latents_flip: Tensor, labels: np.ndarray) -> ShardRecord:
    """Write latents and latents_flip (n, C, h, w) float32 and labels (n,) into ``path``, and then the record.

    Each of the two files is complete or absent, and there is no record without its shard.
    """
    from safetensors.torch import save_file

    _record_path(path).unlink(missing_ok=True)
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
    content = dataclasses.asdict(record)
    write_text(_record_path(path), json.dumps({**content, "digest": digest_of(content)}) + "\n")
    return record


def finished(path: Path, n: int) -> ShardRecord | None:
    """The record of the shard ``path`` if it has n samples and the size that was recorded; otherwise None.

    Raises ValueError for a damaged record, since the records determine the statistics of all latents.
    """
    recorded = _record_path(path)
    if not path.exists() or not recorded.exists():
        return None
    try:
        content = read_json(recorded)
        digest = content.pop("digest")
        record = shard_record(content)
        if digest != digest_of(content):
            raise ValueError("changed since it was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{recorded}: not the record of a shard ({type(error).__name__}: {error}); delete it to encode "
            "the shard again"
        ) from error
    return record if (record.file, record.n, record.bytes) == (path.name, n, path.stat().st_size) else None


def _record_path(path: Path) -> Path:
    return path.parent / RECORDS / f"{path.stem}.json"
