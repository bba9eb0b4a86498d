"""What the ranks send each other in one FACM distillation step, and what a sharded rank gathers at once.

    python benchmarks/scale.py --json results/scale.json      # 2 ranks over gloo on this machine's CPUs

{ddp, fsdp} x derivatives, on one network, the weights and the draws of which are the same in every row; a row with
another norm of the gradient is an error. The rows take turns, a step each.

wire: bytes that one rank sends in a step, counted where PyTorch dispatches its collectives: the tensor each is given,
times what a ring sends of it (all-reduce 2 (N - 1) / N, all-gather and reduce-scatter (N - 1) / N of the whole). It is
compared with :func:`predicted`. gathers: how often the blocks' parameters come together, in passes over the network,
the teacher's one included. gathered: the most bytes of whole parameters that lay on a rank at once, beside its shards:
the storages that FSDP copies gathered parameters into, whose sizes are added up whenever it does; buffered: with the
buffers that it copies them from, the next block's among them, which is fetched ahead. Optimiser, EMA and
the norm of the gradient are outside of the counts and inside of the seconds. Two processes that talk through one
machine's memory say nothing of a network's speed, and on a busy machine little at all: seconds are there to show that
nothing is off by a factor.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from facm.core.modules import blocks_of
from facm.core.types import Batch
from facm.derivative import Chain, Derivative, NoGraph, OpLevel, WholeNetwork
from facm.distributed.collectives import gathered
from facm.distributed.engine import Engine
from facm.distributed.gradients import gradient_norm, reducing
from facm.distributed.process_group import World, opened
from facm.distributed.wrap import shard, spread
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.velocity import TeacherVelocity
from facm.networks.lightning_dit import LightningDiT
from facm.objectives.facm import FACM

CLASSES = 10
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """One row. passes: forwards of the student through its units in the shortcut's part of the step."""

    parallel: Any
    name: str
    derivative: Derivative
    passes: int = 1
    checkpointing: bool = False

    @property
    def engine(self) -> Engine:
        return Engine(parallel=self.parallel, checkpointing=self.checkpointing)


CASES = tuple(
    case
    for parallel in ("ddp", "fsdp")
    for case in (
        Case(parallel, "whole", WholeNetwork()),
        Case(parallel, "no_graph", NoGraph(), passes=2),
        Case(parallel, "chain", Chain()),
        Case(parallel, "op_level", OpLevel()),
        Case(parallel, "op_level+checkpoint", OpLevel(), checkpointing=True),
    )
)


class Sent(TorchDispatchMode):
    """``wire``: bytes that this rank sends, by kind of collective; ``peak``: the most of gathered parameters at once;
    ``peak_with_buffers``: with what all-gathers write into, from which FSDP copies to the parameters."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.wire: Counter[str] = Counter()
        self.peak = self.peak_with_buffers = 0
        self._share = (ranks - 1) / ranks
        self._whole: dict[int, torch.UntypedStorage] = {}
        self._buffers: list[tuple[StorageWeakRef, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name.startswith("c10d::"):
            largest = max((t.nbytes for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)), default=0)
            kind = next((k for k in ("reduce_scatter", "allgather", "allreduce") if k in name), name)
            self.wire[kind] += round(largest * self._share * (2 if kind == "allreduce" else 1))
        out = func(*args, **kwargs)
        if name == "fsdp::split_with_sizes_copy":
            for whole in kwargs["out"]:
                storage = whole.untyped_storage()
                self._whole[storage._cdata] = storage  # FSDP keeps it, and frees it by giving it no bytes
        elif name == "fsdp::all_gather_copy_in":
            storage = args[1].untyped_storage()
            self._buffers.append((StorageWeakRef(storage), storage.nbytes()))
        else:
            return out
        self._buffers = [(buffer, size) for buffer, size in self._buffers if not buffer.expired()]
        whole = sum(storage.nbytes() for storage in self._whole.values())
        self.peak = max(self.peak, whole)
        self.peak_with_buffers = max(self.peak_with_buffers, whole + sum(size for _, size in self._buffers))
        return out


@dataclass(frozen=True)
class Bytes:
    """blocks, root: of all parameters, as FSDP cuts them; largest: of one block; trained: of all that are trained."""

    blocks: int
    root: int
    largest: int
    trained: int
    trained_cut: int

    @classmethod
    def of(cls, network: nn.Module, ranks: int) -> Bytes:
        def cut(p: Tensor) -> int:  # every rank's rows are as many
            return p.nbytes // len(p) * -(-len(p) // ranks) * ranks

        blocks = [sum(cut(p) for p in block.parameters()) for block in blocks_of(network).values()]
        trained = [p for p in network.parameters() if p.requires_grad]
        return cls(
            sum(blocks),
            sum(cut(p) for p in network.parameters()) - sum(blocks),
            max(blocks),
            sum(p.nbytes for p in trained),
            sum(cut(p) for p in trained),
        )


def predicted(case: Case, ranks: int, student: Bytes, teacher: Bytes) -> dict[str, float]:
    """Bytes that a rank sends in a step of two parts, anchor and shortcut; N ranks, a ring.

    ddp    2 (N - 1) / N x the trained parameters, once: gradients meet in the last part only.
    fsdp   (N - 1) / N x the sum of
           all-gathers       blocks x (1 + 1) in the anchor's part: forward, backward
                           + blocks x (passes + 1) in the shortcut's: no_graph's two passes gather twice;
                             checkpointing adds none, its second forward runs where the backward has gathered
                           + root x 2: it stays from a part's first forward to the end of its backward
                           + the teacher's blocks x 1; its root stays for good
           reduce-scatters   the trained parameters x 2: whole gradients would need the memory that sharding saves

    gathered: both roots and one block. With WholeNetwork, all blocks: FSDP learns from the gradient of a unit's inputs
    that its backward has passed, func.jvp hides these from it, and so nothing is let go before the end.
    """
    share = (ranks - 1) / ranks
    if case.parallel == "ddp":
        return {"wire": 2 * share * student.trained, "gathers": 0, "gathered": 0}
    gathers = 2 + case.passes + 1
    forward = student.blocks * gathers + student.root * 2 + teacher.blocks
    return {
        "wire": share * (forward + 2 * student.trained_cut),
        "gathers": gathers + 1,
        "gathered": student.root + teacher.root + (student.blocks if case.name == "whole" else student.largest),
    }


class Step:
    """A case's own networks and optimiser, and one step of them, as facm.training.loop does it."""

    def __init__(self, case: Case, config: LightningDiT, world: World) -> None:
        torch.manual_seed(0)
        self.student, teacher = config.build(), config.build()
        for network in (self.student, teacher):  # nothing left at its zero initialisation
            for p in network.parameters():
                p.data += 0.02 * torch.randn_like(p)
        teacher.eval().requires_grad_(False)
        sizes = Bytes.of(self.student, world.ranks), Bytes.of(teacher, world.ranks)
        self.predicted = predicted(case, world.ranks, *sizes)
        self.blocks = sizes[0].blocks
        self.wrapped = spread(self.student, case.engine, world, CPU)
        self.teacher = shard(teacher, case.engine, world, CPU) if case.parallel == "fsdp" else teacher
        self.objective = FACM(Labels(CLASSES), TeacherVelocity(Guidance()), derivative=case.derivative)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=0.0, fused=case.parallel == "ddp")

    def gradients(self, batch: Batch) -> None:
        terms = self.objective.loss_terms(self.wrapped, batch, torch.Generator().manual_seed(0), self.teacher)
        for index, term in enumerate(terms):
            with reducing(self.wrapped, index == len(terms) - 1):
                term().total.backward()

    def finish(self) -> float:
        """The gradient's norm, over all ranks."""
        norm = float(gradient_norm(self.student))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm


def measure(options: argparse.Namespace, world: World) -> dict[str, dict[str, Any]]:
    side = round(options.tokens**0.5)
    heads = max(1, options.width // 64)
    config = LightningDiT(side, 1, 4, options.width, options.depth, heads, num_classes=CLASSES)
    size = options.batch // world.ranks
    x_1 = torch.randn(options.batch, 4, side, side, generator=torch.Generator().manual_seed(1))
    own = slice(world.rank * size, (world.rank + 1) * size)
    batch = Batch(x_1[own], (torch.arange(options.batch) % CLASSES)[own], world.rank * size, options.batch)

    steps, rows, expected = {}, {}, None
    for case in CASES:
        name = f"{case.parallel} {case.name}"
        steps[name] = step = Step(case, config, world)
        with Sent(world.ranks) as sent:
            for _ in range(2):  # what is done once: DDP's buckets, the teacher's root
                step.gradients(batch)
                norm = step.finish()
            sent.wire.clear()
            step.gradients(batch)
        step.finish()
        expected = norm if expected is None else expected
        if abs(norm - expected) > 1e-4 * expected:
            raise SystemExit(f"{name}: the gradient's norm is {norm}, expected {expected} as in the first row")
        rows[name] = {"wire_bytes": sum(sent.wire.values()), "by_kind": dict(sent.wire)}
        rows[name] |= {"gathered_bytes": sent.peak, "with_buffers_bytes": sent.peak_with_buffers}
        rows[name] |= {f"predicted_{key}": value for key, value in step.predicted.items()}
        rows[name]["gathers"] = gathers(sent, step, world) if case.parallel == "fsdp" else 0
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            cpu, wall = time.process_time(), time.perf_counter()
            step.gradients(batch)
            step.finish()
            times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    for name, measured in times.items():
        rows[name]["cpu_s"] = sum(gathered(world, statistics.median(cpu for cpu, _ in measured)))
        rows[name]["wall_s"] = max(gathered(world, statistics.median(wall for _, wall in measured)))
    return rows


def gathers(sent: Sent, step: Step, world: World) -> int:
    """All-gathers of the blocks, in passes over a network: what the roots alone take is less than one."""
    return int(sent.wire["allgather"] / ((world.ranks - 1) / world.ranks) // step.blocks)


def show(rows: dict[str, dict[str, Any]]) -> None:
    heads = ("wire MB", "expected", "gathers", "expected", "gathered", "expected", "buffered", "CPU s", "wall s")
    print(f"{'':26}" + "".join(f"{head:>10}" for head in heads))
    for name, row in rows.items():
        keys = ("wire_bytes", "predicted_wire", "gathers", "predicted_gathers", "gathered_bytes")
        keys += ("predicted_gathered", "with_buffers_bytes", "cpu_s", "wall_s")
        values = (row[key] if "gathers" in key else row[key] / (1 if key.endswith("_s") else 1e6) for key in keys)
        print(f"{name:26}" + "".join(f"{x:10}" if isinstance(x, int) else f"{x:10.2f}" for x in values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"width": 256, "depth": 6, "tokens": 64, "batch": 16, "ranks": 2, "rounds": 3}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    if options.batch % options.ranks or round(options.tokens**0.5) ** 2 != options.tokens:
        sys.exit("--batch: expected a multiple of --ranks; --tokens: expected a square")
    if "RANK" not in os.environ:  # started by hand: start the ranks
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.ranks)]
        environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
        sys.exit(subprocess.call([sys.executable, *launch, *sys.argv], env=os.environ | environment))
    torch.set_num_threads(1)
    with opened(Engine(parallel="fsdp")) as world:
        rows = measure(options, world)
    if world.first:
        show(rows)
        if options.json:
            result = {
                "command": sys.argv,
                "date": time.strftime("%Y-%m-%d"),
                "torch": torch.__version__,
                "device": platform.processor() or platform.machine(),
                "size": {name: getattr(options, name) for name in sizes},
                "cases": rows,
            }
            options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
