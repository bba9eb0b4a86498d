"""A small grid at every checkpoint, to look at while a run trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from facm.distributed.collectives import any_of, by_first
from facm.distributed.wrap import is_sharded
from facm.flow.conditions import Labels, Unconditional
from facm.latents.decode import Decoder
from facm.runs.ema import Weights
from facm.sampling.generate import sample_balanced
from facm.sampling.images import is_image, save_grid
from facm.sampling.methods import default_method
from facm.sampling.source import Source
from facm.training.trainer import Trainer

PREVIEW = 20
TEACHER_NFE = 8


def draw_preview(trainer: Trainer, path: Path, decode: Decoder | None = None) -> None:
    """Samples of the first EMA, from the same noise every time, latents decoded.

    Nothing is drawn where there is a picture at ``path`` already, for data that are not images and for which there is
    no ``decode``, for an objective that does not say its condition, or for conditions other than labels.
    """
    state, interface, shape = trainer.state, trainer.objective.interface, trainer.dataset.shape
    drawable = any_of(state.world, decode is not None) or is_image(shape)
    there = by_first(state.world, path.exists)
    if there or not isinstance(interface.condition, Labels | Unconditional) or not drawable:
        return
    parameter = next(state.network.parameters())
    if not (state.world.first or is_sharded(parameter)):
        return  # who holds a shard takes part
    device = state.world.device if is_sharded(parameter) else parameter.device  # shards may be offloaded
    source = Source(state.network, interface, shape, device)
    one_step = interface.learns_shortcut or interface.learns_jumps
    method = default_method(interface, 1 if one_step else TEACHER_NFE)
    with _averaged(state.network, state.ema.averages[trainer.run.ema.sigma_rels[0]]):
        x = sample_balanced(source, method, PREVIEW)
    if state.world.first:
        save_grid(path, x if decode is None else decode(x))


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
