"""A small grid at every checkpoint, to look at while a run trains: from the same noise every time."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from facm.core.types import HasPrompts
from facm.data.checked import first_indices
from facm.data.frames import is_clip
from facm.distributed.collectives import any_of, by_first
from facm.distributed.wrap import is_sharded
from facm.flow.conditions import Labels, Unconditional
from facm.flow.guidance import NO_GUIDANCE
from facm.flow.velocity import guidance_of
from facm.latents.decode import ImageDecoder
from facm.runs.ema import Weights
from facm.sampling.captioned import save_captioned
from facm.sampling.clips import save_mp4
from facm.sampling.generate import balanced_labels, sample, sample_balanced
from facm.sampling.images import is_image, save_grid
from facm.sampling.methods import Euler, default_method
from facm.sampling.source import Source
from facm.training.trainer import Trainer

PREVIEW, COLUMNS = 20, 10
TEACHER_NFE = 8
PROMPTS = 4
STEPS = (1, 2, 4)
"""Steps of the rows for a data set with prompts; below them stands the teacher."""


def draw_preview(trainer: Trainer, path: Path, decode: ImageDecoder | None = None) -> None:
    """Samples of the first EMA, from the same noise every time, latents decoded: of each class, or of the first prompts
    of the data set. Of a network that learned to jump a row each with 1, 2 and 4 steps, and one of the teacher.

    Nothing is drawn where there is a picture at ``path`` already, for half of a pair, which makes no samples alone, for
    data that are not images and for which there is no ``decode``, for an objective that does not say its condition, or
    for conditions that are neither labels nor prompts.
    """
    state, interface, shape = trainer.state, trainer.objective.interface, trainer.dataset.shape
    drawable = any_of(state.world, decode is not None) or is_image(shape) or is_clip(shape)
    there = by_first(state.world, path.exists)
    known = isinstance(interface.condition, Labels | Unconditional) or isinstance(trainer.dataset, HasPrompts)
    if there or not known or not drawable or not interface.knows_all_times or interface.condition is None:
        return
    parameter = next(state.network.parameters())
    if not (state.world.first or is_sharded(parameter)):
        return  # who holds a shard takes part
    device = state.world.device if is_sharded(parameter) else parameter.device  # shards may be offloaded
    source = Source(state.network, interface, shape, device)
    with _averaged(state.network, state.ema.averages[trainer.run.ema.sigma_rels[0]]):
        if isinstance(trainer.dataset, HasPrompts):
            _draw_prompts(trainer, trainer.dataset, source, path, decode)
            return
        if not (interface.learns_shortcut or interface.learns_jumps):
            rows = [sample_balanced(source, default_method(interface, TEACHER_NFE), PREVIEW)]
        else:
            rows = [sample_balanced(source, default_method(interface, k), COLUMNS) for k in _steps(source)]
            rows += _of_teacher(trainer, source)
    if state.world.first:
        rows = [x if decode is None else decode(x) for x in rows]
        save_grid(path, torch.cat(rows), COLUMNS)
        _save_clips(path, rows)


def _of_teacher(trainer: Trainer, source: Source) -> list[Tensor]:
    """The teacher's samples of the same noise, guided as the student learns it; nothing without a teacher."""
    if trainer.teacher is None:
        return []
    labels = balanced_labels(source.condition, range(COLUMNS))
    guidance = guidance_of(trainer.objective.velocity)
    teacher = replace(source, network=trainer.teacher)
    return [sample(teacher, Euler(TEACHER_NFE), range(COLUMNS), labels, 0, guidance)]


def _steps(source: Source) -> list[int]:
    """Numbers of steps that are drawn: at least one for each phase."""
    fewest = len(source.interface.bounds) - 1
    return [k for k in STEPS if k >= fewest] or [fewest]


def _draw_prompts(
    trainer: Trainer, dataset: HasPrompts, source: Source, path: Path, decode: ImageDecoder | None
) -> None:
    """A row for each number of steps, and one of the teacher; without a shortcut one row of the flow."""
    which = first_indices(trainer.dataset, PROMPTS)
    cond = trainer.dataset.read(which).cond
    learns = source.interface.learns_shortcut or source.interface.learns_jumps
    rows = {
        f"{k} step{'s' * (k > 1)}": (source, default_method(source.interface, k), NO_GUIDANCE) for k in _steps(source)
    }
    if not learns:
        rows = {f"{TEACHER_NFE} steps": (source, default_method(source.interface, TEACHER_NFE), NO_GUIDANCE)}
    if trainer.teacher is not None:
        guidance = guidance_of(trainer.objective.velocity)
        teacher = replace(source, network=trainer.teacher)
        rows[f"teacher, {TEACHER_NFE} steps"] = (teacher, Euler(TEACHER_NFE), guidance)
    drawn = [sample(of, method, which.tolist(), cond, 0, guidance) for of, method, guidance in rows.values()]
    if trainer.state.world.first:
        images = [x if decode is None else decode(x) for x in drawn]
        save_captioned(path, images, dataset.prompts(which), list(rows))
        _save_clips(path, images)


def _save_clips(path: Path, rows: Sequence[Tensor]) -> None:
    """An mp4 of clips beside their picture, where ffmpeg is at hand."""
    if not is_clip(tuple(rows[0].shape[1:])):
        return
    try:
        save_mp4(path.with_suffix(".mp4"), rows)
    except ValueError as error:  # what is only looked at ends no run
        warnings.warn(str(error), RuntimeWarning, stacklevel=2)


@contextlib.contextmanager
def _averaged(network: torch.nn.Module, average: Weights) -> Iterator[None]:
    """The network in eval mode with the average's weights, in place, for a sharded network is never whole anywhere."""
    raw = {name: value.detach().clone() for name, value in network.state_dict().items()}
    training = network.training
    try:
        _put(network.eval(), average)
        yield
    finally:
        _put(network.train(training), raw)


@torch.no_grad()
def _put(network: torch.nn.Module, weights: Weights) -> None:
    for name, value in network.state_dict().items():
        value.copy_(weights[name])
