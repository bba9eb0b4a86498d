"""The settings that determine prepared latents, written before the first one so that two preparations never mix."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facm.core import preparation
from facm.core.preparation import RECORDS, SETTINGS
from facm.latents.manifest import MANIFEST, STATISTICS
from facm.latents.shards import shard_files


@dataclass(frozen=True)
class Settings:
    """All that determines the bytes of prepared latents.

    n: Number of images.
    source: Fingerprint of the list of images.
    autoencoder: The autoencoder's configuration as JSON.
    identity: The identity of the autoencoder's weights.
    size: Height and width of the crops in pixels.
    shard_size: Number of samples of each shard but the last.
    seed: Seed of the posterior's samples.
    sample: Whether the posterior is sampled; otherwise its means are taken.
    """

    n: int
    source: str
    autoencoder: Any
    identity: str
    size: int
    shard_size: int
    seed: int
    sample: bool

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.n // self.shard_size)

    def samples(self, k: int) -> range:
        """Indices of the samples in shard ``k``."""
        return range(k * self.shard_size, min((k + 1) * self.shard_size, self.n))

    def file(self, k: int) -> str:
        """Name of the file of shard ``k``."""
        width = max(3, len(str(self.shards - 1)))
        return f"latents_rank00_shard{k:0{width}d}.safetensors"


def held(out: Path) -> AbstractContextManager[None]:
    """Lock the folder, which is created if necessary, until the context or the process ends.

    Raises ValueError where another process prepares latents in it.
    """
    return preparation.held(out, "prepares latents in it")


def begin(out: Path, settings: Settings) -> None:
    """Write the settings into ``out``, or check that a preparation there has the same settings.

    Raises ValueError naming the settings that differ, and for latents that no preparation wrote.
    """
    preparation.begin(out, dataclasses.asdict(settings), *_files(out, settings))


def begun(out: Path, settings: Settings) -> bool:
    """Whether ``out`` holds a preparation with these settings; False where it holds none. Writes nothing.

    Raises ValueError as :func:`begin` does.
    """
    return preparation.begun(out, dataclasses.asdict(settings), *_files(out, settings))


def _files(out: Path, settings: Settings) -> tuple[set[str], set[str]]:
    """The data files that are there, and those that may be."""
    present = {file.name for file in shard_files(out)}
    if not (out / RECORDS / SETTINGS).exists():
        present |= {name for name in (MANIFEST, STATISTICS) if (out / name).exists()}
    return present, {settings.file(k) for k in range(settings.shards)}
