"""``latents.json``: the contents and the origin of a folder of prepared latents."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facm.core.preparation import RECORDS, SETTINGS, digest_of
from facm.core.serialize import modernised, to_json
from facm.core.untrusted.door import read_json
from facm.latents.autoencoders.types import AutoencoderConfig
from facm.latents.shards import Shard

MANIFEST = "latents.json"
STATISTICS = "latents_stats.pt"
FORMAT = "facm-latents-1"
MOST_BYTES = 2**28
"""Bytes of ``latents.json``: 256 MiB."""


@dataclass(frozen=True)
class ShardRecord:
    """One shard of prepared latents.

    file: Name of the file.
    n: Number of samples.
    bytes: Size of the file.
    sha256: Hash of the file.
    sum: Sum of each channel (C,) over latents of plain and mirrored images.
    squares: Sum of squares of each channel (C,) over the same.
    """

    file: str
    n: int
    bytes: int
    sha256: str
    sum: tuple[float, ...]
    squares: tuple[float, ...]


@dataclass(frozen=True)
class Manifest:
    """The contents of ``latents.json``.

    n: Number of samples.
    shape: (C, H, W) of a latent.
    dtype: Type of the latents in safetensors' notation, such as F32.
    num_classes: Number of classes of the labels.
    classes: Names of the classes by number; empty where only numbers are known.
    size: Height and width of the images in pixels.
    seed: Seed of the posterior's samples.
    sample: Whether latents are samples of the posterior; otherwise they are its means.
    shard_size: Number of samples of each shard but the last.
    autoencoder: The autoencoder's configuration as JSON.
    identity: The identity of the autoencoder's weights.
    source: Name of the source of the images.
    source_fingerprint: Hash of the list of images.
    shards: One record for each shard, in order.
    statistics: The fingerprint of ``latents_stats.pt``.
    format: Version of this format.
    """

    n: int
    shape: tuple[int, ...]
    dtype: str
    num_classes: int
    classes: tuple[str, ...]
    size: int
    seed: int
    sample: bool
    shard_size: int
    autoencoder: Any
    identity: str
    source: str
    source_fingerprint: str
    shards: tuple[ShardRecord, ...]
    statistics: str
    format: str = FORMAT

    def text(self) -> str:
        """The manifest as JSON, with a digest of all of it."""
        content = dataclasses.asdict(self)
        return json.dumps({**content, "digest": digest_of(content)}, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in ``folder``, or None where it has none.

    Raises ValueError for a damaged or foreign manifest, and for a preparation that was interrupted before writing one.
    """
    path = folder / MANIFEST
    if not path.exists():
        _check_not_interrupted(folder)
        return None
    try:
        content = read_json(path, MOST_BYTES)
        digest = content.pop("digest", None)  # the first version wrote none
        if digest not in (None, digest_of(content)):
            raise ValueError("changed since it was written")
        content["shards"] = tuple(shard_record(record) for record in content["shards"])
        content |= {name: tuple(content[name]) for name in ("shape", "classes")}
        manifest = Manifest(**content)
        _check_types(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not the manifest of prepared latents ({type(error).__name__}: {error})") from error
    if manifest.format != FORMAT:
        raise ValueError(f"{path}: format = {manifest.format!r}, expected {FORMAT!r}")
    if manifest.classes and len(manifest.classes) != manifest.num_classes:
        raise ValueError(f"{path}: num_classes = {manifest.num_classes}, expected {len(manifest.classes)} as classes")
    files = [record.file for record in manifest.shards]
    twice = sorted({file for file in files if files.count(file) > 1}) if len(set(files)) < len(files) else []
    if twice:
        raise ValueError(f"{path}: names {_some(twice)} twice, expected each shard once")
    return manifest


def shard_record(content: Any) -> ShardRecord:
    """A record from its JSON. Raises KeyError or TypeError for any other content."""
    record = ShardRecord(**{**content, "sum": tuple(content["sum"]), "squares": tuple(content["squares"])})
    _check_kinds(record, {str: ("file", "sha256"), int: ("n", "bytes")})
    if len(record.sum) != len(record.squares) or {type(x) for x in record.sum + record.squares} - {float, int}:
        raise TypeError(f"sum = {record.sum!r:.40}, squares = {record.squares!r:.40}, expected numbers (C,) twice")
    return record


def _check_types(manifest: Manifest) -> None:
    text = ("dtype", "identity", "source", "source_fingerprint", "statistics", "format")
    numbers = ("n", "num_classes", "size", "seed", "shard_size")
    _check_kinds(manifest, {str: text, int: numbers, bool: ("sample",), dict: ("autoencoder",)})
    if {type(side) for side in manifest.shape} != {int} or {type(name) for name in manifest.classes} - {str}:
        raise TypeError(
            f"shape = {manifest.shape!r:.40}, classes = {manifest.classes!r:.40}, expected numbers and text"
        )


def _check_kinds(record: Any, kinds: dict[type, tuple[str, ...]]) -> None:
    """Raise TypeError unless the named fields, as read from JSON, have their types."""
    for kind, names in kinds.items():
        for name in names:
            if type(getattr(record, name)) is not kind:
                expected = {str: "text", int: "a number", bool: "true or false", dict: "an object"}[kind]
                raise TypeError(f"{name} = {getattr(record, name)!r:.40}, expected {expected}")


def _check_not_interrupted(folder: Path) -> None:
    """Raise ValueError where a preparation of ``folder`` is unfinished, since its shards hold only some samples."""
    settings = folder / RECORDS / SETTINGS
    if settings.exists():
        done = sum(_n(path) or 0 for path in settings.parent.glob("latents_*.json"))
        raise ValueError(
            f"{folder}: preparation not finished ({done} of {_n(settings) or 'an unknown number of'} samples): run "
            "facm latents encode again"
        )


def _n(path: Path) -> int | None:
    try:
        n = read_json(path)["n"]
        return n if isinstance(n, int) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def faults_in_files(manifest: Manifest, folder: Path, files: list[Path]) -> list[str]:
    """The shards that are missing, unknown or of another size, compared with the manifest."""
    found = {path.name: path.stat().st_size if path.exists() else 0 for path in files}
    recorded = {record.file: record.bytes for record in manifest.shards}
    missing = sorted(recorded.keys() - found.keys())
    unknown = sorted(found.keys() - recorded.keys())
    faults = [f"{folder}: {len(missing)} shards missing: {_some(missing)}"] if missing else []
    if unknown:
        faults.append(f"{folder}: {len(unknown)} shards that {MANIFEST} does not name: {_some(unknown)}")
    return faults + [
        f"{folder / name}: {found[name]} bytes, expected {size} by {MANIFEST}"
        for name, size in recorded.items()
        if found.get(name, size) != size
    ]


def faults_in_shards(manifest: Manifest, shards: tuple[Shard, ...]) -> list[str]:
    """The headers that say something else than the manifest, in which the same bytes would be other latents."""
    recorded = {record.file: record.n for record in manifest.shards}
    return [
        f"{shard.path}: latents are {shard.n} of {shard.dtype} {shard.shape}, expected {recorded[shard.path.name]} of "
        f"{manifest.dtype} {manifest.shape} by {MANIFEST}"
        for shard in shards
        if (shard.n, shard.dtype, shard.shape) != (recorded[shard.path.name], manifest.dtype, manifest.shape)
    ]


def check_autoencoder(manifest: Manifest, config: AutoencoderConfig, folder: Path) -> None:
    """Raise ValueError unless ``config`` is the autoencoder that made these latents, or has the same weights.

    The weights are compared only where the configurations differ, such as by a path on another machine.
    """
    if to_json(config) == modernised(manifest.autoencoder):
        return
    identity = config.build().identity
    if identity != manifest.identity:
        raise ValueError(
            f"{folder}: made by autoencoder {manifest.identity}, but autoencoder = {config!r} is {identity}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
