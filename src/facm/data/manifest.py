"""``latents.json``: what a folder of prepared latents holds, and where they come from."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facm.autoencoders.types import AutoencoderConfig

MANIFEST = "latents.json"
STATISTICS = "latents_stats.pt"
FORMAT = "facm-latents-1"


@dataclass(frozen=True)
class ShardRecord:
    """One shard: its name, samples, size, sha256, and the sum and the sum of squares (C,) over plain and mirrored."""

    file: str
    n: int
    bytes: int
    sha256: str
    sum: tuple[float, ...]
    squares: tuple[float, ...]


@dataclass(frozen=True)
class Manifest:
    """shape: (C, H, W) of a latent. classes: names by number, empty where only numbers are known. size: side of the
    images. sample: whether latents are samples of the posterior, else its means. autoencoder: its configuration as
    JSON, identity: its weights'. source: where the images were, source_fingerprint: of their list. statistics: the
    fingerprint of latents_stats.pt."""

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
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in ``folder``, or None where it has none. Raises ValueError for a damaged or foreign one."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["shards"] = tuple(shard_record(record) for record in content["shards"])
        content |= {name: tuple(content[name]) for name in ("shape", "classes")}
        manifest = Manifest(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the manifest of prepared latents ({type(error).__name__}: {error})") from error
    if manifest.format != FORMAT:
        raise ValueError(f"{path}: format = {manifest.format!r}, expected {FORMAT!r}")
    return manifest


def shard_record(content: Any) -> ShardRecord:
    """A record from its JSON. Raises KeyError or TypeError for something else."""
    return ShardRecord(**{**content, "sum": tuple(content["sum"]), "squares": tuple(content["squares"])})


def faults_in_files(manifest: Manifest, folder: Path, files: list[Path]) -> list[str]:
    """What is missing, too much or of another size among the shards, by the manifest."""
    found = {path.name: path.stat().st_size for path in files}
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


def check_autoencoder(manifest: Manifest, config: AutoencoderConfig, folder: Path) -> None:
    """Raise ValueError unless ``config`` is the one that made these latents, or has the same weights; these are
    looked at only where the configurations differ, as a path does on another machine."""
    recorded: dict[str, Any] = {"type": f"{type(config).__module__}:{type(config).__qualname__}"}
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        recorded |= dataclasses.asdict(config)
    if json.loads(json.dumps(recorded, default=str)) == manifest.autoencoder:
        return
    identity = config.build().identity
    if identity != manifest.identity:
        raise ValueError(
            f"{folder}: made by autoencoder {manifest.identity}, but autoencoder = {config!r} is {identity}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
