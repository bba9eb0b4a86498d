"""The settings that determine prepared data, and which sample is in which file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from facm.core import preparation
from facm.foundation.captions.manifest import MANIFEST, ShardRecord, TeacherSettings
from facm.foundation.captions.shards import NULL, PROMPTS, SAMPLES


@dataclass(frozen=True)
class Settings:
    """All that determines the bytes of prepared data.

    n: number of samples.
    source: fingerprint of prompts and pictures.
    pipeline: class name of the model's pipeline.
    hashes: component of the model -> hash of its files.
    negative_prompt: what the null is the embedding of.
    sizes: (height, width) in pixels of each bucket.
    counts: number of samples of each bucket.
    shard_size: most samples of a shard.
    latents: type of the latents, fp32 or bf16.
    embeddings: type of the embeddings, encoder (its own) or bf16.
    precision: type of the text encoders' weights, fp32 or bf16.
    teacher: how it makes the data, without its sigmas, which follow; None for pictures.
    frames: of each clip; 1 for pictures.
    fps: frames a second that video files are read at; None: as they are.
    """

    n: int
    source: str
    pipeline: str
    hashes: dict[str, str]
    negative_prompt: str
    sizes: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]
    shard_size: int
    latents: str
    embeddings: str
    precision: Literal["fp32", "bf16"]
    teacher: TeacherSettings | None
    frames: int = 1
    fps: float | None = None

    @property
    def recorded(self) -> dict[str, Any]:
        """As JSON. What only clips, or two experts, have is left out for others: preparations that began before there
        were any go on."""
        content = dataclasses.asdict(self)
        if self.teacher is not None and self.teacher.boundary is None:
            for name in ("guidance_scale_2", "boundary"):
                del content["teacher"][name]
        return {name: content[name] for name in content if self.frames > 1 or name not in ("frames", "fps")}

    @property
    def spans(self) -> tuple[range, ...]:
        """The places of the samples in each shard; none reaches over the end of a bucket."""
        return tuple(self._spans())

    def _spans(self) -> Iterator[range]:
        begin = 0
        for count in self.counts:
            for start in range(begin, begin + count, self.shard_size):
                yield range(start, min(start + self.shard_size, begin + count))
            begin += count

    def size_at(self, place: int) -> tuple[int, int]:
        """(height, width) of the sample at this place."""
        for size, count in zip(self.sizes, self.counts, strict=True):
            if place < count:
                return size
            place -= count
        raise IndexError(f"there is no sample at this place of {self.n}")

    def file(self, kind: str, k: int) -> str:
        """Name of shard ``k`` of PROMPTS or SAMPLES."""
        return f"{kind}_{k:05d}.safetensors"


def held(out: Path) -> AbstractContextManager[None]:
    """Lock the folder, which is created if necessary; see :func:`facm.core.preparation.held`."""
    return preparation.held(out, "prepares data in it")


def begin(out: Path, settings: Settings) -> None:
    """Write the settings, or hold them against those that are there; see :func:`facm.core.preparation.begin`."""
    preparation.begin(out, settings.recorded, *_files(out, settings))


def begun(out: Path, settings: Settings) -> bool:
    """Whether ``out`` holds a preparation with these settings. Writes nothing. Raises as :func:`begin` does."""
    return preparation.begun(out, settings.recorded, *_files(out, settings))


def _files(out: Path, settings: Settings) -> tuple[set[str], set[str]]:
    present = {path.name for path in data_files(out)}
    present |= {name for name in (NULL, MANIFEST) if (out / name).exists()}
    expected = {settings.file(kind, k) for kind in (PROMPTS, SAMPLES) for k in range(len(settings.spans))}
    return present, expected | {NULL, MANIFEST}


def data_files(out: Path) -> list[Path]:
    """All shards in the folder, and what else looks like prepared latents."""
    return sorted(path for kind in (PROMPTS, SAMPLES, "latents") for path in out.glob(f"{kind}_*.safetensors"))


def finished(path: Path, n: int) -> ShardRecord | None:
    """The record of the shard ``path`` if it has n samples and the size that was recorded; otherwise None.

    Raises ValueError for a damaged record.
    """
    content: Any = preparation.read_record(path)
    if content is None:
        return None
    try:
        record = ShardRecord(**content)
    except (TypeError, ValueError) as error:
        raise preparation.unreadable_record(path, error) from error
    return record if (record.file, record.n, record.bytes) == (path.name, n, path.stat().st_size) else None
