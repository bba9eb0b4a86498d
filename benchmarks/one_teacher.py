"""Further seeds of the arms of ``facm study order``, all of them from the teacher of one finished seed.

    facm study order --at fashion --data data/fashion_mnist --budgets 1 --seeds 0
    python benchmarks/one_teacher.py --at fashion --data data/fashion_mnist --seeds 1 2 --arms facm mean-flow

A teacher takes as long as a student; where time is short, students of several seeds may share one. Runs go to
HOME/one-teacher/seed-S, next to those of the study; what is there already is not done again. At the end, a line a row.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from facm.evaluation import Identity, build_evaluator
from facm.runs import log as logs
from facm.studies.rows import Bench
from facm.studies.scales import find_setting
from facm.studies.tables.order import order
from facm.studies.train_and_measure import fulfil


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at", default="fashion")
    parser.add_argument("--data")
    parser.add_argument("--home", type=Path, help="folder of the study; default: runs/studies/AT")
    parser.add_argument("--teacher-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--arms", nargs="+", default=["facm", "mean-flow"], help="facm among them")
    parser.add_argument("--budget", type=int, default=1)
    parser.add_argument("--n", type=int, default=2_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting = find_setting(arguments.at, arguments.data)
    home = arguments.home or Path("runs/studies") / arguments.at
    data, cpu = setting.data.open(), torch.device("cpu")
    evaluators = [build_evaluator(data, cpu), build_evaluator(data, cpu, Identity())]
    for seed in arguments.seeds:
        study = order(
            Bench(setting, home / f"seed-{arguments.teacher_seed}", seed), (arguments.budget,), (*arguments.arms,)
        )
        for entry in study.entries:
            path = home / "one-teacher" / f"seed-{seed}" / entry.name
            for evaluator in evaluators:
                fulfil(entry, path, evaluator, arguments.n)
            for row in logs.read(path / "evaluations.jsonl"):
                names = ("images", "nfe", "frechet_distance", "precision", "recall", "accuracy", "n", "features")
                print(json.dumps({"seed": seed, "arm": entry.name, **{name: row[name] for name in names}}), flush=True)


if __name__ == "__main__":
    main()
