"""The work of one step, counted on the meta device: floating-point operations of products and convolutions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from facm.core.modules import blocks_of
from facm.core.objective import as_objective
from facm.core.torch_private import backward
from facm.derivative import OpLevel
from facm.distributed.block_transforms import prepare
from facm.distributed.engine import Engine
from facm.runs.config import Run, asked_teacher
from facm.training.memory_plan.predict import batch_of, teacher_without_weights
from facm.training.memory_plan.rehearsal import AsOnDevice, built

H100 = 989e12
"""Dense bf16 operations a second of an H100 SXM, by its data sheet."""
UTILISATION = 0.4
"""Of that, taken for granted where hours are said: not measured."""


@dataclass(frozen=True)
class Work:
    """flops: of one step, all its samples. steps: of the run."""

    flops: int
    steps: int

    def hours(self, gpus: int, peak: float = H100, utilisation: float = UTILISATION) -> float:
        """Hours that all steps take on so many GPUs."""
        return self.flops * self.steps / (gpus * peak * utilisation) / 3600


def work(run: Run, engine: Engine | None = None, shape: tuple[int, ...] | None = None) -> Work:
    """What one sample takes, on the meta device, times the samples of a step.

    engine: of which checkpointing computes some of it twice. shape: of one x_1, where the run's data are not here.
    """
    engine, batch, teacher = engine or Engine(), batch_of(run, 1, shape), teacher_without_weights(run)
    objective = as_objective(run.objective)
    if isinstance(objective.derivative, OpLevel):
        own: Any = run.objective
        objective = as_objective(dataclasses.replace(own, derivative=OpLevel("plain")))
    network = built(run.network)
    asked: Any = asked_teacher(run, network, teacher)
    prepare(list(blocks_of(network, engine.blocks).values()), engine.checkpointing, compiled=False)
    with FlopCounterMode(display=False) as counter, AsOnDevice(bf16=False, fused=False):
        for term in objective.loss_terms(network, batch, torch.Generator(), asked):
            backward(term().total)
    return Work(counter.get_total_flops() * run.batch_size, -(-run.images // run.batch_size))
