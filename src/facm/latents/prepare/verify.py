"""Complete verification of a folder of latents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facm.core.hashing import file_sha256
from facm.latents.manifest import MANIFEST, STATISTICS, Manifest, ShardRecord, faults_in_files, read_manifest
from facm.latents.prepare.moments import Moments, sums
from facm.latents.shards import PATTERN, Shard, as_float32, checksums_of, mapped, read_shard, shard_files
from facm.latents.statistics import load_statistics

SAME = 1e-9
"""Relative tolerance of sums in float64 that were added in another order."""
CLOSE = 1e-4
"""Tolerance of statistics in float32, relative to the standard deviation."""


@dataclass(frozen=True)
class Report:
    """The result of :func:`verify`.

    path: The folder.
    n: Number of samples.
    shards: Number of shards.
    shape: (C, H, W) of a latent.
    dtype: Type of the latents in safetensors' notation.
    labels: The lowest and the highest label.
    mean: Mean of each channel (C,) over latents of plain and mirrored images.
    std: Standard deviation of each channel (C,) over the same.
    manifest: Whether there is a ``latents.json``, with which all of this agrees.
    """

    path: str
    n: int
    shards: int
    shape: tuple[int, ...]
    dtype: str
    labels: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    manifest: bool


def verify(path: Path) -> Report:
    """Read all latents in a folder and check them.

    Shards must be complete, of one shape and type, and finite; labels must be 0 or more; statistics must fit. Where
    there is a ``latents.json``, the names, sizes and sha256 of the shards, the number, shape and type of the samples,
    the range of the labels, and the recomputed sums and statistics must agree with it. Without that file the statistics
    may be of a part of the latents only, as the reference's are.

    Raises ValueError with one line for each fault, or for an unfinished preparation.
    """
    if not path.is_dir():
        raise ValueError(f"verify: {path}, expected an existing folder")
    manifest = read_manifest(path)
    files = shard_files(path)
    faults = [f"{path} holds no latents, expected {PATTERN}"] if not files else []
    if manifest is not None:
        faults += faults_in_files(manifest, path, files)
    shards: list[Shard] = []
    moments = []
    for file in files:
        try:
            shards.append(read_shard(file))
        except ValueError as error:
            faults.append(str(error))
            continue
        faults += _unlike(shards[-1], shards[0]) + _labels(shards[-1], manifest)
        found, non_finite = _scan(shards[-1])
        moments.append(found)
        faults += non_finite
    if manifest is not None:
        faults += _against(manifest, shards, moments, path)
    faults += _statistics(path, shards, None if faults else Moments.of_all(moments), manifest)
    if faults:
        raise ValueError("\n".join(faults))
    total = Moments.of_all(moments)
    labels = np.concatenate([shard.labels for shard in shards])
    return Report(
        str(path),
        len(labels),
        len(shards),
        shards[0].shape,
        shards[0].dtype,
        (int(labels.min()), int(labels.max())),
        tuple(total.mean.tolist()),
        tuple(total.std.tolist()),
        manifest is not None,
    )


def _unlike(shard: Shard, first: Shard) -> list[str]:
    is_, expected = (
        f"{s.dtype} {s.shape} {'without' if s.latents_flip is None else 'with'} latents_flip" for s in (shard, first)
    )
    return [] if is_ == expected else [f"{shard.path}: latents are {is_}, expected {expected} as in {first.path.name}"]


def _labels(shard: Shard, manifest: Manifest | None) -> list[str]:
    below = np.iinfo(np.int64).max if manifest is None else manifest.num_classes
    bad = np.flatnonzero((shard.labels < 0) | (shard.labels >= below))
    expected = "0 or more" if manifest is None else f"one within [0, {below})"
    return [f"{shard.path}: row {bad[0]} has label {shard.labels[bad[0]]}, expected {expected}"] if len(bad) else []


def _scan(shard: Shard) -> tuple[Moments, list[str]]:
    """The moments of a shard, and its faults: the first row of each tensor not finite or not as written."""
    found, faults = [], []
    for column, (name, raw) in enumerate(zip(("latents", "latents_flip"), mapped(shard), strict=True), 1):
        for start in range(0, shard.n if raw is not None else 0, 256):
            assert raw is not None
            rows = np.array(raw[start : start + 256])
            if shard.checksums is not None:
                other = np.flatnonzero(checksums_of(rows) != shard.checksums[start : start + 256, column])
                faults += [f"{shard.path}: row {start + row} of {name} is not the one written" for row in other[:1]]
            part = as_float32(rows, shard.dtype)
            found.append(sums(part))
            bad = np.flatnonzero(~np.isfinite(part.numpy()).reshape(len(part), -1).all(1))
            faults += [f"{shard.path}: non-finite values in row {start + row} of {name}" for row in bad[:1]]
    return Moments.of_all(found), faults


def _against(manifest: Manifest, shards: list[Shard], moments: list[Moments], path: Path) -> list[str]:
    """Differences from the manifest other than names and sizes."""
    faults = []
    recorded = {record.file: record for record in manifest.shards}
    for shard, found in zip(shards, moments, strict=True):
        record = recorded.get(shard.path.name)
        sha256 = file_sha256(shard.path)
        if record is not None and (record.n, record.sha256) != (shard.n, sha256):
            faults.append(
                f"{shard.path}: {shard.n} samples, sha256 {sha256[:16]}..., expected {record.n} and "
                f"{record.sha256[:16]}... by {MANIFEST}"
            )
        elif record is not None and not _fits(record, found):
            faults.append(f"{shard.path}: sum and squares of the latents are not those in {MANIFEST}")
    n, shapes = sum(shard.n for shard in shards), sorted({shard.shape for shard in shards})
    if n != manifest.n or shapes != [manifest.shape]:
        kinds = " and ".join(map(str, shapes))
        faults.append(f"{path}: {n} samples of {kinds}, expected {manifest.n} of {manifest.shape} by {MANIFEST}")
    if shards and shards[0].dtype != manifest.dtype:
        faults.append(f"{path}: latents are {shards[0].dtype}, expected {manifest.dtype} by {MANIFEST}")
    return faults


def _fits(record: ShardRecord, found: Moments) -> bool:
    if len(record.sum) != len(found.sum):
        return False
    largest = np.sqrt(found.count * found.squares)  # possible sum, by the Cauchy-Schwarz inequality
    close = np.abs(np.array(record.sum) - found.sum) <= SAME * largest
    return bool((close & (np.abs(np.array(record.squares) - found.squares) <= SAME * found.squares)).all())


def _statistics(path: Path, shards: list[Shard], total: Moments | None, manifest: Manifest | None) -> list[str]:
    """Faults of the statistics; ``total`` are the moments of the latents, or None where these have faults."""
    file = path / STATISTICS
    try:
        statistics = load_statistics(file)
    except ValueError as error:
        return [str(error)]
    if shards and statistics.channels != shards[0].shape[0]:
        return [f"{file} is of {statistics.channels} channels, the latents beside it have {shards[0].shape[0]}"]
    if manifest is None:
        return []
    if statistics.fingerprint != manifest.statistics:
        return [f"{file}: statistics of another data set ({statistics.fingerprint}, expected {manifest.statistics})"]
    if total is not None:
        mean, std = statistics.mean.double().numpy(), statistics.std.double().numpy()
        off = max(np.abs((mean - total.mean) / total.std).max(), np.abs(std / total.std - 1).max())
        if not off < CLOSE:
            return [f"{file} differs from the statistics of the latents by {off:.1e} standard deviations"]
    return []
