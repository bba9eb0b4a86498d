"""facm study."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from facm.cli.judging import FeatureOptions

if TYPE_CHECKING:
    from facm.evaluation.evaluate import Judge
    from facm.studies.study import Entry, Study

FEATURES = FeatureOptions()


def study(
    name: Annotated[str, tyro.conf.Positional],
    at: str = "digits",
    seeds: tuple[int, ...] = (0, 1, 2),
    out: Path | None = None,
    features: Annotated[FeatureOptions, tyro.conf.arg(name="")] = FEATURES,
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
        n: samples measured for each number; default: the size's.
        jobs: networks trained at the same time, each in a process of its own with its share of the cores or GPUs.
        only: do one network and no report, SEED/NAME, as a job of a cluster would: its teachers must be finished.
    """
    from facm.studies.find import find_study
    from facm.studies.setting import find_setting

    if jobs < 1:
        raise ValueError(f"--jobs {jobs}, expected at least 1")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {' '.join(map(str, seeds))}, expected at least one, each of them once")
    if n is not None and n < 2:
        raise ValueError(f"--n {n}, expected at least 2 samples to measure")
    found, setting = find_study(name), find_setting(at)
    home = out or Path("runs/studies") / at
    plan = Plan(home, {seed: _made(found, setting, home, seed) for seed in seeds}, n or setting.n)
    judged = _judge(setting, features)
    if only is not None:
        plan.do(only, judged)
        return
    began = time.monotonic()
    done = _in_turn(plan, judged) if jobs == 1 else _side_by_side(plan, judged, jobs)
    if not done:
        print("interrupted: the same command goes on")
        return
    print(f"all {len(plan.tasks)} networks are trained and measured ({time.monotonic() - began:.0f} s now)")


@dataclass(frozen=True)
class Plan:
    """The study for each seed, where its runs are, and how many samples are measured."""

    home: Path
    studies: dict[int, Study]
    n: int

    @property
    def tasks(self) -> dict[str, Entry]:
        """SEED/NAME -> entry, all teachers before all students."""
        teachers = {f"{seed}/{e.name}": e for seed, study in self.studies.items() for e in study.teachers}
        return teachers | {f"{seed}/{e.name}": e for seed, study in self.studies.items() for e in study.entries}

    def path(self, task: str) -> Path:
        return self.home / f"seed-{task}"

    def ready(self, task: str, features: str) -> bool:
        """Whether its teacher is there."""
        from facm.studies.execute import trained_whole

        source: Any = self.tasks[task].run.teacher
        return source is None or not hasattr(source, "path") or trained_whole(Path(source.path))

    def do(self, task: str, judged: Judge) -> bool:
        """Train and measure one network; False if it was interrupted."""
        from facm.studies.execute import fulfil

        if task not in self.tasks:
            raise ValueError(f"--only {task}, expected SEED/NAME, one of {', '.join(self.tasks)}")
        began = time.monotonic()
        outcome = fulfil(self.tasks[task], self.path(task), judged, self.n)
        if outcome.finished:
            print(f"seed {task}: {_state(self.path(task))} ({time.monotonic() - began:.0f} s)", flush=True)
        return outcome.finished


def _state(path: Path) -> str:
    from facm import logs
    from facm.studies.execute import stopped

    if failed := stopped(path):
        return f"collapsed after {failed['images']} images"
    rows = {row["nfe"]: row for row in logs.read(path / "evaluations.jsonl")}
    return ", ".join(f"{nfe} step{'s' * (nfe > 1)}: {row['frechet_distance']:.3f}" for nfe, row in rows.items())


def _made(found: Any, setting: Any, home: Path, seed: int) -> Study:
    from facm.studies.entries import Bench
    from facm.studies.study import Study, check_study

    folder = home / f"seed-{seed}"
    study = found.function(Bench(setting, folder, seed))
    if not isinstance(study, Study):
        raise ValueError(f"study {found.name!r} returned {type(study).__name__}, expected a facm.studies.study.Study")
    check_study(study, folder)
    return study


def _judge(setting: Any, features: FeatureOptions) -> Judge:
    import torch

    from facm.evaluation.evaluate import judge

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return judge(setting.data.open(), device, features.chosen())


def _in_turn(plan: Plan, judged: Judge) -> bool:
    from facm.studies.execute import finished

    for task, entry in plan.tasks.items():
        if not finished(entry, plan.path(task), plan.n, judged.extractor.identity) and not plan.do(task, judged):
            return False
    return True


def _side_by_side(plan: Plan, judged: Judge, jobs: int) -> bool:
    """Each network is this very command with --only, in a process of its own."""
    from facm.studies.execute import finished

    features = judged.extractor.identity
    left = [task for task, entry in plan.tasks.items() if not finished(entry, plan.path(task), plan.n, features)]
    running: dict[Future[int], str] = {}
    processes = Processes(jobs)
    with processes.forwarding(), ThreadPoolExecutor(jobs) as pool:
        while left or running:
            ready = [task for task in left if plan.ready(task, features)]
            while ready and len(running) < jobs and not processes.stopping:
                task = ready.pop(0)
                left.remove(task)
                running[pool.submit(processes.run, task)] = task
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                if future.result() and not processes.stopping:
                    processes.stop()
                    raise RuntimeError(f"seed {task} failed; its message is above")
    return not processes.stopping


class Processes:
    """The children of --jobs: each gets its share of the cores, or its GPU, and the signals that end this process."""

    def __init__(self, jobs: int) -> None:
        self.jobs, self.stopping = jobs, False
        self.alive: set[subprocess.Popen[bytes]] = set()
        self.free = list(range(jobs))
        self.lock = threading.Lock()

    def run(self, task: str) -> int:
        """The exit status of the command with --only ``task``."""
        with self.lock:
            slot = self.free.pop(0)
            threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
            environment = os.environ | {"OMP_NUM_THREADS": threads} | _gpu(slot)
            child = subprocess.Popen([sys.executable, "-m", "facm", *sys.argv[1:], "--only", task], env=environment)
            self.alive.add(child)
        status = child.wait()
        with self.lock:
            self.alive.discard(child)
            self.free.append(slot)
        return status

    def stop(self) -> None:
        self.stopping = True
        for child in list(self.alive):
            child.send_signal(signal.SIGTERM)

    def forwarding(self) -> Any:
        import contextlib

        @contextlib.contextmanager
        def forwarded() -> Any:
            before = {
                number: signal.signal(number, lambda *_: self.stop()) for number in (signal.SIGTERM, signal.SIGINT)
            }
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        return forwarded()


def _gpu(slot: int) -> dict[str, str]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {"CUDA_VISIBLE_DEVICES": str(slot % count)} if count > 1 else {}
