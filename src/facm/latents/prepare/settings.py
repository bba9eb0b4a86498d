"""The settings that determine prepared latents, written before the first one so that two preparations never mix."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facm.core import claims
from facm.core.files import write_text
from facm.core.serialize import modernised
from facm.core.untrusted.door import read_json
from facm.latents.manifest import MANIFEST, RECORDS, SETTINGS, STATISTICS
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


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """Lock the folder, which is created if necessary, until the context or the process ends.

    Raises ValueError where another process prepares latents in it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(claims.held(out, make=True))
        except claims.HeldError as error:
            raise ValueError(f"{out} is in use by another process that prepares latents in it") from error
        yield


def begin(out: Path, settings: Settings) -> None:
    """Write the settings into ``out``, or check that a preparation there has the same settings.

    Raises ValueError naming the settings that differ, and for latents that no preparation wrote.
    """
    if begun(out, settings):
        return
    path = out / RECORDS / SETTINGS
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(dataclasses.asdict(settings), indent=1) + "\n")


def begun(out: Path, settings: Settings) -> bool:
    """Whether ``out`` holds a preparation with these settings; False where it holds none. Writes nothing.

    Raises ValueError as :func:`begin` does.
    """
    path = out / RECORDS / SETTINGS
    now = json.loads(json.dumps(dataclasses.asdict(settings)))
    latents = {file.name for file in shard_files(out)}
    if not path.exists():
        foreign = sorted(latents | {name for name in (MANIFEST, STATISTICS) if (out / name).exists()})
        if foreign:
            raise ValueError(f"{out} holds {foreign[0]}, which no preparation left here: choose another folder")
        return False
    try:
        before = read_json(path)
        differing = [
            f"{key} = {before.get(key)!r}, now {now[key]!r}" for key in now if modernised(before.get(key)) != now[key]
        ]
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not the settings of a preparation ({error})") from error
    if differing:
        raise ValueError(f"{out} holds another preparation: {'; '.join(differing)}; choose another folder")
    unknown = sorted(latents - {settings.file(k) for k in range(settings.shards)})
    if unknown:
        raise ValueError(f"{out / unknown[0]}: expected {settings.shards} shards, and not this one")
    return True
