"""What benchmarks/gpu.py measures in processes of their own: each function is a row, and returns its numbers.

Every row has a bound where one is known, and says itself whether it held: {"ok": bool, ...}. Sizes are the paper's on
a GPU and toy ones with ``toy``, at which every row runs on a CPU too, with Triton's kernel in its interpreter.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import benchmarks.step as bench
import torch
from torch import Tensor, nn

from facm import FACM, AdamW, FlowMatching, Labels, Run, TeacherVelocity
from facm.data import Moons, Noise
from facm.derivative import OpLevel, Prediction
from facm.distributed.engine import Engine
from facm.distributed.process_group import ALONE, World, opened
from facm.flow.time_conditioning import ExpandedInterval
from facm.networks.lightning_dit import LightningDiT, lightning_dit
from facm.networks.mlp import MLP
from facm.runs.config import Intervals
from facm.runs.folder import RunFolder, create_or_continue

Numbers = dict[str, Any]


def apart(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The largest relative error, tensor by tensor."""
    pairs = zip(found, expected, strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)) for a, b in pairs)


# 1. Right at all


def kernel(device: torch.device, toy: bool) -> Numbers:
    """The Triton tangent kernel against the plain formula in float64: relative errors by type."""
    from facm.derivative.attention.reference import plain_tangent
    from facm.derivative.attention.triton_kernel import available, kernel_tangent

    if (reason := available()) is not None and device.type == "cuda":
        return {"ok": False, "reason": reason}
    bounds = {torch.float32: 1e-5, torch.bfloat16: 2e-2} if device.type == "cuda" else {torch.float32: 1e-5}
    lengths = [(1, 1), (7, 9), (33, 65)] if toy else [(1, 1), (7, 9), (256, 256), (600, 600), (100, 777), (4096, 4096)]
    worst = dict.fromkeys(map(str, bounds), 0.0)
    for d in (40, 72) if toy else (40, 64, 72, 128):
        for n, m in lengths:
            for dtype in bounds:
                rng = torch.Generator().manual_seed(n + m + d)
                sizes = (n, m, m) * 2
                z = [torch.randn(1, 2, k, d, generator=rng).to(device, dtype) for k in sizes]
                q, k, v = (part.double() for part in z[:3])
                scores = q @ k.mT * d**-0.5
                out = (scores.softmax(-1) @ v).to(dtype)
                got = kernel_tangent(*z, out, scores.logsumexp(-1).float())
                error = apart([got], [plain_tangent(*(part.double() for part in z))])
                worst[str(dtype)] = max(worst[str(dtype)], error)
    return {"ok": all(worst[str(dtype)] < bound for dtype, bound in bounds.items()), "errors": worst}


def _config(toy: bool) -> LightningDiT:
    if toy:
        return LightningDiT(8, 4, 1, 64, 2, 2, num_classes=10)
    return lightning_dit("B/1", num_classes=10)


def _pass(network: nn.Module, config: LightningDiT, device: torch.device, bf16: bool, batch: int) -> list[Tensor]:
    """Value, tangent and gradients of the shortcut's derivative."""
    rng = torch.Generator().manual_seed(0)
    side = config.input_size
    x, v = (torch.randn(batch, config.in_channels, side, side, generator=rng).to(device) for _ in range(2))
    t = torch.rand(batch, generator=rng).to(device)
    cond = (torch.arange(batch) % 10).to(device)
    network.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        F, dF = OpLevel()(Prediction(network, ExpandedInterval().shortcut, cond), (x, t), (v, torch.ones_like(t)))
    F.square().mean().backward()
    return [F.detach(), dF, torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])]


def _network(config: LightningDiT, device: torch.device) -> nn.Module:
    network = config.build()
    network.load_state_dict(bench.perturbed(config))
    return network.to(device)


def bf16(device: torch.device, toy: bool) -> Numbers:
    """bf16 autocast against float32: relative errors of value, tangent and gradient."""
    config = _config(toy)
    network = _network(config, device)
    found = _pass(network, config, device, True, 4 if toy else 32)
    expected = _pass(network, config, device, False, 4 if toy else 32)
    errors = {n: apart([a], [b]) for n, a, b in zip(("F", "dF", "gradient"), found, expected, strict=True)}
    return {"ok": max(errors.values()) < 0.05, "errors": errors}


def compiled(device: torch.device, toy: bool) -> Numbers:
    """Compiled blocks against eager ones, and the seconds of the first and the second call."""
    from facm.core.modules import blocks_of
    from facm.distributed.block_transforms import prepare

    config = _config(toy)
    network = _network(config, device)
    expected = _pass(network, config, device, False, 4 if toy else 32)
    prepare(list(blocks_of(network).values()), checkpointing=False, compiled=True)
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        found = _pass(network, config, device, False, 4 if toy else 32)
        seconds.append(time.perf_counter() - began)
    error = apart(found, expected)
    return {"ok": error < 1e-3, "error": error, "first_s": seconds[0], "second_s": seconds[1]}


def _dropout_run(images: int) -> Run:
    network = MLP(width=64, depth=2, num_classes=2, dropout=0.3)
    every = Intervals(log=160, checkpoint=160, ema_snapshots=0, keep=100)
    return Run(network, Moons(n=200), FlowMatching(Labels(2)), images, 16, every=every)


def train(run: Run, folder: Path, device: torch.device, engine: Engine | None = None, world: World = ALONE) -> None:
    from facm.training.loop import train as go

    create_or_continue(folder, run)
    go(run, RunFolder(folder), device=device, engine=engine or Engine(), world=world)


def _tensors(folder: Path) -> dict[str, Tensor]:
    from facm.runs.checkpointer import load

    found = load(RunFolder(folder).checkpoints()[-1]).tensors
    return {name: value for name, value in found.items() if not name.startswith("window/")}


def victim(device: torch.device, toy: bool) -> Numbers:
    """No row: the run that :func:`resume` kills."""
    train(_dropout_run(1600), Path(os.environ["FACM_VICTIM"]), device)
    return {"ok": True}


def resume(device: torch.device, toy: bool) -> Numbers:
    """A run with dropout, killed by kill -9 after a checkpoint and resumed, against one that was not: bit for bit."""
    with tempfile.TemporaryDirectory() as home:
        train(_dropout_run(1600), Path(home) / "whole", device)
        killed = Path(home) / "killed"
        command = [sys.executable, "-c", "from benchmarks.gpu_rows import main; main()", "victim", str(device), "toy"]
        process = subprocess.Popen(command, env=os.environ | {"FACM_VICTIM": str(killed)}, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 300
        while process.poll() is None and not RunFolder(killed).checkpoints() and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        at = int(RunFolder(killed).checkpoints()[-1].name.split(".")[0])
        train(_dropout_run(1600), killed, device)
        whole, resumed = _tensors(Path(home) / "whole"), _tensors(killed)
        same = whole.keys() == resumed.keys() and all(torch.equal(whole[n], resumed[n]) for n in whole)
        return {"ok": same, "killed_at": at, "tensors": len(whole)}


@dataclasses.dataclass(frozen=True)
class RandomTeacher:
    """A teacher of random weights, for what a step takes, not for what it learns."""

    network: LightningDiT

    def load(self) -> nn.Module:
        return self.network.build()


def _distillation(config: LightningDiT, batch: int, steps: int) -> Run:
    shape = (config.in_channels, config.input_size, config.input_size)
    objective, teacher = FACM(Labels(10), TeacherVelocity(bench.GUIDANCE)), RandomTeacher(config)
    every = Intervals(log=batch, checkpoint=steps * batch, ema_snapshots=0)
    data = Noise(shape, num_classes=10)
    return Run(config, data, objective, steps * batch, batch, AdamW(), teacher=teacher, every=every)


def fsdp(device: torch.device, toy: bool) -> Numbers:
    """FSDP2 on one rank, with and without offload to main memory, against a run without: the largest differences."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29512")
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    run = dataclasses.replace(_distillation(_config(toy), 8 if toy else 32, 2), precision="fp32")
    with tempfile.TemporaryDirectory() as home:
        train(run, Path(home) / "alone", device)
        expected, errors = _tensors(Path(home) / "alone"), {}
        for name, engine in (
            ("fsdp", Engine(parallel="fsdp")),
            ("offload", Engine(parallel="fsdp", cpu_offload=True)),
        ):
            with opened(engine) as world:
                chosen = dataclasses.replace(world, chosen=device)
                train(run, Path(home) / name, device, engine, chosen)
            found = _tensors(Path(home) / name)
            names = [n for n in expected if not n.startswith("rng/")]
            errors[name] = max(float((found[n].double() - expected[n].double()).abs().max()) for n in names)
    return {"ok": max(errors.values()) < 1e-5, "errors": errors}


# 2. Speed of a step


def step(device: torch.device, toy: bool, name: str, batch: int, peak_tflops: float) -> Numbers:
    """A strategy of benchmarks/step.py in a process of its own, so that two optimisers need not fit at once: seconds,
    images a second, peak and MFU; what does not fit into memory says so."""
    strategy = next(s for s in bench.EAGER + bench.COMPILED if s.name == name)
    size = bench.Size(64, 2, 16, batch) if toy else bench.Size(batch=batch)
    config = size.network() if toy else lightning_dit("XL/1", num_classes=bench.CLASSES)
    try:
        one = bench.Step(strategy, config, bench.perturbed(config), device)
        data = bench.drawn(size, config, device)
        first = bench.timed(lambda: one(data), device)[1]
        one(data)
        wall = statistics.median(bench.timed(lambda: one(data), device)[1] for _ in range(3 if toy else 10))
        peak = bench.peak_bytes(lambda: one(data), device)
    except torch.cuda.OutOfMemoryError as error:
        return {"ok": True, "batch": batch, "does_not_fit": str(error)[:120]}
    needed = bench.LEAST * bench.equivalents(config, (strategy,))[name]["forward_flops"]
    found = {"ok": True, "batch": batch, "first_s": first, "wall_s": wall, "images_per_s": batch / wall}
    found["peak_GB"] = None if peak is None else peak / 1e9
    return found | ({"mfu": needed * batch / wall / (1e12 * peak_tflops)} if device.type == "cuda" else {})


PRODUCTS = ("gemm", "cublas", "cutlass", "aten::mm", "aten::addmm", "aten::bmm", "conv", "xmma", "nvjet")


def profile(device: torch.device, toy: bool) -> Numbers:
    """Where the time of two compiled steps goes, by torch's profiler: the share of products and of attention, and the
    operations, or kernels, that take most besides, in percent; percent of the time in which the device did nothing."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    cuda = device.type == "cuda"
    strategy = next(s for s in bench.COMPILED if s.name == "op_level+compile")
    size = bench.Size(64, 2, 16, 4) if toy else bench.Size(batch=32)
    config = size.network() if toy else lightning_dit("XL/1", num_classes=bench.CLASSES)
    one, data = bench.Step(strategy, config, bench.perturbed(config), device), bench.drawn(size, config, device)
    for _ in range(3):
        one(data)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profiler(activities=activities) as found:
        wall = sum(bench.timed(lambda: one(data), device)[1] for _ in range(2))
    own = {e.key: e.self_device_time_total if cuda else e.self_cpu_time_total for e in found.key_averages()}
    total = sum(own.values())

    def share(names: tuple[str, ...]) -> float:
        return 100 * sum(v for k, v in own.items() if any(name in k.lower() for name in names)) / total

    attention = ("flash", "attention", "fmha")
    rest = {k: v for k, v in own.items() if not any(name in k.lower() for name in (*PRODUCTS, *attention))}
    most = sorted(rest, key=lambda k: -rest[k])[:12]
    numbers: Numbers = {"ok": True, "products": share(PRODUCTS), "attention": share(attention)}
    numbers["idle"] = 100 * (1 - total / 1e6 / wall) if cuda else None
    return numbers | {"rest": {k[:60]: round(100 * rest[k] / total, 2) for k in most}}


# 3. The plan


def plan(device: torch.device, toy: bool) -> Numbers:
    """``facm plan``'s total against the measured peak of three steps, for three batches. On a CPU the peak is not
    measured: what this process already took would be in it."""
    from facm.training.memory_plan import plan as planned

    config = _config(True) if toy else lightning_dit("XL/1", num_classes=10)
    engine, rows = Engine(checkpointing=True), []
    for batch in (2, 4, 8) if toy else (32, 64, 128):
        run = _distillation(config, batch, 3)
        total = planned(run, 1, 1e15, engine, device=device.type, advise=False).total
        row: Numbers = {"batch": batch, "planned_GB": total / 1e9}
        with tempfile.TemporaryDirectory() as home:
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            train(run, Path(home) / "run", device, engine)
            if device.type == "cuda":
                peak = torch.cuda.max_memory_reserved()
                row |= {"peak_GB": peak / 1e9, "planned_over_peak": total / peak}
        rows.append(row)
    ratios = [row["planned_over_peak"] for row in rows if "planned_over_peak" in row]
    found: Numbers = {"ok": all(abs(r - 1) < 0.15 for r in ratios), "rows": rows}
    return found if ratios else found | {"state": "runs; its numbers need CUDA"}


ROWS: dict[str, Callable[..., Numbers]] = {
    f.__name__: f for f in (kernel, bf16, compiled, resume, victim, fsdp, step, profile, plan)
}


def main() -> None:
    """``NAME DEVICE full|toy [...]``: the row's numbers as JSON, in the last line."""
    name, device, size, *rest = sys.argv[1:]
    torch.manual_seed(0)
    more = (rest[0], int(rest[1]), float(rest[2])) if rest else ()
    print(json.dumps(ROWS[name](torch.device(device), size == "toy", *more)), flush=True)
