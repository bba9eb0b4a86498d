"""What only shows once a run's parts are together, checked once, before anything is written."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from torch import nn

from facm.core.component import check_fulfils
from facm.core.modules import without_memory
from facm.core.objective import Objective, as_objective, guidance_scale, needs_teacher
from facm.core.types import Batch, Dataset, Rests
from facm.data.checked import first_indices, read_checked
from facm.data.stream import Stream
from facm.derivative import Chain, WholeNetwork
from facm.distributed.engine import Engine
from facm.distributed.wrap import check_shardable
from facm.flow.conditions import Labels
from facm.flow.time_conditioning import check_task
from facm.networks.adapters.base import inner_config
from facm.pretrained.trained import FromRun
from facm.runs.config import Run


@dataclass(frozen=True, eq=False)
class CheckedRun:
    """A run whose parts fit together, and its data set, opened.

    run: the configuration.
    dataset: ``run.data``, opened.
    objective: ``run.objective``, wrapped where it is a bare function.
    """

    run: Run
    dataset: Dataset
    objective: Objective


def check(run: Run | CheckedRun, engine: Engine | None = None, ranks: int = 1) -> CheckedRun:
    """Open the run's data and raise ValueError where its parts do not fit each other, the engine or the ranks.

    A run that was checked already is only held against engine and ranks.
    """
    engine = engine or Engine()
    checked = run if isinstance(run, CheckedRun) else _checked(run)
    engine.check(checked.run.batch_size, ranks)
    _check_engine(checked.objective, engine)
    if checked.objective.average_momentum is not None and engine.kind(ranks) == "fsdp":
        raise ValueError(
            f"objective = {checked.run.objective} asks an average of the network's weights, and engine.parallel = "
            "'fsdp' leaves no network whole to average; expected 'ddp', or momentum = 0"
        )
    if engine.kind(ranks) == "fsdp":
        check_shardable(without_memory(checked.run.network.build), engine.blocks)
    return checked


def _checked(run: Run) -> CheckedRun:
    dataset, objective = run.data.open(), as_objective(run.objective)
    check_fulfils(dataset, Dataset, run.data)
    Stream(dataset, run.seed, run.batch_size)
    first = read_checked(dataset, first_indices(dataset, 8))
    _check_condition(run, dataset, objective, first)
    check_network(run)
    _check_teacher(run, objective)
    return CheckedRun(run, dataset, objective)


def _check_condition(run: Run, dataset: Dataset, objective: Objective, first: Batch) -> None:
    condition = objective.condition
    if condition is None:
        return
    if isinstance(condition, Labels) and (dataset.num_classes or 0) > condition.classes:
        raise ValueError(
            f"data with {dataset.num_classes} classes, condition = {condition}; expected Labels({dataset.num_classes})"
        )
    condition.check(first.cond, len(first.x_1))
    classes = _classes(run.network)
    if isinstance(condition, Labels) and classes is not None and classes < condition.classes:
        raise ValueError(
            f"network = {run.network} has {classes} classes, condition = {condition}; expected num_classes = "
            f"{condition.classes}"
        )


def _classes(network: Any) -> int | None:
    """Number of labels that a network takes besides the null, where its configuration has it."""
    classes = getattr(inner_config(network), "num_classes", None)
    return classes if isinstance(classes, int) else None


def check_network(run: Run) -> None:
    """Raise ValueError where the network lacks what the objective needs: a second time, a head."""
    network = without_memory(run.network.build)
    objective = as_objective(run.objective)
    if objective.task is not None:
        check_task(objective.task, network)
    objective.check_network(network)
    if objective.derivative is not None:
        _warn_of_batch_statistics(network.train())


STATISTICS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
TRACKED = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def _warn_of_batch_statistics(network: nn.Module) -> None:
    """Warn of norms that learn statistics of batches: an objective with a derivative asks the network several times a
    step, at different times, and mixes them."""
    found = [
        f"{name} ({type(m).__name__})"
        for name, m in network.named_modules()
        if m.training and (isinstance(m, STATISTICS) or (isinstance(m, TRACKED) and m.track_running_stats))
    ]
    if found:
        warnings.warn(
            f"network: {found[0]}{f' and {len(found) - 1} more' * (len(found) > 1)} in train mode normalises by each "
            "batch, and its running statistics are updated by every pass of a step, the anchor's and the shortcut's: "
            "samples depend on each other, and sampling sees other statistics. Use GroupNorm, or keep the norm in eval "
            "mode by overriding the network's train()",
            stacklevel=2,
        )


def _check_teacher(run: Run, objective: Objective) -> None:
    if needs_teacher(objective.velocity) and run.teacher is None:
        raise ValueError(
            "the objective distils, and teacher = None: give the run a teacher, or train from scratch with "
            "velocity = DataVelocity()"
        )
    scale = guidance_scale(objective.velocity)
    if isinstance(run.teacher, FromRun) and scale > 1 and run.teacher.label_dropout() == 0:
        raise ValueError(
            f"guidance scale = {scale}, and the teacher {run.teacher.path} was trained with label_dropout 0: "
            "its null condition means nothing; expected scale 1, or a teacher with label_dropout > 0"
        )


def _check_engine(objective: Objective, engine: Engine) -> None:
    derivative = objective.derivative
    naive = isinstance(derivative, WholeNetwork)
    naive |= isinstance(derivative, Chain) and not (derivative.checkpoint or derivative.op_level)
    if engine.checkpointing and naive:
        raise ValueError(
            f"engine.checkpointing = True with derivative = {derivative}: torch.func.jvp cannot be checkpointed "
            "inside, and would keep everything; expected derivative = OpLevel() or Chain(checkpoint=True)"
        )


def check_resting(teacher: nn.Module, kind: str) -> None:
    """Raise ValueError for a teacher part of which waits in host memory, where ``kind`` of engine shards it."""
    if kind == "fsdp" and isinstance(teacher, Rests) and teacher.resting_bytes():
        raise ValueError(
            "teacher: resident = 'one' with engine.parallel = 'fsdp', whose ranks each hold a part of all weights; "
            "expected resident = 'both', with engine.cpu_offload = True where memory is short"
        )
