"""Schedules that ``facm schedule`` chose, judged on other noise beside consistency sampling, flow-jump and teachers.

    facm schedule demo/student --num-steps 2 3 4 6
    python benchmarks/schedules.py --schedule demo/student/schedule.json --students demo/student \\
        --teachers demo/teacher --json schedules.jsonl

The moves and times of one student's schedule are used with all of the students, so that it also shows whether they
carry over to students of other seeds. Two feature spaces, of the classifier and the pixels themselves; the noise is
that of the given evaluation seeds, which no search draws. Rows that the file has already are not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from facm.evaluation import Identity, Sampling, SmallClassifier, build_evaluator
from facm.evaluation.evaluate import conditions
from facm.evaluation.evaluator import Evaluator
from facm.evaluation.metrics import Measurement
from facm.pretrained.trained import Trained, load_trained
from facm.sampling.generate import blocks
from facm.sampling.methods import Consistency, Euler, FlowThenJump, Heun, Method
from facm.sampling.schedule import read_schedule


def measured(trained: Trained, sampling: Sampling, evaluators: Sequence[Evaluator]) -> list[Measurement]:
    """What ``facm evaluate`` measures, in several spaces of the same samples."""
    source = trained.source(torch.device("cpu"))
    measures = [e.measure(sampling.n, None if e.classes_are_the_data_sets else False) for e in evaluators]
    for indices in blocks(sampling.n, sampling.batch_size):
        cond = conditions(trained.dataset, sampling, source, indices)
        x = sampling.draw(source, indices, cond)
        for measure in measures:
            features, correct, logits = measure.extract(x, cond)
            measure.add(features, correct, logits)
    return [measure.result() for measure in measures]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", type=Path, nargs="+", required=True, help="runs of students, one a training seed")
    parser.add_argument("--teachers", type=Path, nargs="*", default=[], help="of the students, measured at 32 steps")
    parser.add_argument("--schedule", type=Path, help="of one of them; without: no searched rows")
    parser.add_argument("--methods", nargs="+", default=["searched", "flow-jump", "consistency"])
    parser.add_argument("--num-steps", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13], help="of the evaluation")
    parser.add_argument("--n", type=int, default=2_000)
    parser.add_argument("--small-classifier", action="store_true", help="one pass over the data, for larger data sets")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in arguments.json.read_text().splitlines()] if arguments.json.exists() else []
    have = {(row["student"], row["who"], row["nfe"], row["seed"], row["features"]) for row in rows}
    chosen = (
        {} if arguments.schedule is None else {f.method.nfe: f.method for f in read_schedule(arguments.schedule).found}
    )
    students = [load_trained(path) for path in arguments.students]
    teachers = [load_trained(path) for path in arguments.teachers]
    data, cpu = students[0].dataset, torch.device("cpu")
    classifier = SmallClassifier(epochs=1, width=16) if arguments.small_classifier else None
    evaluators = [build_evaluator(data, cpu, classifier), build_evaluator(data, cpu, Identity())]

    def put(who: str, networks: list[Trained], method: Method | None, seed: int) -> None:
        for k, network in enumerate(networks if method is not None else []):
            if (k, who, method.nfe, seed, evaluators[0].extractor.identity) in have:
                continue
            began = time.process_time()
            found = measured(network, Sampling(method, arguments.n, seed), evaluators)
            spent = (time.process_time() - began) / len(evaluators)
            for measurement, evaluator in zip(found, evaluators, strict=True):
                row = {"student": k, "who": who, "nfe": method.nfe, "seed": seed, "n": arguments.n}
                names = ("frechet_distance", "precision", "recall", "accuracy")
                row |= {name: getattr(measurement, name) for name in names}
                row |= {"features": evaluator.extractor.identity, "cpu_s": spent}
                rounded = {name: round(v, 5) if isinstance(v, float) else v for name, v in row.items()}
                print(json.dumps(rounded), flush=True)
                with arguments.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rounded) + "\n")

    for seed in arguments.seeds:
        put("teacher", teachers, Euler(32), seed)
        put("teacher", teachers, Heun(31), seed)
        for nfe in arguments.num_steps:
            methods = {"searched": chosen.get(nfe), "flow-jump": FlowThenJump(nfe), "consistency": Consistency(nfe)}
            for who in arguments.methods:
                if nfe > 2 or who != "flow-jump":  # which is consistency sampling there
                    put(who, students, methods[who], seed)


if __name__ == "__main__":
    main()
