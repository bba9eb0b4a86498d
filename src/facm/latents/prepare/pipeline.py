"""Images to latents on disk, on any number of processes, resuming after an interruption."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from facm.core.files import atomically, write_text
from facm.core.preparation import check_a_folder
from facm.core.serialize import to_json
from facm.data.checked import check_at_least
from facm.data.folder import THREADS
from facm.data.pictures import Pictures
from facm.data.sources import Source
from facm.distributed.collectives import by_first, check_same, gathered
from facm.distributed.process_group import ALONE, World
from facm.latents.autoencoders.types import Autoencoder, AutoencoderConfig
from facm.latents.manifest import MANIFEST, STATISTICS, Manifest
from facm.latents.prepare.encode import decoded, encode
from facm.latents.prepare.moments import Moments
from facm.latents.prepare.settings import Settings, begin, held
from facm.latents.prepare.shard_writer import finished, write_shard
from facm.latents.shards import read_shard
from facm.latents.statistics import load_statistics


@dataclass(frozen=True)
class Summary:
    """The result of :func:`prepare`.

    path: The folder of the latents.
    n: Number of images in the folder.
    made: Number of images that this call encoded, plain and mirrored.
    shards: Number of shards.
    shape: (C, h, w) of a latent.
    num_classes: Number of classes of the labels.
    identity: The identity of the autoencoder's weights.
    statistics: The fingerprint of the latents' statistics.
    seconds: Duration of this call.
    images_per_second: Images that all ranks together encoded per second of this call.
    """

    path: str
    n: int
    made: int
    shards: int
    shape: tuple[int, ...]
    num_classes: int
    identity: str
    statistics: str
    seconds: float
    images_per_second: float


def prepare(
    source: Source,
    autoencoder: AutoencoderConfig,
    out: Path,
    *,
    size: int = 256,
    shard_size: int = 10_000,
    batch_size: int = 64,
    seed: int = 0,
    sample: bool = True,
    world: World = ALONE,
    report: Callable[[int, int], None] | None = None,
    threads: int = THREADS,
) -> Summary:
    """Encode the centre crops of all images, plain and mirrored, into ``out``, for :class:`facm.latents.Latents`.

    source: Where the images come from.
    autoencoder: Configuration of the autoencoder.
    out: Folder of the latents; it is created if necessary.
    size: Height and width of the crops in pixels, a multiple of the autoencoder's factor.
    shard_size: Samples in each file, in the order of the source.
    batch_size: Images that are encoded together.
    seed: Seed of the posterior's samples, one for each image and one for its mirror image.
    sample: Whether to sample the posterior; otherwise its means are taken.
    world: The ranks, which share the shards and must see the same folder.
    report: Called on the first rank after each batch with the number of images done and of all images.
    threads: Number of threads that decode images on each rank.

    The latents do not depend on the number of ranks. After an interruption, another call resumes with the shards that
    are not complete.
    Raises ValueError for a folder with another preparation, foreign latents or damaged records, a broken image, or
    non-finite latents."""
    began = time.monotonic()
    check_at_least("prepare", "batch_size", batch_size, 1)
    check_at_least("prepare", "threads", threads, 1)
    pictures, encoder, settings = opened(source, autoencoder, out, size, shard_size, seed, sample)
    encoder = encoder.to(world.device)
    check_same(world, "what is to be prepared", settings)
    with held(out) if world.first else nullcontext():
        todo = by_first(world, lambda: _unfinished(out, settings))
        mine = todo[world.rank :: world.ranks]
        total = sum(len(settings.samples(k)) for k in todo)
        done, rounds = 0, max(gathered(world, sum(-(-len(settings.samples(k)) // batch_size) for k in mine)))
        work = _encoded(pictures, encoder, settings, out, mine, batch_size, threads, world.device)
        with closing(work):
            for _ in range(rounds):  # in step, so that a lost rank ends all
                done += sum(gathered(world, next(work, 0)))
                if report is not None and world.first:
                    report(settings.n - total + done, settings.n)
        manifest = by_first(world, lambda: _complete(out, settings, pictures))
    seconds = time.monotonic() - began
    return Summary(
        str(out),
        settings.n,
        total,
        settings.shards,
        manifest.shape,
        manifest.num_classes,
        settings.identity,
        manifest.statistics,
        seconds,
        total / seconds,
    )


def opened(
    source: Source,
    autoencoder: AutoencoderConfig,
    out: Path,
    size: int,
    shard_size: int,
    seed: int,
    sample: bool,
) -> tuple[Pictures, Autoencoder, Settings]:
    """What :func:`prepare` would encode, with what, and its settings; writes nothing. Raises ValueError as it does."""
    check_at_least("prepare", "size", size, 1)
    check_at_least("prepare", "shard_size", shard_size, 1)
    check_at_least("prepare", "seed", seed, 0)
    check_a_folder(out)
    encoder = autoencoder.build()
    if size % encoder.factor:
        raise ValueError(f"prepare: size = {size}, expected a multiple of {encoder.factor} for {encoder.identity}")
    pictures = source.open()
    settings = Settings(
        n=len(pictures),
        source=pictures.fingerprint,
        autoencoder=to_json(autoencoder),
        identity=encoder.identity,
        size=size,
        shard_size=shard_size,
        seed=seed,
        sample=sample,
    )
    return pictures, encoder, settings


def _unfinished(out: Path, settings: Settings) -> list[int]:
    begin(out, settings)
    return unfinished(out, settings)


def unfinished(out: Path, settings: Settings) -> list[int]:
    """The shards that are not whole in ``out``."""
    return [k for k in range(settings.shards) if finished(out / settings.file(k), len(settings.samples(k))) is None]


def _encoded(
    pictures: Pictures,
    encoder: Autoencoder,
    settings: Settings,
    out: Path,
    shards: Sequence[int],
    batch_size: int,
    threads: int,
    device: torch.device,
) -> Generator[int, None, None]:
    """Encode and write ``shards``, and yield the number of images of each batch.

    A shard is on the disk before its last batch is yielded.
    """
    indices = [i for k in shards for i in settings.samples(k)]
    side = settings.size // encoder.factor
    seed = settings.seed if settings.sample else None
    with closing(decoded(pictures, indices, settings.size, threads, ahead=2 * batch_size)) as crops:
        for k in shards:
            here = settings.samples(k)
            latents, latents_flip = torch.empty(2, len(here), encoder.channels, side, side)
            for start in range(0, len(here), batch_size):
                batch = here[start : start + batch_size]
                pixels = torch.from_numpy(np.stack(list(islice(crops, len(batch))))).to(device)
                place = slice(start, start + len(batch))
                latents[place] = encode(encoder, pixels, batch, False, seed, pictures)
                latents_flip[place] = encode(encoder, pixels, batch, True, seed, pictures)
                if place.stop == len(here):
                    write_shard(out / settings.file(k), latents, latents_flip, pictures.labels[here.start : here.stop])
                yield len(batch)


def _complete(out: Path, settings: Settings, pictures: Pictures) -> Manifest:
    """Write the statistics and the manifest of all shards. Raises ValueError where a shard is not complete."""
    records = []
    for k in range(settings.shards):
        record = finished(out / settings.file(k), len(settings.samples(k)))
        if record is None:
            raise ValueError(f"{out / settings.file(k)} is not whole, though its rank has written it: is {out} shared?")
        records.append(record)
    shape = read_shard(out / records[0].file).shape
    count = 2 * settings.n * shape[1] * shape[2]
    total = Moments(count, *(np.sum([getattr(r, name) for r in records], 0) for name in ("sum", "squares")))
    both = {"mean": total.mean, "std": total.std}
    with atomically(out / STATISTICS) as partial, partial.open("wb") as file:  # a name would become part of the bytes
        torch.save({name: torch.from_numpy(x).float().reshape(1, -1, 1, 1) for name, x in both.items()}, file)
    manifest = Manifest(
        n=settings.n,
        shape=shape,
        dtype="F32",
        num_classes=pictures.num_classes,
        classes=pictures.classes,
        size=settings.size,
        seed=settings.seed,
        sample=settings.sample,
        shard_size=settings.shard_size,
        autoencoder=settings.autoencoder,
        identity=settings.identity,
        source=pictures.name,
        source_fingerprint=settings.source,
        shards=tuple(records),
        statistics=load_statistics(out / STATISTICS).fingerprint,
    )
    write_text(out / MANIFEST, manifest.text())
    return manifest
