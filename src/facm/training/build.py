"""From a run's configuration to a trainer: network, teacher, optimiser and data, each made or opened once."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from facm.core.hashing import digest
from facm.core.modules import blocks_of
from facm.core.serialize import fingerprint
from facm.core.state_dict import check_finite, load_strictly
from facm.core.types import FillsItself, InFiles, PartlyElsewhere
from facm.data.stream import Stream
from facm.distributed.block_transforms import prepare
from facm.distributed.collectives import by_first, check_same
from facm.distributed.engine import Engine
from facm.distributed.gradients import check_parameters
from facm.distributed.process_group import World
from facm.distributed.wrap import local, shard, spread, without_parameters
from facm.networks.adapters.base import adapters_of, unlike
from facm.runs.config import Pretrained, Run, WithinStudent, asked_teacher
from facm.runs.ema import EMA
from facm.runs.folder import RunFolder
from facm.runs.self_teacher import SelfTeacher
from facm.training.checks import CheckedRun, check_resting
from facm.training.precision import resolved_precision
from facm.training.state import Skips, TrainState, restore
from facm.training.trainer import Trainer
from facm.training.utilisation import utilisation


def build(checked: CheckedRun, folder: RunFolder, engine: Engine, world: World, device: torch.device) -> Trainer:
    """The run, ready for its next step: at the newest checkpoint in ``folder``, or at its start.

    Raises ValueError where the ranks do not agree, and what :func:`facm.training.state.restore` raises.
    """
    run = checked.run
    check_same(world, "the run's fingerprint", fingerprint(run))
    stream = Stream(checked.dataset, run.seed, run.batch_size, world.rank, world.ranks, engine.accumulate)
    network = _network(run, folder, engine, world)
    empty = any(p.is_meta for p in network.parameters()) and not _whole_in_checkpoint(run, folder)
    teacher, teacher_record = _teacher(run, engine, world, device, network)
    momentum = checked.objective.average_momentum
    self_teacher = None if momentum is None else SelfTeacher(network, momentum, device)
    wrapped = spread(network.train(), engine, world, device, resolved_precision(run, device) == "bf16")
    _fill(network, empty)
    state = TrainState(
        network,
        run.optimizer.build(network),
        EMA(run.ema, network),
        wrapped,
        Skips.none(device),
        self_teacher,
        world,
        getattr(checked.dataset, "fingerprint", None),
    )
    restore(state, run, folder, teacher_record)
    rng = torch.Generator(device)
    share = utilisation(run, engine, device)
    return Trainer(run, checked.objective, stream, state, teacher, teacher_record, engine, world, device, rng, share)


def _network(run: Run, folder: RunFolder, engine: Engine, world: World) -> torch.nn.Module:
    """Build and initialise the network (identical on all ranks).

    Under FSDP parameters are left on meta where they come from files, or from a checkpoint: each rank reads its shards
    when it holds them, and nothing is whole in one place.
    """
    if engine.kind(world.ranks) == "fsdp":
        from_files = isinstance(run.network, InFiles) and run.initial is None
        if isinstance(run.network, InFiles):
            by_first(world, run.network.check_files)
        if from_files or _whole_in_checkpoint(run, folder):
            with without_parameters():
                return run.network.build()
    network = run.network.build()
    if run.initial is not None:
        _initialise(network, run)
    if world.ranks > 1:
        check_parameters(network, world)
    return network


def _whole_in_checkpoint(run: Run, folder: RunFolder) -> bool:
    """Whether all weights come from a checkpoint in ``folder``."""
    elsewhere = isinstance(run.network, PartlyElsewhere) and run.network.partly_elsewhere
    return bool(folder.checkpoints()) and not elsewhere


def _initialise(network: torch.nn.Module, run: Run) -> None:
    """Load the weights that the run starts from. Raises ValueError where they would mean another function."""
    assert run.initial is not None
    may_miss, initial = getattr(network, "zero_init_prefixes", ()), run.initial.load()
    if (theirs := adapters_of(initial)) != (ours := adapters_of(network)):
        raise ValueError(
            f"initial = {run.initial} is seen through {' of '.join(theirs) or 'no adapter'}, network through "
            f"{' of '.join(ours) or 'no adapter'}: the same weights would mean something else; expected the same"
        )
    load_strictly(network, initial.state_dict(), f"initial = {run.initial}", may_miss)
    if differ := unlike(network, initial):
        raise ValueError(
            f"initial = {run.initial} fits network, but as another function: {'; '.join(differ)}; expected the same"
        )


def _teacher(
    run: Run, engine: Engine, world: World, device: torch.device, network: torch.nn.Module
) -> tuple[Any | None, dict[str, str] | None]:
    """The teacher, frozen, and sharded where the student is; and its identity, which all ranks must agree on."""
    if run.teacher is None:
        return None, None
    if isinstance(run.teacher, WithinStudent):
        return run.teacher.within(network), {"identity": repr(run.teacher)}
    teacher, sha256 = _loaded(run.teacher, engine, world)
    record = {"identity": repr(run.teacher), "sha256": sha256}
    check_same(world, "the teacher", record)
    check_resting(teacher, engine.kind(world.ranks))
    _compile(teacher, engine)
    if engine.kind(world.ranks) == "fsdp":
        empty = any(p.is_meta for p in teacher.parameters())
        placed = shard(teacher, engine, world, device, resolved_precision(run, device) == "bf16")
        _fill(placed, empty)
    else:
        placed = teacher.to(device)
    check_finite(teacher, _local(teacher), f"teacher = {run.teacher}")
    return asked_teacher(run, network, placed), record


def _compile(teacher: torch.nn.Module, engine: Engine) -> None:
    """Compile the teacher's blocks where the student's are; a teacher without blocks stays as it is."""
    named = dict(teacher.named_modules())
    if engine.compile == "blocks":
        blocks = blocks_of(teacher, engine.blocks if all(name in named for name in engine.blocks) else ())
        prepare(list(blocks.values()), checkpointing=False, compiled=bool(blocks))


def _loaded(config: Pretrained, engine: Engine, world: World) -> tuple[torch.nn.Module, str]:
    """The frozen network, under FSDP without values where each rank can read its part of them, and the hash of its
    weights, or of the files that they are in."""
    if not isinstance(config, InFiles):
        teacher = config.load().eval().requires_grad_(False)
        return teacher, digest(teacher.state_dict())
    by_first(world, config.check_files)
    sha256 = by_first(world, config.files_sha256)
    with without_parameters() if engine.kind(world.ranks) == "fsdp" else nullcontext():
        return config.load().eval().requires_grad_(False), sha256


def _fill(network: torch.nn.Module, empty: bool) -> None:
    """Let the parts of ``network`` that were built without values read them, where they are in files."""
    for module in network.modules() if empty else ():
        if isinstance(module, FillsItself):
            module.fill()


def _local(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """This rank's parts of all weights."""
    return {name: local(value) for name, value in network.state_dict(keep_vars=True).items()}
