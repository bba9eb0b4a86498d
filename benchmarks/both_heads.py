"""Quality against network evaluations: a text demo's student by its shortcut alone, and by both heads.

    facm demo text --out demo
    python benchmarks/both_heads.py --demos demo --json results/both_heads.jsonl

For each demo: the teacher with 32 guided steps, and the student of all weights by consistency sampling and by
``--sampler flow-jump``. Of a student of classes this is ``facm evaluate RUN --sampler flow-jump --num-steps 1 2 3 4``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from facm.data import Digits
from facm.evaluation.evaluator import build_evaluator
from facm.pretrained.trained import load_trained
from facm.sampling.methods import Consistency, Euler, FlowThenJump
from facm.studies.text_demo.measure import Prompts, measured
from facm.studies.text_demo.runs import GUIDANCE
from facm.studies.train_and_measure import SEED_OF_EVALUATION

SAMPLES = 1_000
EVALUATIONS = (1, 2, 3, 4, 5, 6, 7, 8)


def rows(demo: Path) -> Iterator[dict[str, Any]]:
    cpu = torch.device("cpu")
    prompts, evaluator = Prompts.of(demo / "model", cpu), build_evaluator(Digits().open(), cpu)
    measure = partial(measured, prompts=prompts, evaluator=evaluator, n=SAMPLES, seed=SEED_OF_EVALUATION)
    teacher, student = load_trained(demo / "teacher"), load_trained(demo / "full")
    yield {"who": "teacher", **measure(teacher, Euler(32), guidance=GUIDANCE)}
    for name, kind in {"consistency": Consistency, "flow-jump": FlowThenJump}.items():
        for nfe in EVALUATIONS:
            yield {"who": name, **measure(student, kind(nfe))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demos", type=Path, nargs="+", required=True, help="folders of finished facm demo text")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed, demo in enumerate(arguments.demos):
        for row in rows(demo):
            line = json.dumps({"demo": seed, **{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}})
            print(line, flush=True)
            if arguments.json is not None:
                with arguments.json.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
