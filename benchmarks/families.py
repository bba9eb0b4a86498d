"""How far each family is from its pipeline: two Euler steps of tiny random pipelines, unguided and guided.

    python benchmarks/families.py [--json FILE]

Each row: the largest difference of x_1 from what the pipeline itself makes of the same noise and prompts, over the
largest value, without guidance and with it, in float32; and how far the derivative is from plain forward mode. Needs
the extra "hf".
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.foundation.conformance_parts import CASES, PROMPTS, Opened, opened, relative
from tests.foundation.tiny_pipelines_parts import saved

from facm.derivative import OpLevel
from facm.derivative.base import Prediction
from facm.foundation.network import DiffusersNetwork


def measured(subject: Opened) -> dict[str, float | None]:
    """The differences of one pipeline."""
    plain = subject.call(PROMPTS)
    unguided, guided = relative(subject.solved(PROMPTS), plain), None
    if subject.case.guided is not None:
        want = subject.call(PROMPTS, guided=True)
        guided = relative(subject.solved(PROMPTS, guided=True), want)
    with torch.no_grad():
        cond = subject.family.encode(subject.pipe, PROMPTS)
    network = DiffusersNetwork(subject.pipe.transformer, subject.family, subject.case.told)
    function = Prediction(network, lambda t: {"t": t}, cond)
    primals = subject.noise(), torch.tensor([0.2, 0.9])
    tangents = torch.randn(primals[0].shape, generator=torch.Generator().manual_seed(3)), torch.ones(2)
    _, tangent = OpLevel()(function, primals, tangents)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        _, want = torch.func.jvp(function, primals, tangents)
    return {"unguided": unguided, "guided": guided, "derivative": relative(tangent, want)}


def main() -> None:
    """Prints a row for each pipeline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in CASES:
            subject = opened(kind, saved(kind, Path(folder) / kind))
            numbers = measured(subject)
            rows.append({"pipeline": type(subject.pipe).__name__, "kind": kind, **numbers})
            print("  ".join([f"{kind:14}", *(f"{name} {n:.1e}" for name, n in numbers.items() if n is not None)]))
    if arguments.json:
        import diffusers

        versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
        arguments.json.write_text(json.dumps({"date": str(date.today()), **versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
