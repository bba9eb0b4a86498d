"""facm latents encode | verify."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from facm.api.device import placed
from facm.cli.parsing import Group
from facm.core.terminal import counting, say
from facm.distributed.engine import Engine

if TYPE_CHECKING:
    from facm.data.sources import Source
    from facm.distributed.process_group import World
    from facm.latents.autoencoders.types import AutoencoderConfig


@dataclasses.dataclass(frozen=True)
class EncodeOptions:
    """What is encoded, and how."""

    size: int = 256
    """Side of the centre crop in pixels."""
    shard_size: int = 10_000
    """Samples in one file."""
    batch_size: int = 64
    """Images encoded at once."""
    seed: int = 0
    """Seed of the samples of the posterior."""
    means: bool = False
    """Write the posterior's means instead of its samples."""
    device: str = "auto"
    """Where to compute: auto (a GPU if there is one), cpu, cuda, or a GPU's number as in cuda:1."""
    dry_run: bool = False
    """Check everything and print what would be written; write nothing."""
    quiet: bool = False
    """Print nothing but errors."""


ENCODE = EncodeOptions()


def encode(
    images: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    out: Path,
    autoencoder: tuple[str, ...],
    options: Group[EncodeOptions] = ENCODE,
) -> None:
    """Encode a folder of images into latents to train on; after an interruption the same command continues.

    Args:
        images: folder whose sub-folders are the classes, as ImageNet's train; or WebDataset's tar files, in a folder.
        out: folder to write.
        autoencoder: a VA-VAE's file, a folder in the diffusers format, or TAEF2's encoder and decoder.
    """
    from facm.data.sources import source_at
    from facm.distributed.collectives import by_first
    from facm.distributed.process_group import opened
    from facm.latents.autoencoders import autoencoder_at

    source, config = source_at(str(images)), autoencoder_at(autoencoder)
    with opened(Engine()) as ranks:
        world = placed(ranks, options.device)
        if options.dry_run:
            by_first(world, lambda: _dry_run(source, config, out, options))
        else:
            _encode(source, config, out, options, world)


def _encode(source: Source, autoencoder: AutoencoderConfig, out: Path, options: EncodeOptions, world: World) -> None:
    from facm.latents.prepare import prepare

    summary = prepare(
        source,
        autoencoder,
        out,
        size=options.size,
        shard_size=options.shard_size,
        batch_size=options.batch_size,
        seed=options.seed,
        sample=not options.means,
        world=world,
        report=None if options.quiet else counting("images"),
    )
    if world.first and not options.quiet:
        what = f"{summary.n} images of {summary.num_classes} classes as latents {summary.shape}"
        say(f"{what} in {summary.shards} files, {summary.images_per_second:.1f} images/s: {out}")


def _dry_run(source: Source, autoencoder: AutoencoderConfig, out: Path, options: EncodeOptions) -> None:
    """Print what would be encoded. Raises ValueError as encoding would before its first image."""
    from facm.latents.prepare.pipeline import opened, unfinished
    from facm.latents.prepare.settings import begun

    if options.batch_size < 1:
        raise ValueError(f"--batch-size {options.batch_size}, expected at least 1")
    size, means = options.size, options.means
    pictures, encoder, settings = opened(source, autoencoder, out, size, options.shard_size, options.seed, not means)
    begun(out, settings)
    shape = (encoder.channels, size // encoder.factor, size // encoder.factor)
    say(f"{settings.n} images of {pictures.num_classes} classes as latents {shape} by {settings.identity}")
    left, gigabytes = len(unfinished(out, settings)), 2 * 4e-9 * settings.n * math.prod(shape)
    say(f"would write to {out}: {left} of {settings.shards} files are left, {gigabytes:.3g} GB altogether")
    say("dry run: nothing was written")


def verify(
    latents: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    grid: Path | None = None,
    autoencoder: tuple[str, ...] = (),
) -> None:
    """Read all of a folder of latents, compare it with its manifest, and list everything that is wrong; also of one
    with prompts, which facm prepare wrote.

    Args:
        latents: folder that facm latents encode or facm prepare wrote, or the reference implementation's.
        grid: PNG to draw 20 of the latents into, decoded, each next to its mirror image.
        autoencoder: decoder for the grid; default: the manifest's.
    """
    from facm.foundation.captions.manifest import is_prepared
    from facm.latents.prepare import verify as check

    if is_prepared(latents):
        _verify_captioned(latents, grid)
        return
    if grid is not None and grid.exists():
        raise ValueError(f"--grid {grid} exists and is not overwritten; choose another name")
    found = check(latents)
    against = "as its manifest says" if found.manifest else "without a manifest to compare with"
    say(f"{latents}: {found.n} latents {found.shape} {found.dtype} in {found.shards} files, whole, {against}")
    if grid is not None:
        _draw(latents, grid, autoencoder)
        say(f"20 of them, decoded: {grid}")


def _verify_captioned(folder: Path, grid: Path | None) -> None:
    from facm.foundation.prepare.verify import verify as check

    if grid is not None:
        raise ValueError(f"--grid {grid} for {folder}, which holds prompts; expected it of latents of classes")
    found = check(folder)
    shapes = ", ".join(f"{bucket.shape} ({bucket.n})" for bucket in found.buckets)
    files = len(found.prompts) + len(found.samples) + 1
    say(f"{folder}: {found.n} latents {shapes} with prompts for {found.pipeline} in {files} files, whole")


def _draw(latents: Path, grid: Path, paths: tuple[str, ...]) -> None:
    import numpy as np
    import torch

    from facm.latents import Latents
    from facm.latents.autoencoders import autoencoder_at
    from facm.latents.decode import decoder_of
    from facm.latents.manifest import read_manifest
    from facm.sampling.images import save_grid

    manifest = read_manifest(latents)
    classes = 1000 if manifest is None else manifest.num_classes
    dataset = Latents(str(latents), num_classes=classes).open()
    decode = decoder_of(dataset, torch.device("cpu"), autoencoder_at(paths) if paths else None)
    if decode is None:
        raise ValueError(f"{latents} does not say what decodes it: expected --autoencoder")
    chosen = np.linspace(0, len(dataset) - 1, min(20, len(dataset)), dtype=np.int64).repeat(2)
    save_grid(grid, decode(dataset.read_mirrored(chosen, np.arange(len(chosen)) % 2 == 1).x_1), new=True)
