"""How a run is conducted, as opposed to what it is: nothing here changes its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from facm.distributed.engine import Engine

if TYPE_CHECKING:
    from facm.training.callbacks import Callback

Tracker = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True)
class Session:
    """One session of a run.

    device: auto (a GPU if there is one), cpu, cuda, or a GPU's number as in cuda:1.
    engine: how the run is executed.
    quiet: whether nothing but errors is printed.
    trackers: where the log goes besides log.jsonl.
    callbacks: who else is told how the run goes.
    previews: whether grids of samples are drawn at checkpoints.
    """

    device: str = "auto"
    engine: Engine = Engine()
    quiet: bool = False
    trackers: Sequence[Tracker] = ()
    callbacks: Sequence[Callback] = ()
    previews: bool = True
