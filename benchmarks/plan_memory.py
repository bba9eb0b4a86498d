"""What ``facm plan`` says of a rank's memory against what its process takes: students of two experts on two ranks.

    python benchmarks/plan_memory.py [--cases "fsdp lora-one" ...] [--json results/plan_memory.jsonl]

Two processes over gloo on this machine train three steps on the CPU of a Wan of two experts, of 15 million weights
each, fp32, batch 16. Measured is what the resident set grows by at most, which Linux can be asked for; a run of a
smaller model goes before it, for what PyTorch loads when it is first used. Checkpoints are left out. Needs the extra
"hf".
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.distributed.parallel_parts import ENVIRONMENT, call
from tests.foundation.wan_parts import WIDTH, Prompted, tiny_wan22, wan_run

from facm.distributed.collectives import by_first
from facm.distributed.engine import Engine
from facm.distributed.process_group import World, opened
from facm.foundation import DiffusersModel, FromExperts, FromModel, OtherExpert
from facm.foundation.folder import SECOND
from facm.runs.config import Intervals, Run
from facm.runs.folder import RunFolder, create
from facm.training import loop
from facm.training.memory_plan import plan

GB = 10**9
RANKS, BATCH = 2, 16
SIDE = {"small": 16, "warm": 4}
ENGINES = {"ddp": Engine(parallel="ddp"), "fsdp": Engine(parallel="fsdp", checkpointing=True)}
STUDENTS = ("lora-low-noise", "lora-one", "full-low-noise", "full-one")
CASES = [f"{engine} {student}" for engine in ENGINES for student in STUDENTS]


def small_wan22(path: Path) -> Path:
    """Two experts of 15 million weights: enough that weights and activations stand out from what a process takes."""
    from diffusers import WanTransformer3DModel

    tiny_wan22(path)
    for part in ("transformer", SECOND):
        WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=6,
            attention_head_dim=64,
            in_channels=4,
            out_channels=4,
            text_dim=WIDTH,
            freq_dim=32,
            ffn_dim=1536,
            num_layers=6,
            rope_max_seq_len=32,
        ).save_pretrained(path / part)
    return path


def run_of(model: str, student: str, side: int) -> Run:
    """Three steps on latents of ``side`` x ``side``, of which a transformer makes (side / 2)^2 tokens."""
    weights, which = student.split("-", 1)
    lora = weights == "lora"
    run = wan_run(Path(model), lora, data=Prompted(BATCH, (4, 1, side, side)), batch_size=BATCH, images=3 * BATCH)
    low: Any = dataclasses.replace(run.network, part=SECOND)  # type: ignore[type-var]
    teacher = run.teacher
    if which == "one":
        high = DiffusersModel(model)
        teacher = OtherExpert(high) if lora else FromExperts(high, low)
    elif not lora:
        teacher = FromModel(low)
    every = Intervals(log=BATCH, checkpoint=10**9, ema_snapshots=0)
    return dataclasses.replace(run, network=low, teacher=teacher, every=every, precision="fp32")


def status(key: str) -> int:
    return next(int(s.split()[1]) * 1024 for s in Path("/proc/self/status").read_text().splitlines() if key in s)


def measured(warm: str, model: str, case: str, root: str) -> int:
    """What a rank does: bytes that its resident set grows by at most while it trains."""
    torch.set_num_threads(1)
    engine_name, student = case.split()
    engine = ENGINES[engine_name]
    loop.save_checkpoint = lambda *_: None  # type: ignore[assignment]  # a copy for the disk is no part of a step

    def go(run: Run, folder: Path, world: World) -> None:
        by_first(world, lambda: create(folder, run) and None)
        loop.train(run, RunFolder(folder), engine=engine, world=world)

    with opened(dataclasses.replace(engine, timeout_s=300)) as world:
        go(run_of(warm, student, SIDE["warm"]), Path(root) / "warm", world)
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        before = status("VmRSS")
        go(run_of(model, student, SIDE["small"]), Path(root) / "run", world)
        return status("VmHWM") - before


def row_of(warm: Path, model: Path, case: str) -> dict[str, Any]:
    """The rank that takes more, and the plan."""
    engine, student = case.split()
    with tempfile.TemporaryDirectory() as root:
        taken = max(call(RANKS, "benchmarks.plan_memory", "measured", str(warm), str(model), case, root))
    run = run_of(str(model), student, SIDE["small"])
    expected = plan(run, RANKS, 8 * GB, ENGINES[engine], device="cpu", advise=False).total
    return {
        "case": case,
        "taken_MB": round(taken / 1e6),
        "planned_MB": round(expected / 1e6),
        "planned_over_taken": round(expected / taken, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not os.access("/proc/self/clear_refs", os.W_OK):
        raise SystemExit("this needs Linux, whose high-water mark of memory can be begun anew")
    ENVIRONMENT["MALLOC_MMAP_THRESHOLD_"] = "65536"  # freed tensors go back to the system at once
    with tempfile.TemporaryDirectory() as home:
        warm, model = tiny_wan22(Path(home) / "tiny"), small_wan22(Path(home) / "small")
        for case in arguments.cases:
            line = json.dumps(row_of(warm, model, case))
            print(line, flush=True)
            if arguments.json is not None:
                with arguments.json.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
