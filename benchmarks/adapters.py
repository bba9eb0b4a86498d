"""A distillation step with adapters against one of all weights: CPU seconds, interleaved, and memory by plan.

    python benchmarks/adapters.py [--steps 6] [--width 384] [--layers 8] [--rank 16]

A Wan-shaped random transformer, 64 tokens, batch 8, fp32, guidance 2, one thread. Memory is what ``facm plan`` predicts
for a GPU of the same run. Needs the extra "hf".
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.foundation.wan_parts import WIDTH, Prompted, tiny_wan, wan_run

from facm.core.objective import as_objective
from facm.foundation import LoRA
from facm.runs.config import Run, teacher_of
from facm.runs.ema import EMA
from facm.training.memory_plan import plan


def larger_wan(path: Path, width: int, layers: int) -> Path:
    """A folder of the tests' pipeline with a larger transformer."""
    from diffusers import WanTransformer3DModel

    tiny_wan(path)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=width // 64,
        attention_head_dim=64,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=256,
        ffn_dim=4 * width,
        num_layers=layers,
        rope_max_seq_len=64,
    )
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    transformer.save_pretrained(path / "transformer")
    return path


def stepper(run: Run) -> Callable[[], None]:
    """One optimiser step of ``run``, with its average."""
    network = run.network.build().train()
    teacher, objective = teacher_of(run, network), as_objective(run.objective)
    optimizer, ema = run.optimizer.build(network), EMA(run.ema, network)
    batch = run.data.open().read(np.arange(run.batch_size))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        for term in objective.loss_terms(network, batch, torch.Generator().manual_seed(0), teacher):
            term().total.backward()
        optimizer.step()
        ema.update(8, 8)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"steps": 6, "width": 384, "layers": 8, "rank": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = larger_wan(Path(folder) / "wan", options.width, options.layers)
        data = Prompted(16, (4, 1, 16, 16))
        whole = wan_run(model, lora=False, data=data)
        adapters: Any = wan_run(model, lora=True, data=data)
        adapters = replace(adapters, network=replace(adapters.network, lora=LoRA(options.rank), smooth=None))
        runs = {"all weights": whole, f"adapters of rank {options.rank}": adapters}
        steps = {name: stepper(run) for name, run in runs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for step in steps.values():
            step()
        for _ in range(options.steps):
            for name, step in steps.items():
                began = time.process_time()
                step()
                seconds[name].append(time.process_time() - began)
        base = statistics.median(seconds["all weights"])
        for name, run in runs.items():
            found = plan(run, device="cpu")
            parts = {part: getattr(found, part) for part in ("parameters", "gradients", "optimizer", "ema", "teacher")}
            held = ", ".join(f"{part} {size / 1e6:.1f}" for part, size in parts.items())
            median = statistics.median(seconds[name])
            print(
                f"{name}: {median:.2f} CPU s a step ({median / base:.2f}); MB: {held}, "
                f"activations {(found.activations + found.tangent) / 1e6:.1f}, total {found.total / 1e6:.1f}"
            )


if __name__ == "__main__":
    main()
