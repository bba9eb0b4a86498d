"""Bytes on each GPU: what lies there all the time, and what one step adds at its peak."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from facm.core.cond import Cond, mapped
from facm.core.modules import blocks_of
from facm.core.objective import as_objective
from facm.core.types import Batch, CanRest, InFiles, Rests
from facm.data.checked import first_indices
from facm.distributed.engine import Engine
from facm.flow.conditions import Labels
from facm.pretrained.trained import FromRun
from facm.runs.config import Run, WithinStudent
from facm.runs.folder import open_run
from facm.training.checks import check_resting
from facm.training.memory_plan.rehearsal import Rehearsal, built, rehearse

GB = 10**9
CONTEXT = 1.2 * GB  # CUDA context, cuBLAS workspace, NCCL buffers: a rule of thumb
FRAGMENTS = 0.05  # of what comes and goes in a step, lost to the allocator: a rule of thumb


@dataclass(frozen=True)
class Plan:
    """Bytes on each of ``ranks`` devices. ``gpu_memory``: bytes that a device has. Written as a table by str()."""

    ranks: int
    gpu_memory: float
    batch: int
    parameters: int
    gradients: int
    optimizer: int
    ema: int
    teacher: int
    buckets: int
    """DDP's copy of the gradients."""
    gathered: int
    """FSDP: the largest unit in full, twice (the next is fetched while one is in use), and its gradient."""
    cast: int
    """Weights that autocast keeps in bf16."""
    activations: int
    tangent: int
    overhead: int
    advice: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        parts = dataclasses.asdict(self)
        return sum(parts[name] for name in ROWS)

    @property
    def fits(self) -> bool:
        return self.total <= self.gpu_memory

    def __str__(self) -> str:
        lines = [f"{name:12} {_gb(getattr(self, name)):>9}" for name in ROWS if getattr(self, name)]
        verdict = "fits" if self.fits else "does NOT fit"
        return "\n".join(
            [*lines, f"{'total':12} {_gb(self.total):>9} of {_gb(self.gpu_memory)}: {verdict}", *self.advice]
        )


def _gb(size: float) -> str:
    return f"{size / GB:.1f} GB" if size >= GB else f"{size / 1e6:.0f} MB"


ROWS = (
    "parameters",
    "gradients",
    "optimizer",
    "ema",
    "teacher",
    "buckets",
    "gathered",
    "cast",
    "activations",
    "tangent",
    "overhead",
)


def plan(
    run: Run,
    gpus: int = 1,
    gpu_memory: float = 80 * GB,
    engine: Engine | None = None,
    shape: tuple[int, ...] | None = None,
    device: str = "cuda",
    advise: bool = True,
    rehearsal: Rehearsal | None = None,
) -> Plan:
    """What ``run`` would take on each of ``gpus`` devices with ``gpu_memory`` bytes.

    shape: of one x_1, where the run's data are not here. device: "cuda" (bf16 if the run's precision says so or "auto",
    fused attention) or "cpu" (what a CPU would take; no overhead is added). advise: if it does not fit, try what would.
    rehearsal: of a micro-batch of this size, where one was made before; it does not depend on the number of GPUs.
    Raises ValueError for sizes that do not divide, and where the data are needed and missing.
    """
    engine = engine or Engine()
    if gpus < 1:
        raise ValueError(f"gpus = {gpus}, expected at least 1")
    if not gpu_memory > 0:
        raise ValueError(f"gpu_memory = {gpu_memory:g}, expected a positive number of bytes")
    if shape is not None and (not all(0 < side <= 65_536 for side in shape) or math.prod(shape) > 2**31):
        raise ValueError(f"shape = {shape}, expected sides of 1 to 65536 and at most 2147483648 numbers")
    engine.check(run.batch_size, gpus)
    local = run.batch_size // (gpus * engine.accumulate)
    network, teacher = built(run.network), teacher_without_weights(run)
    bf16 = device == "cuda" and run.precision != "fp32"
    if rehearsal is None:
        rehearsal = rehearse(run, batch_of(run, local, shape), engine, teacher, bf16, device == "cuda")
    found = _add_up(run, gpus, gpu_memory, engine, network, teacher, rehearsal, bf16, device)
    if found.fits or not advise:
        return found
    return dataclasses.replace(found, advice=tuple(_advice(run, gpus, gpu_memory, engine, shape, device)))


def _add_up(
    run: Run,
    gpus: int,
    gpu_memory: float,
    engine: Engine,
    network: nn.Module,
    teacher: nn.Module | None,
    rehearsal: Rehearsal,
    bf16: bool,
    device: str,
) -> Plan:
    kind = engine.kind(gpus)
    shards = gpus // engine.replicas if kind == "fsdp" else 1
    everything = _bytes(network)
    trained = sum(p.nbytes for p in network.parameters() if p.requires_grad)
    averaged = sum(max(p.element_size(), 4) * p.numel() for p in network.parameters() if p.requires_grad)
    copied = sum(value.nbytes for value in network.state_dict(keep_vars=True).values() if not value.requires_grad)
    resident = 0 if engine.cpu_offload else 1
    self_teacher = 0 if as_objective(run.objective).average_momentum is None else everything
    half = 2 if kind == "fsdp" and bf16 else 4
    units = [_bytes(block) for block in blocks_of(network, engine.blocks).values()]
    largest = max(*units, everything - sum(units), 0)  # what is in no block is a unit, too
    step = rehearsal.values + rehearsal.tangent
    return Plan(
        ranks=gpus,
        gpu_memory=gpu_memory,
        batch=run.batch_size // (gpus * engine.accumulate),
        parameters=resident * everything // shards,
        gradients=resident * trained // shards,
        optimizer=resident * 2 * trained // shards,
        ema=(resident * len(run.ema.sigma_rels) * (copied + averaged) + self_teacher) // shards,
        teacher=_of_teacher(teacher, kind) // (shards if kind == "fsdp" else 1),
        buckets=trained if kind == "ddp" else 0,
        gathered=(2 * largest * half // 4 + largest) if kind == "fsdp" and shards > 1 else 0,
        cast=0 if kind == "fsdp" else rehearsal.cast,
        activations=rehearsal.values,
        tangent=rehearsal.tangent,
        overhead=int(CONTEXT + FRAGMENTS * step) if device == "cuda" else 0,
    )


def _advice(
    run: Run, gpus: int, gpu_memory: float, engine: Engine, shape: tuple[int, ...] | None, device: str
) -> Iterator[str]:
    """Changes of the engine, least first, each with its total; ends at the first that fits."""
    for changed, other, option in _changes(run, gpus, engine):
        try:
            tried = plan(other, gpus, gpu_memory, changed, shape, device, advise=False)
        except ValueError:  # a change that this network does not take: checkpointing without blocks
            continue
        yield f"with {option}: {_gb(tried.total)}{', fits' if tried.fits else ''}"
        if tried.fits:
            return
    yield "expected more GPUs, or more memory on each"


def _changes(run: Run, gpus: int, engine: Engine) -> Iterator[tuple[Engine, Run, str]]:
    said = []
    if not engine.checkpointing:
        engine = dataclasses.replace(engine, checkpointing=True)
        said.append("engine.checkpointing = True")
        yield engine, run, ", ".join(said)
    smallest = run.batch_size // gpus
    if isinstance(run.teacher, CanRest) and engine.kind(gpus) != "fsdp" and run.teacher.resting() != run.teacher:
        part = dataclasses.replace(engine, accumulate=max(smallest, engine.accumulate))
        resting: Any = run.teacher.resting()
        parts = [] if part == engine else [f"engine.accumulate = {smallest}"]
        yield part, dataclasses.replace(run, teacher=resting), ", ".join([*said, *parts, "resident = 'one'"])
    if engine.kind(gpus) == "ddp":
        engine = dataclasses.replace(engine, parallel="fsdp")
        said.append("engine.parallel = 'fsdp'")
        yield engine, run, ", ".join(said)
    if engine.accumulate < smallest:
        engine = dataclasses.replace(engine, accumulate=smallest)
        yield engine, run, ", ".join([*said, f"engine.accumulate = {smallest}"])
        said.append(f"engine.accumulate = {smallest}")
    if not engine.cpu_offload:
        engine = dataclasses.replace(engine, parallel="fsdp", cpu_offload=True)
        said = [s for s in said if "parallel" not in s] + ["engine.parallel = 'fsdp'", "engine.cpu_offload = True"]
        yield engine, run, ", ".join(said)


def _bytes(module: nn.Module) -> int:
    return sum(x.nbytes for x in (*module.parameters(), *module.buffers()))


def _of_teacher(teacher: nn.Module | None, kind: str) -> int:
    """Bytes that the teacher takes on the device; what comes only when it is asked takes the place of as much else."""
    if teacher is None:
        return 0
    check_resting(teacher, kind)
    return _bytes(teacher) - (teacher.resting_bytes() if isinstance(teacher, Rests) else 0)


def teacher_without_weights(run: Run) -> nn.Module | None:
    """The teacher's network without its weights; where its run is not there yet, one like the student."""
    if run.teacher is None or isinstance(run.teacher, WithinStudent):
        return None
    if isinstance(run.teacher, InFiles):
        with torch.device("meta"):
            return run.teacher.load().requires_grad_(False).eval()
    config: Any = run.network
    if isinstance(run.teacher, FromRun) and (Path(run.teacher.path) / "run.json").exists():
        config = open_run(Path(run.teacher.path))[1].network
    return built(config).requires_grad_(False).eval()


def batch_of(run: Run, size: int, shape: tuple[int, ...] | None) -> Batch:
    """``size`` samples on the meta device. shape: of one x_1, where the run's data are not here."""
    cond: Cond = None
    if shape is None:
        try:
            dataset = run.data.open()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the run's data cannot be opened ({error}); expected shape, such as (4, 32, 32)"
            ) from error
        sample = dataset.read(first_indices(dataset, 1))
        shape, cond = tuple(sample.x_1.shape[1:]), sample.cond
    condition = as_objective(run.objective).condition
    if cond is None and isinstance(condition, Labels):
        cond = torch.zeros(1, dtype=torch.int64)
    whole = mapped(lambda value: torch.empty((size, *value.shape[1:]), dtype=value.dtype, device="meta"), cond)
    return Batch(torch.empty((size, *shape), device="meta"), whole)
