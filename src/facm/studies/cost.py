"""What a step costs, counted: the products of a training step over those of one forward pass, per image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from facm.core.objective import Objective, as_objective
from facm.core.rng import borrowed_generators
from facm.core.types import Batch
from facm.data.checked import first_indices
from facm.flow.conditions import Unconditional
from facm.flow.time_conditioning import native
from facm.pretrained.trained import FromRun
from facm.runs.config import Run, teacher_of
from facm.runs.folder import open_run
from facm.training.memory_plan.counters import Flops

LEAST = 8
"""Images in the counted step; more where an objective wants whole groups of them."""


def forward_passes(run: Run) -> float:
    """Forward passes of ``run``'s network that one image costs in training: teacher, objective, derivative, backward.

    Multiply-adds of matrix products, convolutions and attention, counted in one step of ``run`` on the CPU with fresh
    weights. Objectives with a schedule are taken at half of the run.
    """
    objective = as_objective(run.objective)
    dataset = run.data.open()
    with borrowed_generators(0), sdpa_kernel(SDPBackend.MATH):
        network = run.network.build()
        teacher = _teacher(run, network)
        group = objective.group_size
        n = -(-LEAST // group) * group
        read = dataset.read(np.resize(first_indices(dataset, n), n))
        batch = Batch(read.x_1, read.cond)
        with Flops() as forward, torch.no_grad():
            _predict(network, batch, objective)
        with Flops() as step:
            halfway = objective.at(run.images // 2)
            for term in halfway.loss_terms(network, batch, torch.Generator().manual_seed(0), teacher):
                term().total.backward()
    return step.total / forward.total


def _predict(network: Any, batch: Batch, objective: Objective) -> None:
    t = torch.full((len(batch.x_1),), 0.5)
    cond = None if isinstance(objective.condition, Unconditional) else batch.cond
    network(batch.x_1, cond=cond, **native(network, t))


def _teacher(run: Run, network: torch.nn.Module) -> Any | None:
    if run.teacher is None:
        return None
    if isinstance(run.teacher, FromRun):  # its weights do not matter here
        return open_run(Path(run.teacher.path))[1].network.build().requires_grad_(False)
    return teacher_of(run, network)
