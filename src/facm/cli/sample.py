"""facm sample."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facm.api.device import in_precision, placed, with_compiled_blocks
from facm.cli.network_options import (
    NETWORK,
    SAMPLING,
    SOLVER,
    NetworkOptions,
    NetworkPath,
    SamplingOptions,
    SolverOptions,
    check_number,
)
from facm.cli.parsing import Advanced, Group
from facm.cli.prompt_options import PROMPTS, PromptOptions, teacher_beside
from facm.core.ffmpeg import MOST_FPS
from facm.core.files import TakenError, atomically
from facm.core.terminal import say
from facm.distributed.engine import Engine

if TYPE_CHECKING:
    import torch

    from facm.core.cond import Cond
    from facm.distributed.process_group import World
    from facm.flow.guidance import Guidance
    from facm.foundation.prompted import Prompts
    from facm.latents.decode import ImageDecoder
    from facm.pretrained.trained import Trained
    from facm.sampling.methods import Method
    from facm.sampling.source import Source


BESIDE = (".npz", ".mp4")
"""Suffixes of what may be written beside a picture."""


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """How many samples, of what, and where they go."""

    num_steps: int | None = None
    """Network evaluations for each sample; default: 1, one for each phase, or 32 of a network that has learned the flow
    alone."""
    num_samples: int | None = None
    """Number of samples; default: 100, or one for each prompt."""
    batch_size: int = 256
    """Samples made at once."""
    classes: tuple[str, ...] = ()
    """Labels, repeated in turn, as in 207,360; default: all classes."""
    prompts: Group[PromptOptions] = PROMPTS
    """Of a text-to-image model."""
    out: Path | None = None
    """PNG to write, never one that exists; default: a new file in RUN/samples/, or next to FILE. Signals and vectors
    go into an npz of that name, clips into an mp4, too, where ffmpeg is."""
    fps: float | None = None
    """Frames a second of that mp4; default: the model's, or 8."""
    npz: bool = False
    """Also write the images (uint8) and labels as NumPy arrays next to the PNG."""

    def check(self) -> None:
        """Raise ValueError for what cannot be drawn or written."""
        if self.num_samples is not None and self.num_samples < 1:
            raise ValueError(f"--num-samples {self.num_samples}, expected at least one sample")
        check_number(self.num_samples or 1)
        if self.batch_size < 1:
            raise ValueError(f"--batch-size {self.batch_size}, expected at least 1")
        if self.out is not None and self.out.suffix.lower() != ".png":
            raise ValueError(f"--out {self.out}, expected a name that ends in .png")
        if self.fps is not None and not 0 < self.fps <= MOST_FPS:
            raise ValueError(f"--fps {self.fps}, expected a number above 0, up to {MOST_FPS}")
        files = () if self.out is None else (self.out, *(self.out.with_suffix(suffix) for suffix in BESIDE))
        if taken := [file for file in files if file.exists()]:
            raise ValueError(f"--out {self.out}: {taken[0]} exists and is not overwritten; choose another name")
        self.labels()
        self.prompts.check()

    def labels(self) -> tuple[int, ...]:
        """The labels as numbers."""
        words = [word for text in self.classes for word in text.split(",") if word]
        if self.classes and not words:
            raise ValueError(f"--classes {' '.join(self.classes)!r:.40} names none, expected numbers, as in 207,360")
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
    from facm.sampling.by_name import default_steps

    options.check()
    with opened(Engine()) as ranks:
        world = placed(ranks, how.device)
        trained = which.open(network, how)
        num_steps = default_steps(trained.interface) if options.num_steps is None else options.num_steps
        method = solver.method(trained, how.sampler, num_steps)
        name = f"{_clock(trained)}{type(method).__name__.lower()}{num_steps}-seed{how.seed}"
        prompted = options.prompts.of(trained, options.num_samples, world)
        decoder = which.decoder(trained, world.device)
        trained = with_compiled_blocks(in_precision(trained, how.precision, world.device), how.compile)
        cond: Cond
        if prompted is None:
            n = options.num_samples or 100
            source, cond = trained.source(world.device), _labels(trained, options, n)
        else:
            if options.classes:
                raise ValueError(f"--classes {','.join(options.classes)}, but the network takes prompts: --prompt")
            n, source, cond = len(prompted.texts), trained.source(world.device), prompted.cond
            source = dataclasses.replace(source, shape=prompted.shape)
        guidance = solver.guidance(how.guidance_scale)
        x = _drawn(source, method, decoder, n, options.batch_size, cond, how.seed, guidance, world, trained.path)
        rows, titles = [x], list[str]()
        if prompted is not None and options.prompts.beside_teacher:
            teacher, euler, scale = teacher_beside(trained, source, options.prompts.beside_teacher)
            rows.append(
                _drawn(teacher, euler, decoder, n, options.batch_size, cond, how.seed, scale, world, trained.path)
            )
            titles = [f"student, {num_steps} steps", f"teacher, {options.prompts.beside_teacher} steps"]
        if x is None:
            return
        target = _written(x, [row for row in rows if row is not None], titles, cond, prompted, options, trained, name)
        say(f"{len(x)} samples, {type(method).__name__} with {num_steps} evaluations: {target}")
        say(f"{trained.which} of {trained.path}{'' if decoder is None else f', decoded by {decoder.identity}'}")


def _written(
    x: torch.Tensor,
    rows: Sequence[torch.Tensor],
    titles: list[str],
    cond: Cond,
    prompted: Prompts | None,
    options: SampleOptions,
    trained: Trained,
    name: str,
) -> str:
    """Write the samples x, and rows of what they are compared with; where they are, in words."""
    from facm.data.frames import is_clip
    from facm.sampling.captioned import save_captioned
    from facm.sampling.clips import FPS, clip_to_uint8
    from facm.sampling.images import is_image, save_grid

    if not (is_image(tuple(x.shape[1:])) or is_clip(tuple(x.shape[1:]))):
        numbers = _save_numbers({"samples": x.float().cpu().numpy()}, cond, options.out, trained.samples, name)
        return f"{numbers}, for samples of shape {tuple(x.shape[1:])} cannot be drawn"

    def save(path: Path) -> None:
        if prompted is None:
            save_grid(path, x, new=True)
        else:
            save_captioned(path, list(rows), prompted.texts, titles, new=True)

    if options.out is not None:
        save(options.out)
    target = options.out or _saved(save, trained.samples, name)
    fps = options.fps or (FPS if prompted is None else prompted.fps)
    clips = _save_clips(target.with_suffix(".mp4"), rows, fps)
    if options.npz:
        _save_numbers({"images": clip_to_uint8(x)}, cond, target, trained.samples, name)
    return f"{target}{clips}"


def _save_numbers(numbers: dict[str, Any], cond: Cond, out: Path | None, folder: Path, name: str) -> Path:
    """Write NumPy arrays by name, and the labels; the file."""
    import numpy as np
    import torch

    labels = cond.numpy() if isinstance(cond, torch.Tensor) else np.zeros(0, np.int64)

    def save(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomically(path.with_suffix(".npz"), new=True) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **numbers, labels=labels)

    if out is not None:
        save(out)
    return (out or _saved(save, folder, name)).with_suffix(".npz")


def _clock(trained: Trained) -> str:
    return "" if trained.images_seen is None else f"{trained.images_seen:012d}-"


def _drawn(
    source: Source,
    method: Method,
    decoder: ImageDecoder | None,
    n: int,
    batch_size: int,
    cond: Cond,
    seed: int,
    guidance: Guidance,
    world: World,
    path: Path,
) -> torch.Tensor | None:
    """All samples, on the first rank. Raises ValueError for samples that are not finite."""
    from facm.sampling.in_blocks import sample_in_blocks

    try:
        return sample_in_blocks(source, method, n, cond, seed, guidance, batch_size, decoder, world)
    except ValueError as error:
        if "not finite" not in str(error):
            raise
        raise ValueError(f"{error}: {path} is damaged, or --latent-scale is wrong") from error


def _labels(trained: Trained, options: SampleOptions, n: int) -> torch.Tensor | None:
    import torch

    from facm.flow.conditions import Labels
    from facm.sampling.generate import balanced_labels

    condition, classes = trained.interface.condition, options.labels()
    if not classes:
        return None if condition is None else balanced_labels(condition, range(n))
    if not isinstance(condition, Labels):
        raise ValueError(f"--classes {classes}, but the network is unconditional")
    null = condition.classes
    if wrong := [k for k in classes if not 0 <= k <= null]:
        raise ValueError(f"--classes {wrong[0]}, expected 0 to {null - 1}, or {null} for no class")
    return torch.tensor([classes[i % len(classes)] for i in range(n)])


def _save_clips(path: Path, rows: Sequence[torch.Tensor], fps: float) -> str:
    """Write an mp4 of clips where ffmpeg is at hand; what was done with them, in words, and nothing for images."""
    from facm.core.ffmpeg import HOW
    from facm.data.frames import is_clip
    from facm.sampling.clips import save_mp4

    if not is_clip(tuple(rows[0].shape[1:])):
        return ""
    frames = f"{rows[0].shape[2]} frames each"
    if save_mp4(path, rows, fps, new=True):
        return f" and {path.name}, {frames} at {fps:g} a second"
    return f", {frames} (without ffmpeg there is no mp4: {HOW})"


def _saved(save: Callable[[Path], None], folder: Path, name: str) -> Path:
    """A new picture in ``folder``, numbered where the name is taken, also by a command that draws at the same time."""
    k = 1
    while True:
        path = folder / f"{name if k == 1 else f'{name}-{k}'}.png"
        with contextlib.suppress(TakenError):
            if not any(path.with_suffix(suffix).exists() for suffix in BESIDE):
                save(path)
                return path
        k += 1
