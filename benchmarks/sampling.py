"""Sampling beside the obvious loop, images a second; one run, rounds interleaved.

    python benchmarks/sampling.py --json results/sampling.json
    python benchmarks/sampling.py --size XL/1 --device cuda --block 64

teacher    Euler with guidance on [0.125, 1]. naive: two passes at every step, whatever the time
student    consistency with 1, 2 and 4 steps. naive: one image after the other
bare       beside both: the same network in a loop of a few lines, on the same noise, which is drawn before
The network is a LightningDiT with random weights, --block images at once; the noise of each image is a function
of its index in both ways, and both ways' images are checked to be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from facm.core.objective import NetworkInterface
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.time_conditioning import ExpandedInterval
from facm.networks.lightning_dit import lightning_dit
from facm.sampling.generate import noise, sample
from facm.sampling.methods import Consistency, Euler
from facm.sampling.source import Source

CLASSES = 1000


def naive_euler(source: Source, indices: range, cond: Tensor, nfe: int, guidance: Guidance) -> Tensor:
    """Both passes at every step; guidance where it acts."""
    x = noise(0, indices, 0, source.shape).to(source.device).double()
    null = torch.full_like(cond, CLASSES)
    for i in range(nfe):
        t = torch.full((len(x),), i / nfe, device=x.device)
        v_c = source.network(x.float(), t, cond=cond).double()
        v_u = source.network(x.float(), t, cond=null).double()
        w = guidance.scale if guidance.low <= i / nfe <= guidance.high else 1.0
        x = x + (v_u + w * (v_c - v_u)) / nfe
    return x.float()


def bare_euler(source: Source, x: Tensor, cond: Tensor, nfe: int, guidance: Guidance, batched: bool) -> Tensor:
    """Guided Euler in float32, of one pass with twice the samples a step, or of two passes."""
    null = torch.full_like(cond, CLASSES)
    for i in range(nfe):
        t = torch.full((len(x),), i / nfe, device=x.device)
        if not guidance.low <= i / nfe <= guidance.high:
            x = x + source.network(x, t, cond=cond) / nfe
            continue
        if batched:
            both = source.network(torch.cat([x, x]), torch.cat([t, t]), cond=torch.cat([cond, null]))
            v_c, v_u = both.chunk(2)
        else:
            v_c, v_u = source.network(x, t, cond=cond), source.network(x, t, cond=null)
        x = x + (v_u + guidance.scale * (v_c - v_u)) / nfe
    return x


def bare_consistency(source: Source, x: Tensor, cond: Tensor, fresh: list[Tensor]) -> Tensor:
    """Consistency sampling in float32: c_CM is t alone at ExpandedInterval's shortcut."""
    steps, at = len(fresh) + 1, ExpandedInterval().shortcut
    x_1 = x
    for i in range(steps):
        if i:
            x = i / steps * x_1 + (1 - i / steps) * fresh[i - 1]
        t = torch.full((len(x),), i / steps, device=x.device)
        x_1 = x + (1 - i / steps) * source.network(x, cond=cond, **at(t))
    return x_1


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="S/1")
    parser.add_argument("--input", type=int, default=8, help="side of a latent")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--n", type=int, default=16, help="images a round")
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--nfe", type=int, default=16, help="the teacher's steps")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bare", action="store_true", help="only one block of ours beside the bare loops")
    parser.add_argument("--json", type=Path, help="append the rows to this file")
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(options.device)
    network = lightning_dit(options.size, input_size=options.input, in_channels=options.channels).build()
    for parameter in network.parameters():  # the zero-initialised layers would make every step the identity
        if parameter.requires_grad and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    network.eval().to(device)
    shape = (options.channels, options.input, options.input)
    source = Source(network, NetworkInterface(Labels(CLASSES)), shape, device)
    labels = torch.arange(options.n) % CLASSES
    guidance = Guidance(1.75)

    def blocks(size: int, one: Callable[[range], Tensor]) -> Tensor:
        starts = range(0, options.n, size)
        return torch.cat([one(range(start, min(start + size, options.n))) for start in starts])

    def of(indices: range) -> Tensor:
        return labels[indices.start : indices.stop]

    ways: dict[str, Callable[[], Tensor]] = (
        {}
        if options.bare
        else {
            f"teacher {options.nfe} x 2": lambda: blocks(
                options.block, lambda i: sample(source, Euler(options.nfe), i, of(i), 0, guidance)
            ),
            f"teacher {options.nfe} x 2, naive": lambda: blocks(
                options.block, lambda i: naive_euler(source, i, of(i).to(device), options.nfe, guidance)
            ),
        }
    )
    on_device = labels[: options.block].to(device)
    drawn = [noise(0, range(options.block), k, shape).to(device) for k in range(4)]
    first = range(options.block)
    for name, batched in (("one pass", True), ("two passes", False)):
        ways[f"bare teacher {options.nfe} x 2, {name}"] = lambda batched=batched: bare_euler(
            source, drawn[0], on_device, options.nfe, guidance, batched
        )
    ways[f"ours teacher {options.nfe} x 2"] = lambda: sample(source, Euler(options.nfe), first, of(first), 0, guidance)
    for nfe in (1, 2, 4):
        ways[f"bare student {nfe}"] = lambda nfe=nfe: bare_consistency(source, drawn[0], on_device, drawn[1:nfe])
        ways[f"ours student {nfe}"] = lambda nfe=nfe: sample(source, Consistency(nfe), first, of(first))
        if options.bare:
            continue
        ways[f"student {nfe}"] = lambda nfe=nfe: blocks(
            options.block, lambda i: sample(source, Consistency(nfe), i, of(i))
        )
        ways[f"student {nfe}, naive"] = lambda nfe=nfe: blocks(1, lambda i: sample(source, Consistency(nfe), i, of(i)))

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    made: dict[str, Tensor] = {}
    for _ in range(options.rounds + 1):
        for name, way in ways.items():
            synchronise()
            began, busy = time.perf_counter(), time.process_time()
            made[name] = way()
            synchronise()
            wall[name].append(time.perf_counter() - began)
            cpu[name].append(time.process_time() - busy)
    ratios = {}
    for name in ways:
        for other in (f"{name}, naive", name.replace("ours", "bare"), f"{name.replace('ours', 'bare')}, one pass"):
            if other in made and other != name:
                torch.testing.assert_close(made[name], made[other], rtol=1e-3, atol=1e-3)
        for other in ways:
            if name.startswith("ours") and other.startswith(name.replace("ours", "bare")):
                pairs = zip(cpu[name][1:], cpu[other][1:], strict=True)
                ratios[f"{name} / {other}"] = round(statistics.median(a / b for a, b in pairs), 3)
    row = {
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "network": f"LightningDiT-{options.size}, {shape}",
        "n": options.n,
        "images_per_s": {k: round(options.n / statistics.median(v[1:]), 3) for k, v in wall.items()},
        "cpu_s_of_ours_over_bare": ratios,
        "cpu_s_per_image": {k: round(statistics.median(v[1:]) / options.n, 4) for k, v in cpu.items()},
    }
    print(json.dumps(row, indent=1))
    if options.json:
        with options.json.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
