"""Trackers of experiments, fed with the lines of log.jsonl: TensorBoard, Weights and Biases, trackio.

Whatever goes wrong with one, a missing package or a missing network, the run goes on after one warning.
"""

from __future__ import annotations

from collections.abc import Sequence

from facm.distributed.engine import Engine
from facm.distributed.process_group import World
from facm.training.callbacks import Callback
from facm.training.trackers.base import Guarded, Sink
from facm.training.trackers.tensorboard import TensorBoard
from facm.training.trackers.trackio import Trackio
from facm.training.trackers.wandb import WeightsAndBiases

SINKS: dict[str, type[Sink]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio}


def trackers_of(names: Sequence[str], world: World, engine: Engine) -> list[Callback]:
    """The trackers of these names, each once, on the first rank; none elsewhere. Raises ValueError for another name."""
    for name in names:
        if name not in SINKS:
            raise ValueError(f"tracker = {name!r}, expected one of {', '.join(SINKS)}")
    how = {"ranks": world.ranks, "engine": engine.kind(world.ranks)}
    return [Guarded(name, SINKS[name](), how) for name in dict.fromkeys(names) if world.first]
