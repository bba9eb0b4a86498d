"""facm sample."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

from facm.cli.device import in_precision, placed
from facm.cli.network_options import (
    NETWORK,
    SAMPLING,
    SOLVER,
    NetworkOptions,
    NetworkPath,
    SamplingOptions,
    SolverOptions,
)
from facm.cli.parsing import Advanced, Group
from facm.core.files import TakenError, atomically
from facm.core.terminal import say
from facm.distributed.engine import Engine

if TYPE_CHECKING:
    import torch

    from facm.distributed.process_group import World
    from facm.flow.conditions import Condition
    from facm.latents.decode import Decoder
    from facm.pretrained.trained import Trained
    from facm.sampling.methods import Method


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """How many samples, of what, and where they go."""

    num_steps: int = 1
    """Network evaluations for each sample."""
    num_samples: int = 100
    """Number of samples."""
    batch_size: int = 256
    """Samples made at once."""
    classes: tuple[str, ...] = ()
    """Labels, repeated in turn, as in 207,360; default: all classes."""
    out: Path | None = None
    """PNG to write; default: a new file in RUN/samples/, or next to FILE. An existing file is not overwritten."""
    npz: bool = False
    """Also write the images (uint8) and labels as NumPy arrays next to the PNG."""

    def check(self) -> None:
        """Raise ValueError for what cannot be drawn or written."""
        if self.num_samples < 1:
            raise ValueError(f"--num-samples {self.num_samples}, expected at least one sample")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size {self.batch_size}, expected at least 1")
        if self.out is not None and self.out.suffix.lower() != ".png":
            raise ValueError(f"--out {self.out}, expected a name that ends in .png")
        files = () if self.out is None else (self.out, self.out.with_suffix(".npz"))
        if taken := [file for file in files if file.exists()]:
            raise ValueError(f"--out {self.out}: {taken[0]} exists and is not overwritten; choose another name")
        self.labels()

    def labels(self) -> tuple[int, ...]:
        """The labels as numbers."""
        words = [word for text in self.classes for word in text.split(",") if word]
        if wrong := [word for word in words if not re.fullmatch(r"-?[0-9]{1,18}", word)]:
            raise ValueError(f"--classes {wrong[0]:.40}, expected numbers, as in 207,360")
        return tuple(map(int, words))


SAMPLE = SampleOptions()


def sample(
    network: NetworkPath,
    options: Group[SampleOptions] = SAMPLE,
    how: Group[SamplingOptions] = SAMPLING,
    solver: Advanced[Group[SolverOptions]] = SOLVER,
    which: Advanced[Group[NetworkOptions]] = NETWORK,
) -> None:
    """Draw samples from a run's newest network, or from a published file's, into a PNG grid.

    Args:
        network: a run's folder, or a checkpoint file: published, exported or imported.
    """
    from facm.distributed.process_group import opened
    from facm.sampling.images import save_grid, to_uint8

    options.check()
    with opened(Engine()) as ranks:
        world = placed(ranks, how.device)
        trained = which.open(network, how)
        method = solver.method(trained, how.sampler, options.num_steps)
        clock = "" if trained.images_seen is None else f"{trained.images_seen:012d}-"
        name = f"{clock}{type(method).__name__.lower()}{options.num_steps}-seed{how.seed}"
        folder = trained.samples
        decoder = which.decoder(trained, world.device)
        trained = in_precision(trained, how.precision, world.device)
        x, cond = _drawn(trained, method, decoder, options, how, solver, world)
        if x is None:
            return
        if options.out is not None:
            save_grid(options.out, x, new=True)
        target = options.out or _saved(x, folder, name)
        say(f"{len(x)} samples, {type(method).__name__} with {options.num_steps} evaluations: {target}")
        say(f"{trained.which} of {trained.path}{'' if decoder is None else f', decoded by {decoder.identity}'}")
        if options.npz:
            import numpy as np

            labels = np.zeros(0, np.int64) if cond is None else cond.numpy()
            with atomically(target.with_suffix(".npz"), new=True) as partial, partial.open("wb") as file:
                np.savez_compressed(file, images=to_uint8(x), labels=labels)


def _drawn(
    trained: Trained,
    method: Method,
    decoder: Decoder | None,
    options: SampleOptions,
    how: SamplingOptions,
    solver: SolverOptions,
    world: World,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """All samples and their labels, on the first rank. Raises ValueError for samples that are not finite."""
    import torch

    from facm.distributed.collectives import in_order
    from facm.sampling.generate import blocks
    from facm.sampling.generate import sample as draw

    source = trained.source(world.device)
    cond = _cond(source.condition, options)
    guidance = solver.guidance(how.guidance_scale)

    def block(indices: range) -> tuple[torch.Tensor]:
        labels = None if cond is None else cond[indices.start : indices.stop]
        x = draw(source, method, indices, labels, how.seed, guidance)
        return (x if decoder is None else decoder(x),)

    of_all = in_order(world, blocks(options.num_samples, options.batch_size), block)
    parts = [part for _, (part,) in of_all if part is not None]
    if not world.first:
        return None, None
    x = torch.cat(parts)
    if bad := int((~x.isfinite()).flatten(1).any(1).sum()):
        what = f"{bad} of {len(x)} samples are not finite"
        raise ValueError(f"{what}: {trained.path} is damaged, or --latent-scale is wrong")
    return x, cond


def _cond(condition: Condition, options: SampleOptions) -> torch.Tensor | None:
    import torch

    from facm.flow.conditions import Labels
    from facm.sampling.generate import balanced_labels

    classes, n = options.labels(), options.num_samples
    if not classes:
        return balanced_labels(condition, range(n))
    if not isinstance(condition, Labels):
        raise ValueError(f"--classes {classes}, but the network is unconditional")
    null = condition.classes
    if wrong := [k for k in classes if not 0 <= k <= null]:
        raise ValueError(f"--classes {wrong[0]}, expected 0 to {null - 1}, or {null} for no class")
    return torch.tensor([classes[i % len(classes)] for i in range(n)])


def _saved(x: torch.Tensor, folder: Path, name: str) -> Path:
    """A new picture in ``folder``, numbered where the name is taken, also by a command that draws at the same time."""
    from facm.sampling.images import save_grid

    k = 1
    while True:
        path = folder / f"{name if k == 1 else f'{name}-{k}'}.png"
        with contextlib.suppress(TakenError):
            if not path.with_suffix(".npz").exists():
                save_grid(path, x, new=True)
                return path
        k += 1
