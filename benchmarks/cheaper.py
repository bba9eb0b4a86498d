"""Cheaper training for the same quality: compute at which each idea reaches the distance of FACM's 300 steps.

    facm demo --out demo/0, and --seed 1 --out demo/1, --seed 2 --out demo/2
    python benchmarks/cheaper.py --teachers demo/0/teacher demo/1/teacher demo/2/teacher --json cheaper.jsonl

Students start from their teacher and are trained with a share of the forward-equivalents of 300 steps of 128 digits
with FACM as it is (9 a sample: ``benchmarks/one_step_gap.py`` says what counts how much, and what the arms are). Each
run has its own decay of the rate to its end, since the distance of a run that is cut short is not that of a short run.
Arms of one teacher share batches and noise. Rows that the file has already are not made again.

The compute at which an arm is as near as FACM's 300 steps is read off its shares, linearly in the logarithms of both.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from facm.data import Digits
from facm.evaluation import Identity, build_evaluator
from facm.pretrained.trained import load_trained
from facm.sampling.methods import Consistency, FlowThenJump
from one_step_gap import BATCH, OBJECTIVE, cost, measured, trained_by

STEPS = 300
ARMS = ("facm", "half-anchor", "quarter-anchor", "half-shortcut", "reused", "loss-aware")
METHODS = {"1": Consistency(1), "2": Consistency(2), "3": FlowThenJump(3)}


def power(step: int, gamma: float = 16.97) -> float:
    """Decay of the power average of relative width 0.05 (arXiv 2312.02696, Eq. 4)."""
    return (1 - 1 / step) ** (gamma + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=Path, nargs="+", required=True, help="runs of digits teachers, one a seed")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), help="ideas of one_step_gap.py, or several as a+b")
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.75, 0.5], help="of 300 steps of FACM")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--n", type=int, default=5_000)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in arguments.json.read_text().splitlines()] if arguments.json.exists() else []
    have = {(row["seed"], row["arm"], row["share"]) for row in rows}
    data, cpu = Digits().open(), torch.device("cpu")
    evaluators = {"classifier": build_evaluator(data, cpu), "pixels": build_evaluator(data, cpu, Identity())}
    for share in arguments.shares:
        for arm in arguments.arms:
            for seed, path in enumerate(arguments.teachers):
                if (seed, arm, share) in have:
                    continue
                began, teacher = time.process_time(), load_trained(path)
                budget = share * STEPS * BATCH * cost("facm")
                student, images = trained_by(arm, teacher, teacher.network, budget, arguments.rate, power, seed)
                student = replace(student, interface=OBJECTIVE.interface)
                spent = time.process_time() - began
                row = {"seed": seed, "arm": arm, "share": share, "images": images, "n": arguments.n}
                row |= {"train_cpu_s": spent, **measured(student, METHODS, evaluators, arguments.n)}
                line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})
                print(line, flush=True)
                with arguments.json.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
