"""facm prepare | verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from facm.cli.terminal import counting
from facm.distributed.engine import Engine


def prepare(
    images: Annotated[Path, tyro.conf.Positional],
    out: Path,
    autoencoder: tuple[str, ...],
    size: int = 256,
    shard_size: int = 10_000,
    batch: int = 64,
    seed: int = 0,
    means: bool = False,
    quiet: bool = False,
) -> None:
    """Encode a folder of images into latents to train on; an interrupted one goes on with the same command.

    Args:
        images: folder whose sub-folders are the classes, as ImageNet's train; or WebDataset's tar files, in a folder.
        out: folder to write.
        autoencoder: a VA-VAE's file, a folder in the diffusers format, or TAEF2's encoder and decoder.
        size: side of the centre crop in pixels.
        shard_size: samples in a file.
        batch: images encoded at once.
        seed: of the samples of the posterior.
        means: the posterior's means instead of its samples.
        quiet: print nothing but errors.
    """
    from facm.data.sources import source_at
    from facm.distributed.process_group import opened
    from facm.latents.autoencoders import autoencoder_at
    from facm.latents.prepare import prepare as encode

    with opened(Engine()) as world:
        summary = encode(
            source_at(str(images)),
            autoencoder_at(autoencoder),
            out,
            size=size,
            shard_size=shard_size,
            batch_size=batch,
            seed=seed,
            sample=not means,
            world=world,
            report=None if quiet else counting("images"),
        )
    if world.first and not quiet:
        print(
            f"{summary.n} images of {summary.num_classes} classes as latents {summary.shape} in {summary.shards} "
            f"files, {summary.images_per_second:.1f} images/s: {out}"
        )


def verify(
    latents: Annotated[Path, tyro.conf.Positional], grid: Path | None = None, autoencoder: tuple[str, ...] = ()
) -> None:
    """Read all of a folder of latents and compare it with what its manifest says; list all that is wrong.

    Args:
        latents: folder that facm prepare wrote, or the reference's.
        grid: PNG to draw 20 of the latents into, decoded, each beside its mirror image.
        autoencoder: what decodes them; default: what the manifest says.
    """
    from facm.latents.prepare import verify as check

    if grid is not None and grid.exists():
        raise ValueError(f"--grid {grid} exists and is not overwritten; choose another name")
    found = check(latents)
    against = "as its manifest says" if found.manifest else "without a manifest to compare with"
    print(f"{latents}: {found.n} latents {found.shape} {found.dtype} in {found.shards} files, whole, {against}")
    if grid is not None:
        _draw(latents, grid, autoencoder)
        print(f"20 of them, decoded: {grid}")


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
    save_grid(grid, decode(dataset.read_mirrored(chosen, np.arange(len(chosen)) % 2 == 1).x_1))
