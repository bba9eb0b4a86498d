"""facm sample."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from facm.cli.network_options import FILE, SAMPLING, FileOptions, SamplingOptions
from facm.distributed.engine import Engine

if TYPE_CHECKING:
    from facm.distributed.process_group import World


def sample(
    run: Annotated[Path | None, tyro.conf.Positional] = None,
    file: Annotated[FileOptions, tyro.conf.arg(name="")] = FILE,
    options: Annotated[SamplingOptions, tyro.conf.arg(name="")] = SAMPLING,
    nfe: int = 1,
    n: int = 100,
    classes: tuple[str, ...] = (),
    out: Path | None = None,
    npz: bool = False,
) -> None:
    """Draw samples from a run's newest network, or a published file's, into a PNG grid.

    Args:
        run: the run's folder.
        nfe: network evaluations a sample.
        n: how many samples.
        classes: labels, repeated in turn, as in 207,360; default: all classes.
        out: PNG to write; default: a new file in RUN/samples/, or beside the file. A file that exists is not
            overwritten.
        npz: also write the images (uint8) and labels as NumPy arrays beside the PNG.
    """
    from facm.distributed.process_group import opened

    if n < 1:
        raise ValueError(f"--n {n}, expected at least one sample")
    if out is not None and out.suffix.lower() != ".png":
        raise ValueError(f"--out {out}, expected a name that ends in .png")
    if out is not None and (taken := [file for file in (out, out.with_suffix(".npz")) if file.exists()]):
        raise ValueError(f"--out {out}: {taken[0]} exists and is not overwritten; choose another name")
    with opened(Engine()) as world:
        _sample(run, file, options, nfe, n, _labels(classes), out, npz, world)


def _labels(classes: tuple[str, ...]) -> tuple[int, ...]:
    words = [word for text in classes for word in text.split(",") if word]
    if wrong := [word for word in words if not word.lstrip("-").isdigit()]:
        raise ValueError(f"--classes {wrong[0]}, expected numbers, as in 207,360")
    return tuple(map(int, words))


def _sample(
    run: Path | None,
    file: FileOptions,
    options: SamplingOptions,
    nfe: int,
    n: int,
    classes: tuple[int, ...],
    out: Path | None,
    npz: bool,
    world: World,
) -> None:
    import torch

    from facm.distributed.collectives import in_order
    from facm.flow.conditions import Labels
    from facm.sampling.generate import balanced_labels, blocks
    from facm.sampling.generate import sample as draw
    from facm.sampling.images import save_grid, to_uint8

    trained = file.open(run, options)
    method = options.method(trained, nfe)
    clock = "" if trained.images_seen is None else f"{trained.images_seen:012d}-"
    target = out or _unused(trained.samples, f"{clock}{type(method).__name__.lower()}{nfe}-seed{options.seed}")
    source = trained.source(world.device)
    decode = file.decoder(trained, world.device)
    cond = balanced_labels(source.condition, range(n))
    if classes:
        if not isinstance(source.condition, Labels):
            raise ValueError(f"--classes {classes}, but the network is unconditional")
        null = source.condition.classes
        if wrong := [k for k in classes if not 0 <= k <= null]:
            raise ValueError(f"--classes {wrong[0]}, expected 0 to {null - 1}, or {null} for no class")
        cond = torch.tensor([classes[i % len(classes)] for i in range(n)])

    def block(indices: range) -> tuple[torch.Tensor]:
        labels = None if cond is None else cond[indices.start : indices.stop]
        x = draw(source, method, indices, labels, options.seed, options.guidance())
        return (x if decode is None else decode(x),)

    parts = [part for _, (part,) in in_order(world, blocks(n), block) if part is not None]
    if not world.first:
        return
    x = torch.cat(parts)
    if bad := int((~x.isfinite()).flatten(1).any(1).sum()):
        raise ValueError(f"{bad} of {n} samples are not finite: {trained.path} is damaged, or --latent-scale is wrong")
    save_grid(target, x)
    print(f"{n} samples, {type(method).__name__} with {nfe} evaluations: {target}")
    print(f"{trained.which} of {trained.path}{'' if decode is None else f', decoded by {decode.identity}'}")
    if npz:
        import numpy as np

        labels = np.zeros(0, np.int64) if cond is None else cond.numpy()
        np.savez_compressed(target.with_suffix(".npz"), images=to_uint8(x), labels=labels)


def _unused(folder: Path, name: str) -> Path:
    """A PNG's path in ``folder``, numbered where the name is taken."""
    names = itertools.chain([name], (f"{name}-{k}" for k in itertools.count(2)))
    paths = (folder / f"{name}.png" for name in names)
    return next(path for path in paths if not (path.exists() or path.with_suffix(".npz").exists()))
