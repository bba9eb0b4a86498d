"""Complete verification of a folder of prepared data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from facm.core.hashing import file_sha256
from facm.foundation.captions.dataset import opened
from facm.foundation.captions.manifest import Manifest, ShardRecord, read_manifest
from facm.foundation.captions.shards import NULL, PROMPTS, SAMPLES, Shard, as_tensor
from facm.foundation.prepare.settings import data_files


def verify(folder: Path) -> Manifest:
    """Read all of a folder of prepared data, and compare it with its manifest: names, sizes and sha256 of the files,
    and of each sample the checksum, and that its numbers are finite.

    Raises ValueError with one line for each fault, or for an unfinished preparation.
    """
    if not folder.is_dir():
        raise ValueError(f"verify: {folder}, expected an existing folder")
    manifest = read_manifest(folder)
    faults = _files(folder, manifest)
    if not faults:
        for kind in (PROMPTS, SAMPLES):
            for shard in opened(folder, manifest, kind):
                faults += list(_samples(shard, kind))[:3]
    if faults:
        raise ValueError("\n".join(faults))
    return manifest


def _files(folder: Path, manifest: Manifest) -> list[str]:
    null = folder / NULL
    records = [*manifest.prompts, *manifest.samples]
    known = {record.file for record in records}
    faults = [f"{path} is not named in manifest.json" for path in data_files(folder) if path.name not in known]
    if not null.is_file() or file_sha256(null) != manifest.null_sha256:
        faults.append(f"{null} is not the embedding of the negative prompt that manifest.json names")
    return faults + [fault for record in records if (fault := _file(folder / record.file, record))]


def _file(path: Path, record: ShardRecord) -> str:
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != record.bytes:
        return f"{path} has {path.stat().st_size} bytes, expected {record.bytes} by manifest.json"
    sha256 = file_sha256(path)
    return "" if sha256 == record.sha256 else f"{path}: sha256 {sha256[:16]}..., expected {record.sha256[:16]}..."


def _samples(shard: Shard, kind: str) -> Iterator[str]:
    for row in range(shard.n):
        try:
            if kind == SAMPLES:
                values = {"latents": shard.latent(row)}
            else:
                values = {f"part.{name}": value for name, value in shard.prompt(row)[1].items()}
        except ValueError as error:
            yield str(error)
            continue
        for name, value in values.items():
            number = as_tensor(value, shard.types[name])
            if number.is_floating_point() and not np.isfinite(number.float().numpy()).all():
                yield f"{shard.path}: row {row} has non-finite values in {name}"
