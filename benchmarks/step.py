"""What one FACM distillation step costs with each derivative strategy, against the naive step, interleaved in one run.

    python benchmarks/step.py --json results/step.json            # CPU seconds, wall seconds, peak bytes
    python benchmarks/step.py --compile                           # with the compiled strategies: minutes to compile
    python benchmarks/step.py --depths 4 8 16 32                  # peak bytes over depth, counted, nothing is run
    python benchmarks/step.py --grid                              # over width, depth, tokens and batch
    python benchmarks/step.py --device cuda --preset xl --compile # LightningDiT-XL/1, 256 tokens, bf16: not run so far
    python benchmarks/step.py --against FACM --compile            # and the authors' own step, from a copy of their code

The naive step is what public implementations do, on the same network and weights: torch.func.jvp through the whole
network with its graph, two passes of the teacher, one backward pass of the summed loss, PyTorch's default AdamW, an EMA
in a loop. Every other row is this package's step: gradients are compared with the naive ones in the same run, and a row
that differs is an error. Peak bytes are those of the resident set on the CPU (Linux) and of the allocator on CUDA,
above what lay there before the step; parameters, optimiser and EMA are not in them, gradients are.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facm.core.modules import blocks_of
from facm.core.objective import Condition, Task, VelocityTarget
from facm.core.tensors import expand
from facm.core.types import Batch
from facm.derivative import Chain, Derivative, FiniteDifference, NoGraph, OpLevel, WholeNetwork
from facm.distributed.block_transforms import prepare
from facm.distributed.gradients import clipping_divisor, gradient_norm
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance, extrapolate
from facm.flow.interpolant import Interpolant
from facm.flow.velocity import TeacherVelocity
from facm.networks.lightning_dit import LightningDiT, lightning_dit
from facm.objectives.facm import FACM
from facm.runs.ema import EMA, PowerEMA
from facm.training.memory_plan.counters import Flops, LiveBytes

CLASSES = 10
LEAST = 9.07  # forward-equivalents that a step needs: teacher 2, anchor 3, shortcut with its tangent 4.07
GUIDANCE = Guidance()  # Table 5: 1.75 on [0.125, 1]


@dataclass(frozen=True)
class SeparatePasses(VelocityTarget):
    """The teacher asked twice, for all samples, as the public implementations do."""

    guidance: Guidance = GUIDANCE
    needs_teacher = True

    @torch.no_grad()
    def __call__(self, network: Any, teacher: Any, p: Interpolant, condition: Condition, task: Task) -> Tensor:
        v_c = teacher(p.x_t, p.t, p.cond)
        v_u = teacher(p.x_t, p.t, condition.null(p.cond))
        return torch.where(expand(self.guidance.active(p.t), v_c), extrapolate(v_c, v_u, self.guidance.scale), v_c)


@dataclass(frozen=True)
class Strategy:
    """One row. naive: the naive step around the derivative."""

    name: str
    derivative: Derivative
    naive: bool = False
    checkpointing: bool = False
    compile: bool = False
    tolerance: float = 1e-4
    """Largest relative error of a parameter's gradient in float32."""

    def objective(self, classes: int = CLASSES) -> FACM:
        velocity = SeparatePasses() if self.naive else TeacherVelocity(GUIDANCE)
        return FACM(Labels(classes), velocity, derivative=self.derivative)


EAGER = (
    Strategy("naive", WholeNetwork(), naive=True),
    Strategy("whole", WholeNetwork()),
    Strategy("no_graph", NoGraph()),
    Strategy("chain", Chain()),
    Strategy("op_level", OpLevel()),
    Strategy("finite_difference", FiniteDifference(), tolerance=0.05),
    Strategy("chain+checkpoint", Chain(checkpoint=True), checkpointing=True),
    Strategy("op_level+checkpoint", OpLevel(), checkpointing=True),
)
COMPILED = (
    Strategy("chain+compile", Chain(), compile=True),
    Strategy("op_level+compile", OpLevel(), compile=True),
    Strategy("op_level+checkpoint+compile", OpLevel(), checkpointing=True, compile=True),
)


@dataclass(frozen=True)
class Size:
    width: int = 256
    depth: int = 6
    tokens: int = 64
    batch: int = 16

    def network(self, classes: int = CLASSES) -> LightningDiT:
        side = round(self.tokens**0.5)
        if side * side != self.tokens:
            raise SystemExit(f"--tokens {self.tokens}, expected a square")
        heads = max(1, self.width // 64)
        options: dict[str, Any] = {"patch_size": 1, "in_channels": 4, "num_classes": classes}
        return LightningDiT(input_size=side, hidden_size=self.width, depth=self.depth, num_heads=heads, **options)


class Step:
    """A strategy's own network, optimiser and EMA, and one step of them."""

    def __init__(
        self, strategy: Strategy, config: LightningDiT, weights: dict[str, Tensor], device: torch.device
    ) -> None:
        self.strategy, self.device = strategy, device
        self.network, self.teacher = (_built(config, weights).to(device) for _ in range(2))
        self.teacher.eval().requires_grad_(False)
        if strategy.naive:
            self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-5)
        else:
            self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-5, fused=True)
            prepare(list(blocks_of(self.network).values()), strategy.checkpointing, strategy.compile)
            prepare(list(blocks_of(self.teacher).values()), False, strategy.compile)
        self.ema = EMA(PowerEMA((0.2,)), self.network)
        self.objective = strategy.objective(config.num_classes)

    def gradients(self, batch: Batch, seed: int = 0) -> float:
        """Gradients of the step's loss into ``.grad``; the loss."""
        rng = torch.Generator(self.device).manual_seed(seed)
        if self.strategy.naive:
            with self._autocast():
                loss = self.objective(self.network, batch, rng, self.teacher)
            loss.total.backward()
            return float(loss.total.detach())
        total = 0.0
        for term in self.objective.loss_terms(self.network, batch, rng, self.teacher):
            with self._autocast():
                loss = term()
            loss.total.backward()
            total += float(loss.total.detach())
            del loss
        return total

    def __call__(self, batch: Batch) -> None:
        self.gradients(batch)
        if self.strategy.naive:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        else:
            self.optimizer.grad_scale = clipping_divisor(gradient_norm(self.network), 1.0)  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.strategy.naive:
            with torch.no_grad():
                for name, value in self.network.state_dict().items():
                    self.ema.averages[0.2][name].mul_(0.999).add_(value, alpha=0.001)
        else:
            self.ema.update(1000, len(batch.x_1))

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()


def _built(config: LightningDiT, weights: dict[str, Tensor]) -> nn.Module:
    network = config.build()
    network.load_state_dict(weights)
    return network


def perturbed(config: LightningDiT, seed: int = 0) -> dict[str, Tensor]:
    """Weights with nothing left at its zero initialisation."""
    torch.manual_seed(seed)
    network = config.build()
    for p in network.parameters():
        p.data += 0.02 * torch.randn_like(p)
    return network.state_dict()


def compared(
    step: Any, expected: dict[str, Tensor] | None, loss: float, batch: Batch, name: str, tolerance: float = 1e-4
) -> tuple[dict[str, Tensor], float]:
    """A step's gradients, checked against those of the first row."""
    found_loss = step.gradients(batch)
    found = {n: p.grad.detach().clone() for n, p in step.network.named_parameters() if p.grad is not None}
    step.optimizer.zero_grad(set_to_none=True)
    tolerance = 0.05 if step.device.type == "cuda" else tolerance
    if expected is not None:
        if abs(found_loss - loss) > tolerance * abs(loss):
            raise SystemExit(f"{name}: the loss is {found_loss}, expected {loss} as in the first row")
        for parameter, gradient in expected.items():
            error = float((found[parameter] - gradient).norm() / gradient.norm().clamp(min=1e-12))
            if not error <= tolerance:
                raise SystemExit(f"{name}: the gradient of {parameter} differs by {error:.1e} from the first row's")
    return found, found_loss


# Measuring


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def peak_bytes(step: Callable[[], Any], device: torch.device) -> int | None:
    """The most memory that the step held above what was held before it; None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    except OSError:
        return None
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def peak_in_a_process(name: str) -> int | None:
    """The same in a process of its own whose allocator gives every freed tensor back at once: holes that another
    strategy left would count as held."""
    kept = [a for a in sys.argv[1:] if a != "--json" and sys.argv[sys.argv.index(a) - 1] != "--json"]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(64 * 1024)}
    command = [sys.executable, __file__, *kept, "--peak-of", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def timed(step: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """(CPU seconds of all threads, wall seconds)."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(
    size: Size,
    strategies: tuple[Strategy, ...],
    options: argparse.Namespace,
    device: torch.device,
    config: LightningDiT,
) -> dict[str, Any]:
    weights, batch = perturbed(config), drawn(size, config, device)
    expected: dict[str, Tensor] | None = None
    loss = 0.0
    steps: dict[str, Step] = {}
    rows: dict[str, dict[str, Any]] = {}
    for strategy in strategies:
        steps[strategy.name] = step = Step(strategy, config, weights, device)
        began = time.perf_counter()
        found, found_loss = compared(step, expected, loss, batch, strategy.name, strategy.tolerance)
        rows[strategy.name] = {"first_s": time.perf_counter() - began}
        if expected is None:
            expected, loss = found, found_loss
        step(batch)  # the optimiser's state is not part of a step's peak
    del expected, found
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            times[name].append(timed(lambda step=step: step(batch), device))  # type: ignore[misc]
    for name, step in steps.items():
        rows[name] |= {
            "cpu_s": statistics.median(cpu for cpu, _ in times[name]),
            "wall_s": statistics.median(wall for _, wall in times[name]),
            "images_per_s": size.batch / statistics.median(wall for _, wall in times[name]),
        }
        if device.type == "cuda":
            rows[name]["peak_bytes"] = peak_bytes(lambda step=step: step(batch), device)  # type: ignore[misc]
    for name, counted in equivalents(config, strategies).items():
        rows[name] |= counted
        if device.type == "cuda":
            needed = LEAST * counted["forward_flops"] * rows[name]["images_per_s"]
            rows[name]["mfu"] = needed / (1e12 * options.peak_tflops)
    return rows


def against(folder: Path, size: Size, options: argparse.Namespace, device: torch.device) -> dict[str, dict[str, Any]]:
    """The authors' step, eager and as they ship it, beside the naive step and this package's, interleaved."""
    from authors import CLASSES as theirs
    from authors import TheirStep

    config = lightning_dit("XL/1", num_classes=theirs) if options.preset else size.network(theirs)
    weights, batch = perturbed(config), drawn(size, config, device)
    made: dict[str, Callable[[], Any]] = {"theirs": lambda: TheirStep(folder, config, weights, device, False)}
    if options.compile:
        made["theirs, as shipped"] = lambda: TheirStep(folder, config, weights, device, True)
    chosen = ("naive", "op_level", "op_level+checkpoint", "op_level+compile", "op_level+checkpoint+compile")
    for strategy in EAGER + (COMPILED if options.compile else ()):
        if strategy.name in (options.only or chosen):
            made[strategy.name] = lambda strategy=strategy: Step(strategy, config, weights, device)  # type: ignore[misc]
    steps, rows = {}, dict[str, dict[str, Any]]()
    expected: dict[str, Tensor] | None = None
    loss = 0.0
    for name, make in made.items():
        began = time.perf_counter()
        steps[name] = step = make()
        found, found_loss = compared(step, expected, loss, batch, name)
        rows[name] = {"first_s": time.perf_counter() - began, "loss": found_loss}
        if expected is None:
            expected, loss = found, found_loss
        step(batch)
    del expected, found
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            cpu, wall = timed(lambda step=step: step(batch), device)  # type: ignore[misc]
            times[name].append(wall if device.type == "cuda" else cpu)
    for name, seconds in times.items():
        rows[name] |= {"s": statistics.median(seconds), "of_theirs": ratio(seconds, times["theirs"])}
    return rows


def ratio(ours: list[float], theirs: list[float]) -> list[float]:
    """The ratio of the medians over the rounds, and the ends of its 95 % interval (2,000 bootstrap draws of rounds)."""
    rounds = torch.randint(len(ours), (2000, len(ours)), generator=torch.Generator().manual_seed(0))
    a, b = torch.tensor(ours), torch.tensor(theirs)
    spread = (a[rounds].quantile(0.5, 1) / b[rounds].quantile(0.5, 1)).quantile(torch.tensor([0.025, 0.975]))
    return [statistics.median(ours) / statistics.median(theirs), *spread.tolist()]


def show_against(rows: dict[str, dict[str, Any]]) -> None:
    print(f"{'step':30}{'s':>9}{'ratio':>9}{'95 %':>16}{'first s':>9}{'loss':>12}")
    for name, row in rows.items():
        middle, low, high = row["of_theirs"]
        interval = f"{low:.2f} - {high:.2f}"
        print(f"{name:30}{row['s']:9.3f}{middle:9.3f}{interval:>16}{row['first_s']:9.1f}{row['loss']:12.6f}")


def drawn(size: Size, config: LightningDiT, device: torch.device) -> Batch:
    x_1 = torch.randn(size.batch, config.in_channels, config.input_size, config.input_size)
    return Batch(x_1, torch.arange(size.batch) % config.num_classes).to(device)


def equivalents(config: LightningDiT, strategies: tuple[Strategy, ...]) -> dict[str, dict[str, float]]:
    """Forward-equivalents of a step: its products and convolutions over those of one forward pass, per image; counted
    on the meta device, eagerly: compiling changes none of them."""
    with torch.device("meta"):
        x = torch.empty(4, config.in_channels, config.input_size, config.input_size)
        t, y = torch.empty(4), torch.zeros(4, dtype=torch.long)
        network = config.build()
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with Flops() as forward, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            network(x, t, y)
        out = {}
        for strategy in strategies:
            network, teacher = config.build(), config.build().requires_grad_(False)
            prepare(list(blocks_of(network).values()), strategy.checkpointing, False)
            with Flops() as counted, sdpa_kernel(SDPBackend.MATH):
                strategy.objective().evaluate(network, Interpolant.between(x, x, t, y), teacher).loss().total.backward()
            out[strategy.name] = {
                "forward_equivalents": counted.total / forward.total,
                "flops_per_image": counted.total / 4,
                "forward_flops": forward.total / 4,
            }
    return out


def over_depth(size: Size, depths: list[int]) -> Iterator[dict[str, Any]]:
    """Peak bytes of the shortcut's value, tangent and backward pass, counted on the meta device, without gradients."""
    from facm.derivative import Prediction
    from facm.flow.time_conditioning import ExpandedInterval

    for depth in depths:
        config = replace(size, depth=depth).network()
        row: dict[str, Any] = {"depth": depth}
        with torch.device("meta"):
            x, t = (
                torch.empty(size.batch, config.in_channels, config.input_size, config.input_size),
                torch.empty(size.batch),
            )
            y = torch.zeros(size.batch, dtype=torch.long)
            for name, derivative, checkpointing in (
                ("plain pass", None, False),
                *(
                    (s.name, s.derivative, s.checkpointing)
                    for s in EAGER
                    if s.name not in ("naive", "finite_difference")
                ),
            ):
                network = config.build()
                prepare(list(blocks_of(network).values()), checkpointing, False)
                with LiveBytes() as memory:
                    if derivative is None:
                        F = network(x, t, y)
                    else:
                        F, _ = derivative(
                            Prediction(network, ExpandedInterval().shortcut, y), (x, t), (x, torch.ones_like(t))
                        )
                    F.sum().backward()
                    del F
                row[name] = memory.peak - sum(p.grad.nbytes for p in network.parameters() if p.grad is not None)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field, kind in (("width", int), ("depth", int), ("tokens", int), ("batch", int)):
        parser.add_argument(f"--{field}", type=kind, default=getattr(Size(), field))
    parser.add_argument("--preset", choices=["xl"], help="LightningDiT-XL/1 on 16 x 16 x 32 latents (675M parameters)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--compile", action="store_true", help="also the compiled strategies")
    parser.add_argument("--only", nargs="+", help="names of strategies; naive is always measured")
    parser.add_argument("--depths", type=int, nargs="+", help="only count peak bytes over these depths")
    parser.add_argument("--grid", action="store_true", help="a smaller choice of strategies over several sizes")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU, for MFU (H100, bf16: 989)")
    parser.add_argument("--against", type=Path, metavar="DIR", help="a copy of the authors' code, to be compared with")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: PyTorch sees no GPU here")
    size = Size(options.width, options.depth, options.tokens, options.batch)
    device = torch.device(options.device)
    if options.peak_of:
        strategy = next(s for s in EAGER + COMPILED if s.name == options.peak_of)
        step = Step(strategy, size.network(), perturbed(size.network()), device)
        batch = drawn(size, size.network(), device)
        step(batch)
        step(batch)
        print(json.dumps(peak_bytes(lambda: step(batch), device)))
        return
    strategies = EAGER + (COMPILED if options.compile else ())
    if options.only:
        unknown = set(options.only) - {s.name for s in EAGER + COMPILED}
        if unknown:
            sys.exit(f"--only {unknown.pop()}, expected some of {', '.join(s.name for s in EAGER + COMPILED)}")
        strategies = tuple(s for s in EAGER + COMPILED if s.name in (*options.only, "naive"))
    where = {
        "command": sys.argv,
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    if options.against:
        rows = against(options.against, size, options, device)
        show_against(rows)
        result: dict[str, Any] = {**where, "size": vars(size), "preset": options.preset, "against": rows}
    elif options.depths:
        table = list(over_depth(size, options.depths))
        for row in table:
            print("  ".join(f"{k} {v / 1e6:.1f} MB" if k != "depth" else f"depth {v:3}" for k, v in row.items()))
        result = {**where, "size": vars(size), "depths": table}
    elif options.grid:
        result = {**where, "grid": []}
        grid = [size, replace(size, width=128), replace(size, width=512), replace(size, depth=12)]
        grid += [replace(size, tokens=256, batch=4), replace(size, batch=4)]
        chosen = tuple(s for s in EAGER if s.name in ("naive", "no_graph", "chain", "op_level", "op_level+checkpoint"))
        for each in grid:
            print(each)
            rows = measure(each, chosen, options, device, each.network())
            show(rows)
            result["grid"].append({"size": vars(each), "strategies": rows})
    else:
        config = lightning_dit("XL/1", num_classes=CLASSES) if options.preset else size.network()
        rows = measure(size, strategies, options, device, config)
        if device.type == "cpu":
            for name in rows:
                rows[name]["peak_bytes"] = peak_in_a_process(name)
        show(rows)
        result = {**where, "size": vars(size), "preset": options.preset, "strategies": rows}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def show(rows: dict[str, dict[str, Any]]) -> None:
    naive = rows["naive"]
    heads = ("CPU s", "ratio", "wall s", "peak MB", "ratio", "forwards", "first s")
    print(f"{'strategy':30}" + "".join(f"{head:>9}" for head in heads))
    for name, row in rows.items():
        cpu, peak, base = row["cpu_s"], row.get("peak_bytes") or 0, naive.get("peak_bytes") or 1
        numbers = [cpu, cpu / naive["cpu_s"], row["wall_s"], peak / 1e6, peak / base]
        numbers += [row["forward_equivalents"], row["first_s"]]
        print(f"{name:30}" + "".join(f"{x:9.3f}" for x in numbers), end="")
        print(f"  {row['images_per_s']:.0f} images/s, MFU {100 * row['mfu']:.0f} %" if "mfu" in row else "")


if __name__ == "__main__":
    main()
