"""All networks of a study in their order, one after the other or side by side."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from facm.core.terminal import say
from facm.evaluation.evaluator import Evaluator
from facm.pretrained.trained import FromRun
from facm.runs import log as logs
from facm.studies.html import steps
from facm.studies.study import Entry, Study
from facm.studies.train_and_measure import finished, fulfil, stopped, trained_whole

INTERRUPTED = 130
"""Exit status of a command with --only that was interrupted after saving: a cluster is not to take it as done."""


@dataclass(frozen=True)
class Plan:
    """What is to be trained and measured.

    home: the folder of the runs.
    studies: seed -> study.
    n: samples measured for each number.
    """

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

    def done(self, task: str, evaluator: Evaluator) -> bool:
        return finished(self.tasks[task], self.path(task), self.n, evaluator.extractor.identity)

    def ready(self, task: str) -> bool:
        """Whether its teacher is there."""
        return self._missing(task) is None

    def _missing(self, task: str) -> FromRun | None:
        """The run that it needs and that is not at its end."""
        run = self.tasks[task].run
        needs = [source for source in (run.teacher, run.initial) if isinstance(source, FromRun)]
        return next((source for source in needs if not trained_whole(Path(source.path))), None)

    def why_not(self, task: str) -> str:
        """What to say of a task that is not ready."""
        source = self._missing(task)
        assert source is not None
        failed = stopped(Path(source.path))
        state = f"collapsed after {failed['images']} images" if failed else "is not trained to its end yet"
        return f"cannot train {task}: its teacher {source.path} {state}"

    def do(self, task: str, evaluator: Evaluator) -> bool:
        """Train and measure one network; False if it was interrupted. Raises ValueError for a task that is none."""
        if task not in self.tasks:
            raise ValueError(f"task = {task!r}, expected SEED/NAME, one of {', '.join(self.tasks)}")
        if not self.ready(task):
            raise ValueError(self.why_not(task))
        began = time.monotonic()
        if not trained_whole(self.path(task)):
            say(f"seed {task}: training begins or goes on, {self.tasks[task].run.images:,} images")
        outcome = fulfil(self.tasks[task], self.path(task), evaluator, self.n)
        if outcome.finished:
            say(f"seed {task}: {_state(self.path(task))} ({time.monotonic() - began:.0f} s)")
        return outcome.finished


def _state(path: Path) -> str:
    if failed := stopped(path):
        return f"collapsed after {failed['images']} images"
    # A row that somebody else wrote beside them may have anything there, or nothing.
    rows = [row for row in logs.read(path / "evaluations.jsonl") if _is_measured(row)]
    latest = {row["nfe"]: row["frechet_distance"] for row in sorted(rows, key=lambda row: row["images"])}
    return ", ".join(f"{steps(nfe)}: {distance:.3f}" for nfe, distance in latest.items())


def _is_measured(row: dict[str, Any]) -> bool:
    return all(isinstance(row.get(key), int | float) for key in ("images", "nfe", "frechet_distance"))


def in_turn(plan: Plan, evaluator: Evaluator) -> bool:
    """Everything that is left, in this process; False if it was interrupted."""
    return all(plan.done(task, evaluator) or plan.do(task, evaluator) for task in plan.tasks)


def side_by_side(plan: Plan, evaluator: Evaluator, jobs: int, command: Sequence[str]) -> bool:
    """Everything that is left, ``jobs`` networks at a time, each by ``command`` with ``--only SEED/NAME``.

    A network waits for its teacher. False if it was interrupted; raises RuntimeError where one failed, ValueError for
    one whose teacher has collapsed.
    """
    left = [task for task in plan.tasks if not plan.done(task, evaluator)]
    running: dict[Future[int], str] = {}
    children = Children(command, jobs)
    with children.forwarding_signals(), ThreadPoolExecutor(jobs) as pool, children.stopped_by_errors():
        while True:
            ready = [task for task in left if plan.ready(task)]
            while ready and len(running) < jobs and not children.stopping:
                task = ready.pop(0)
                left.remove(task)
                running[pool.submit(children.run, task)] = task
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                if future.result() not in (0, INTERRUPTED) and not children.stopping:
                    raise RuntimeError(f"seed {task} failed with status {future.result()}; its message is above")
    if children.stopping or not all(plan.done(task, evaluator) for task in plan.tasks if task not in left):
        return False  # or a child alone was interrupted
    if left:
        raise ValueError(plan.why_not(left[0]))
    return True


class Children:
    """Processes of which ``jobs`` run at a time, each with its share of the cores, or a GPU of its own."""

    def __init__(self, command: Sequence[str], jobs: int) -> None:
        self.command, self.jobs, self.stopping = list(command), jobs, False
        self._alive: set[subprocess.Popen[bytes]] = set()
        self._free = list(range(jobs))
        self._lock = threading.RLock()  # a second Ctrl-C interrupts stop()

    def run(self, task: str) -> int:
        """Wait for the command with ``--only task``; its exit status."""
        with self._lock:
            if self.stopping:
                return 0
            slot = self._free.pop(0)
            environment = os.environ | _share(slot, self.jobs)
            # a group of its own: Ctrl-C reaches it through this process alone, once
            child = subprocess.Popen([*self.command, "--only", task], env=environment, start_new_session=True)
            self._alive.add(child)
        status = child.wait()
        with self._lock:
            self._alive.discard(child)
            self._free.append(slot)
        return status

    def stop(self) -> None:
        """Ask all children to save and end, and start no more."""
        with self._lock:
            self.stopping = True
            for child in self._alive:
                child.send_signal(signal.SIGTERM)

    @contextlib.contextmanager
    def stopped_by_errors(self) -> Iterator[None]:
        """An error inside stops the children, which would otherwise be waited for to their ends."""
        try:
            yield
        except BaseException:
            self.stop()
            raise

    @contextlib.contextmanager
    def forwarding_signals(self) -> Iterator[None]:
        """Inside, what would end this process ends the children first."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, lambda *_: self.stop()) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _share(slot: int, jobs: int) -> dict[str, str]:
    share = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if os.environ.get("CUDA_VISIBLE_DEVICES") else None
    mine = [*map(str, range(count))] if names is None else names  # of those that this process was given
    return share | ({"CUDA_VISIBLE_DEVICES": mine[slot % count]} if count > 1 else {})
