"""facm study."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from facm.cli.metric_options import FeatureOptions
from facm.cli.parsing import Group
from facm.core.terminal import say

if TYPE_CHECKING:
    import torch

    from facm.cli.lookup import FoundStudy
    from facm.evaluation.evaluator import Evaluator
    from facm.studies.schedule import Plan
    from facm.studies.study import Study


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """Which networks a study trains, and where."""

    at: str = "digits"
    """Size of the study: digits, minutes a network on a CPU core, fashion, a quarter of an hour, or cifar10, a GPU."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of training; every network is trained once for each."""
    out: Path | None = None
    """Folder of the runs and the reports; default: runs/studies/AT."""
    data: str | None = None
    """Folder or archive of the data set; default: data/AT. Digits come with scikit-learn."""
    num_samples: int | None = None
    """Samples measured for each number; default: the size's."""
    jobs: int = 1
    """Networks trained at the same time, each in its own process with its share of the cores or GPUs."""
    budgets: tuple[int, ...] | None = None
    """Lengths of the students of order, in multiples of the size's; default: 1 4 16. Other studies have their own."""
    arms: tuple[str, ...] | None = None
    """Objectives that order compares, facm among them; default: the paper's. Beside them there are tract and ayf."""
    only: str | None = None
    """Do one network, SEED/NAME, and no report, as a job of a cluster would; its teachers must be finished."""

    def check(self) -> None:
        """Raise ValueError for what cannot be a study."""
        if self.jobs < 1:
            raise ValueError(f"--jobs {self.jobs}, expected at least 1")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            given = " ".join(map(str, self.seeds)) or "is empty"
            raise ValueError(f"--seeds {given}, expected at least one, each of them once")
        if self.budgets is not None and (not self.budgets or min(self.budgets) < 1):
            given = " ".join(map(str, self.budgets)) or "is empty"
            raise ValueError(f"--budgets {given}, expected at least one, each a whole multiple from 1 on")
        if self.arms is not None and not self.arms:
            raise ValueError("--arms is empty, expected facm and others")
        if self.num_samples is not None and self.num_samples < 2:
            raise ValueError(f"--num-samples {self.num_samples}, expected at least 2 samples to measure")

    def chosen(self) -> dict[str, tuple[Any, ...]]:
        """What the user chose of a study that lets them choose."""
        return {name: value for name in CHOICES if (value := getattr(self, name)) is not None}


CHOICES = ("budgets", "arms")
"""Arguments that a study may have beside its bench."""
STUDY, FEATURES = StudyOptions(), FeatureOptions()


def study(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")],
    options: Group[StudyOptions] = STUDY,
    features: Group[FeatureOptions] = FEATURES,
) -> None:
    """Re-run one of the paper's tables or figures over seeds: train, measure, and write one table and a report.

    What is finished is not done again, so the same command continues after an interruption, and studies in one folder
    share the networks that they have in common. The studies: facm list.

    Args:
        name: a study such as stability, or a function in any file: mine.py:study.
    """
    import torch

    from facm.cli.lookup import find_study
    from facm.evaluation import Identity
    from facm.evaluation.evaluator import build_evaluator
    from facm.studies.scales import find_setting
    from facm.studies.schedule import INTERRUPTED, Plan

    options.check()
    found, setting = find_study(name), find_setting(options.at, options.data)
    home = _plainly(options.out or Path("runs/studies") / options.at)
    studies = {seed: _made(found, setting, home, seed, options.chosen()) for seed in options.seeds}
    plan = Plan(home, studies, options.num_samples or setting.n)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    used: Any = next(iter(plan.studies.values())).entries[0].run.data  # a study may have others than its size's
    if used == setting.data and setting.reference is not None:
        used = setting.reference
    data = used.open()
    evaluators = [build_evaluator(data, device, features.chosen())]
    if next(iter(studies.values())).pixels:
        evaluators.append(build_evaluator(data, device, Identity()))
    if options.only is None:
        _run(plan, evaluators, found, device, options.jobs)
    elif not all(plan.do(options.only, evaluator) for evaluator in evaluators):
        say("interrupted: the same command goes on")
        raise SystemExit(INTERRUPTED)


def _run(plan: Plan, evaluators: list[Evaluator], found: FoundStudy, device: torch.device, jobs: int) -> None:
    """All networks of the plan that are left, then the table and the report."""
    from facm.evaluation import reference_floor
    from facm.studies.report import write
    from facm.studies.schedule import in_turn, side_by_side
    from facm.studies.summary import summarise
    from facm.studies.table import print_table

    began = time.monotonic()
    command = [sys.executable, "-m", "facm", *sys.argv[1:]]
    evaluator, *others = evaluators
    ended = in_turn(plan, evaluator) if jobs == 1 else side_by_side(plan, evaluator, jobs, command)
    if not (ended and all(in_turn(plan, other) for other in others)):
        say("interrupted: the same command goes on")
        return
    summary, *further = (
        summarise(plan.studies, plan.home, plan.n, one.extractor.identity, reference_floor(one.dataset, one.extractor))
        for one in evaluators
    )
    said = " ".join(["facm", *sys.argv[1:]])
    page = write(summary, evaluator, plan.home, plan.home / found.name, said, device, *further)
    print_table(summary)
    say(f"{len(plan.tasks)} networks, {time.monotonic() - began:.0f} s now; report: {page}")


def _plainly(folder: Path) -> Path:
    """The same folder by the same name, however it was spelled: teachers' paths are part of runs."""
    here, there = Path.cwd(), folder.resolve()
    return there.relative_to(here) if there.is_relative_to(here) else there


def _made(found: FoundStudy, setting: Any, home: Path, seed: int, chosen: dict[str, tuple[Any, ...]]) -> Study:
    from facm.studies.rows import Bench
    from facm.studies.study import Study, check_study

    folder = home / f"seed-{seed}"
    takes = list(inspect.signature(found.function).parameters)
    if not takes or not set(takes[1:]) <= set(CHOICES):
        raise ValueError(f"study {found.name!r} is to take one argument, a facm.studies.rows.Bench")
    if lost := [name for name in chosen if name not in takes[1:]]:
        raise ValueError(f"--{lost[0]} with study {found.name!r}, which does not let you choose its {lost[0]}")
    study = found.function(Bench(setting, folder, seed), **chosen)
    if not isinstance(study, Study):
        raise ValueError(f"study {found.name!r} returned {type(study).__name__}, expected a facm.studies.study.Study")
    check_study(study, folder)
    return study
