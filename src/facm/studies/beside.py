"""A run that is trained in a process of its own, beside what this process does meanwhile."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from facm.runs.checkpointer import reached
from facm.runs.config import Run
from facm.runs.folder import create_or_continue
from facm.studies.schedule import INTERRUPTED


def cores_for_two() -> bool:
    """Whether two small networks are trained sooner side by side than one after the other."""
    return (os.cpu_count() or 1) > 1 and not torch.cuda.is_available()


@contextlib.contextmanager
def trained_beside(path: Path, run: Run) -> Iterator[Callable[[], bool]]:
    """Train the run, or what is left of it, in another process, which has half of the cores; this one has the other.

    Yields a function that waits for its end and says whether it was trained whole: it saves and ends where it is told
    to, as this process does, and at the end of the context at the latest. Raises RuntimeError where it failed, and what
    :func:`facm.runs.folder.create_or_continue` raises.
    """
    folder, _ = create_or_continue(path, run)
    if reached(folder, run) >= run.images:
        yield lambda: True
        return
    half = max((os.cpu_count() or 2) // 2, 1)
    command = [sys.executable, "-m", "facm", "resume", str(path), "--quiet"]
    child = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(half)})
    threads = torch.get_num_threads()
    torch.set_num_threads(half)

    def ended() -> bool:
        status = child.wait()
        if status > 0 and status != INTERRUPTED:  # below 0: somebody ended it
            raise RuntimeError(f"the training in {path} failed with status {status}; its message is above")
        return reached(folder, run) >= run.images

    try:
        yield ended
    finally:
        torch.set_num_threads(threads)
        child.terminate()  # nothing happens where it has ended
        child.wait()
