"""facm study."""

from __future__ import annotations

import inspect
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from facm.cli.metric_options import FeatureOptions

if TYPE_CHECKING:
    from facm.studies.study import Study

FEATURES = FeatureOptions()


def study(
    name: Annotated[str, tyro.conf.Positional],
    at: str = "digits",
    seeds: tuple[int, ...] = (0, 1, 2),
    out: Path | None = None,
    features: Annotated[FeatureOptions, tyro.conf.arg(name="")] = FEATURES,
    data: str | None = None,
    n: int | None = None,
    jobs: int = 1,
    only: str | None = None,
) -> None:
    """Re-run one of the paper's tables or figures over seeds: train, measure, and write one table and a report.

    What is finished is not done again, so the same command goes on after an interruption, and studies in one folder
    share the networks that they have in common. The studies: facm show studies.

    Args:
        name: a study such as stability, or a function in any file: mine.py:study.
        at: its size: digits, minutes a network on a CPU core, or cifar10, for a GPU.
        seeds: of training, one row of runs for each.
        out: folder of the runs and the reports; default: runs/studies/AT.
        data: folder or archive of the data set; default: data/AT. Digits come with scikit-learn.
        n: samples measured for each number; default: the size's.
        jobs: networks trained at the same time, each in a process of its own with its share of the cores or GPUs.
        only: do one network and no report, SEED/NAME, as a job of a cluster would: its teachers must be finished.
    """
    import torch

    from facm.cli.lookup import find_study
    from facm.evaluation import reference_floor
    from facm.evaluation.evaluator import build_evaluator
    from facm.studies.report import write
    from facm.studies.scales import find_setting
    from facm.studies.schedule import INTERRUPTED, Plan, in_turn, side_by_side
    from facm.studies.summary import summarise
    from facm.studies.table import print_table

    if jobs < 1:
        raise ValueError(f"--jobs {jobs}, expected at least 1")
    if not seeds or len(set(seeds)) < len(seeds):
        given = " ".join(map(str, seeds)) or "is empty"
        raise ValueError(f"--seeds {given}, expected at least one, each of them once")
    if n is not None and n < 2:
        raise ValueError(f"--n {n}, expected at least 2 samples to measure")
    found, setting = find_study(name), find_setting(at, data)
    home = _plainly(out or Path("runs/studies") / at)
    plan = Plan(home, {seed: _made(found, setting, home, seed) for seed in seeds}, n or setting.n)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    used: Any = next(iter(plan.studies.values())).entries[0].run.data  # a study may have others than its size's
    if used == setting.data and setting.reference is not None:
        used = setting.reference
    evaluator = build_evaluator(used.open(), device, features.chosen())
    if only is not None:
        if not plan.do(only, evaluator):
            print("interrupted: the same command goes on")
            raise SystemExit(INTERRUPTED)
        return
    began = time.monotonic()
    command = [sys.executable, "-m", "facm", *sys.argv[1:]]
    if not (in_turn(plan, evaluator) if jobs == 1 else side_by_side(plan, evaluator, jobs, command)):
        print("interrupted: the same command goes on")
        return
    floor = reference_floor(evaluator.dataset, evaluator.extractor)
    summary = summarise(plan.studies, home, plan.n, evaluator.extractor.identity, floor)
    page = write(summary, evaluator, home, home / found.name, " ".join(["facm", *sys.argv[1:]]), device)
    print_table(summary)
    print(f"{len(plan.tasks)} networks, {time.monotonic() - began:.0f} s now; report: {page}")


def _plainly(folder: Path) -> Path:
    """The same folder by the same name, however it was spelled: teachers' paths are part of runs."""
    here, there = Path.cwd(), folder.resolve()
    return there.relative_to(here) if there.is_relative_to(here) else there


def _made(found: Any, setting: Any, home: Path, seed: int) -> Study:
    from facm.studies.rows import Bench
    from facm.studies.study import Study, check_study

    folder = home / f"seed-{seed}"
    if len(inspect.signature(found.function).parameters) != 1:
        raise ValueError(f"study {found.name!r} is to take one argument, a facm.studies.rows.Bench")
    study = found.function(Bench(setting, folder, seed))
    if not isinstance(study, Study):
        raise ValueError(f"study {found.name!r} returned {type(study).__name__}, expected a facm.studies.study.Study")
    check_study(study, folder)
    return study
