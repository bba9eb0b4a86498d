"""The folder of a demo: whose it is, what is done in it, and how long that took. An interrupted demo goes on."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facm.core.claims import contents
from facm.core.files import write_text
from facm.core.terminal import say
from facm.core.untrusted.door import read_json
from facm.runs.checkpointer import reached
from facm.runs.config import Run
from facm.runs.folder import LockedError, RunFolderError, UntrustedRecipeError, create_or_continue
from facm.training.loop import train
from facm.training.progress import progress

Mark = dict[str, Any]
"""What tells one demo from another, in demo.json."""


@dataclass
class Clock:
    """Seconds spent in each part, kept on disk: an interrupted demo goes on counting.

    path: the JSON file.
    """

    path: Path

    def read(self) -> dict[str, float]:
        return dict(read_json(self.path, links=False)) if self.path.exists() else {}

    def add(self, part: str, seconds: float) -> None:
        spent = self.read()
        write_text(self.path, json.dumps(spent | {part: spent.get(part, 0.0) + seconds}))


def begin(out: Path, mark: Mark) -> None:
    """Mark the folder as this demo's, unless it is already."""
    if not check_mine(out, mark):
        write_text(out / "demo.json", json.dumps(mark))


def check_mine(out: Path, mark: Mark) -> bool:
    """Whether the folder is this demo's, begun earlier with the same seed. Raises RunFolderError if it is another's,
    ValueError for a file."""
    file = out / "demo.json"
    if out.exists() and not out.is_dir():
        raise ValueError(f"out = {out} is not a folder")
    if not (out.exists() and contents(out)):
        return False
    if not file.exists():
        raise RunFolderError(f"out = {out} is in use by something else and is never overwritten: choose another folder")
    begun = read_json(file, links=False)
    if begun != mark:
        wanted = f"seed {mark['seed']}" if mark.keys() == {"seed"} else str(mark)
        raise RunFolderError(f"out = {out} holds a demo begun with {begun}, not {wanted}: choose another folder")
    return True


def train_part(run: Run, path: Path, part: str, clock: Clock, quiet: bool) -> bool:
    """Train one run, or what is left of it; False if it was interrupted."""
    try:
        folder, _ = create_or_continue(path, run)
    except (LockedError, UntrustedRecipeError):
        raise
    except RunFolderError as error:
        raise RunFolderError(
            f"{path} holds another recipe than this version's demo: choose another folder ({error})"
        ) from error
    if reached(folder, run) >= run.images:
        return True
    began = time.monotonic()
    with progress(run, part, quiet) as shown:
        outcome = train(run, folder, report=shown.on_log, on_step=shown.on_step)
    clock.add(part, time.monotonic() - began)
    if not outcome.finished:
        say(f"{outcome.signal}: saved at {outcome.images} of {run.images} images; the same command goes on from there")
    return outcome.finished
