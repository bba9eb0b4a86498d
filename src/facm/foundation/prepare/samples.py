"""Pictures to latents, and prompts to latents by the teacher: x_1 of the samples whose prompts are encoded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facm.core.cond import Cond, mapped, repeated
from facm.core.files import write_text
from facm.core.preparation import record_path, record_text
from facm.data.crop import centre_crop
from facm.data.folder import THREADS
from facm.data.in_memory import from_bytes
from facm.data.pictures import Pictures
from facm.foundation.captions.dataset import padded
from facm.foundation.captions.manifest import Part, ShardRecord, TeacherSettings
from facm.foundation.captions.shards import NULL, PROMPTS, SAMPLES, Shard, read_shard, sample_tensors, write
from facm.foundation.families.base import Family
from facm.foundation.prepare.clips import Clips
from facm.foundation.prepare.settings import Settings
from facm.sampling.generate import noise

Makes = Callable[[range], Tensor]
"""Latents (n, ...) float32 on the CPU of the samples at these places, all of one bucket."""


def write_samples(
    out: Path, settings: Settings, shards: Iterable[int], batch_size: int, makes: Makes, names: Callable[[int], str]
) -> Generator[int, None, None]:
    """Write ``shards`` of latents, and yield the number of each batch. A shard is on the disk before its last one.

    names: of the sample at a place, for the ValueError about latents that are not finite.
    """
    for k in shards:
        span, made = settings.spans[k], list[Tensor]()
        for start in range(span.start, span.stop, batch_size):
            here = range(start, min(start + batch_size, span.stop))
            latents = makes(here)
            bad = ~latents.isfinite().flatten(1).all(1)
            if bool(bad.any()):
                raise ValueError(f"the latents of {names(here[int(bad.nonzero()[0])])} are not finite")
            made.append(latents.bfloat16() if settings.latents == "bf16" else latents)
            if here.stop == span.stop:
                path = out / settings.file(SAMPLES, k)
                record_path(path).unlink(missing_ok=True)
                sha256 = write(path, sample_tensors(torch.cat(made)))
                record = ShardRecord(path.name, len(span), path.stat().st_size, sha256)
                write_text(record_path(path), record_text(asdict(record)))
            yield len(here)


def from_pictures(
    family: Family, vae: Any, pictures: Pictures, settings: Settings, order: Sequence[int], device: torch.device
) -> Makes:
    """Latents by the VAE's encoder of pictures that are resized to cover their bucket, and cut around the centre."""

    @torch.no_grad()
    def made(places: range) -> Tensor:
        height, width = settings.size_at(places.start)

        def crop(place: int) -> np.ndarray:
            return centre_crop(pictures.image(order[place]), height, width).transpose(2, 0, 1)

        with ThreadPoolExecutor(THREADS) as pool:
            crops = np.stack(list(pool.map(crop, places)))
        return family.to_latents(vae, torch.from_numpy(from_bytes(crops)).to(device)).float().cpu()

    return made


def from_clips(
    family: Family, vae: Any, clips: Clips, settings: Settings, order: Sequence[int], device: torch.device
) -> Makes:
    """Latents by the VAE's encoder of the first frames of clips, each frame cut as :func:`from_pictures` cuts pictures.
    Clips are encoded one by one, since each takes much memory."""

    @torch.no_grad()
    def made(places: range) -> Tensor:
        height, width = settings.size_at(places.start)

        latents = []
        for place in places:
            frames = clips.frames(order[place], settings.frames, settings.fps)
            crops = np.stack([centre_crop(frame, height, width) for frame in frames])  # one large frame at a time
            clip = torch.from_numpy(from_bytes(crops.transpose(3, 0, 1, 2)))[None].to(device)
            latents.append(family.to_latents(vae, clip).float().cpu())
        return torch.cat(latents)

    return made


def from_teacher(
    family: Family,
    network: nn.Module,
    out: Path,
    settings: Settings,
    teacher: TeacherSettings,
    parts: Sequence[Part],
    shape: tuple[int, ...],
    order: Sequence[int],
    device: torch.device,
) -> Makes:
    """Latents by the teacher, as its pipeline samples with Euler's method: noise of (seed, the source's sample).

    network: F(x, t, cond). teacher: with sigmas. parts: the condition in the data set. shape: of one latent.
    """
    null = on_device(condition([read_shard(out / NULL, PROMPTS)], [(0, 0)], parts), device)
    shards = [read_shard(out / settings.file(PROMPTS, k), PROMPTS) for k in range(len(settings.spans))]
    where = [(k, row) for k, span in enumerate(settings.spans) for row in range(len(span))]

    def made(places: range) -> Tensor:
        x_0 = noise(teacher.seed, [order[place] for place in places], 0, shape).to(device)
        cond = on_device(condition(shards, [where[place] for place in places], parts), device)
        return euler(family, network, x_0, cond, null, teacher).cpu()

    return made


def condition(shards: Sequence[Shard], where: Sequence[tuple[int, int]], parts: Sequence[Part]) -> dict[str, Tensor]:
    """The condition (n, ...) of samples, given as shard and row."""
    rows = [shards[k].prompt(row)[1] for k, row in where]
    return {part.name: padded([row[part.name] for row in rows], part) for part in parts}


def on_device(cond: Cond, device: torch.device) -> dict[str, Tensor]:
    """Named tensors, moved."""
    moved = mapped(lambda value: value.to(device), cond)
    assert isinstance(moved, dict)
    return moved


@torch.no_grad()
def euler(
    family: Family,
    network: nn.Module,
    x_0: Tensor,
    cond: dict[str, Tensor],
    null: dict[str, Tensor],
    teacher: TeacherSettings,
) -> Tensor:
    """x at the last of the teacher's sigmas, guided as the pipeline guides; the state is float32 throughout.

    null: of one sample (1, ...).
    """
    unconditional = repeated(null, len(x_0))
    assert isinstance(unconditional, dict)

    x = x_0
    for sigma, after in pairwise(teacher.sigmas):
        t = torch.full((len(x),), 1 - sigma, dtype=torch.float32, device=x.device)
        v, w = network(x, t, cond).float(), family.scale(teacher.guidance_at(sigma))
        if w != 1:
            v = family.guide(v, network(x, t, unconditional).float(), w)
        x = x + (sigma - after) * v
    return x
