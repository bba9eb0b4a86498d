"""One network of a study: trained to its end, or what is left of it, and measured where it has not been yet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facm.core.files import write_text
from facm.core.objective import as_objective
from facm.core.serialize import modernised, to_json
from facm.core.untrusted.door import read_json
from facm.evaluation.evaluate import evaluate
from facm.evaluation.evaluator import Evaluator
from facm.evaluation.features import NonFiniteSamplesError
from facm.evaluation.row import append_row
from facm.evaluation.samples import Sampling
from facm.flow.guidance import NO_GUIDANCE
from facm.pretrained.trained import load_trained
from facm.runs import log as logs
from facm.runs.checkpointer import reached
from facm.runs.config import Run
from facm.runs.folder import LockedError, RunFolder, RunFolderError, UntrustedRecipeError, create_or_continue, open_run
from facm.sampling.methods import Method, default_method
from facm.studies.study import Entry
from facm.training.checks import check
from facm.training.finite import NonFiniteError
from facm.training.loop import Outcome, train

SEED_OF_EVALUATION = 1
STOPPED = "stopped.json"


@dataclass(frozen=True)
class Wanted:
    """One number of the table.

    method: how the samples are made.
    nfe: its network evaluations.
    images: the clock; None: the end of the run.
    """

    method: Method
    nfe: int
    images: int | None


def wanted(entry: Entry) -> Iterator[Wanted]:
    """All that is measured of an entry, at its end first."""
    for images in (None, *entry.at):
        for nfe in entry.nfe:
            yield Wanted(default_method(as_objective(entry.run.objective).interface, nfe), nfe, images)


def measured(path: Path, want: Wanted, run: Run, n: int, features: str) -> dict[str, Any] | None:
    """The newest row of the run at ``path`` with this number; None if there is none yet.

    Rows of the same folder that a user measured in another way (raw weights, guidance, a shifted schedule) are others.
    """
    expected = {
        "method": to_json(want.method),
        "guidance": to_json(NO_GUIDANCE),
        "ema": run.ema.sigma_rels[0],
        "images": _end(path, run) if want.images is None else want.images,
        "n": n,
        "seed": SEED_OF_EVALUATION,
        "features": features,
    }
    rows = logs.read(path / "evaluations.jsonl")
    return next((row for row in reversed(rows) if all(modernised(row.get(k)) == v for k, v in expected.items())), None)


def _end(path: Path, run: Run) -> int:
    """The clock of the run's last checkpoint: the first multiple of the batch from ``run.images`` on."""
    return reached(RunFolder(path), run) or run.images


def stopped(path: Path) -> dict[str, Any] | None:
    """What stopped the run at ``path`` for good, if something did: {"error": ..., "images": ...}."""
    file = path / STOPPED
    try:
        said = read_json(file, links=False)
    except FileNotFoundError:
        return None
    if not isinstance(said, dict) or not isinstance(said.get("images"), int):
        raise ValueError(f"{file} does not say what stopped the run: delete it to measure the run")
    return said


def trained_whole(path: Path) -> bool:
    """Whether the run at ``path`` came to its end."""
    if not (path / "run.json").exists():
        return False
    folder, run = open_run(path)
    return reached(folder, run) >= run.images


def finished(entry: Entry, path: Path, n: int, features: str) -> bool:
    """Whether nothing is left to do; what the folder holds must be this very run."""
    if not (path / "run.json").exists():
        return False
    _opened(path, entry)
    if stopped(path):
        return True
    return trained_whole(path) and all(measured(path, want, entry.run, n, features) for want in wanted(entry))


def fulfil(entry: Entry, path: Path, evaluator: Evaluator, n: int) -> Outcome:
    """Train and measure; what is there already is not done again.

    A run that meets too many non-finite gradients has collapsed, and so has one whose samples are not finite: that is
    written down, and it is not measured.
    Raises RunFolderError where ``path`` holds another run, ValueError where the run cannot work.
    """
    checked = check(entry.run)
    folder, run = _opened(path, entry)
    outcome = Outcome(run.images, True, run.images)
    if stopped(path) is None and not trained_whole(path):
        try:
            outcome = train(checked, folder)
        except NonFiniteError as error:
            _stop(folder, error)
    if stopped(path) or not outcome.finished:
        return outcome
    for want in wanted(entry):
        if measured(path, want, run, n, evaluator.extractor.identity) is None:
            trained = load_trained(path, images=want.images)
            try:
                row = evaluate(trained, Sampling(want.method, n, SEED_OF_EVALUATION), evaluator)
            except NonFiniteSamplesError as error:
                _stop(folder, error)
                break
            append_row(trained, row)
    return outcome


def _opened(path: Path, entry: Entry) -> tuple[RunFolder, Run]:
    try:
        return create_or_continue(path, entry.run)
    except (LockedError, UntrustedRecipeError):
        raise
    except RunFolderError as error:
        raise RunFolderError(
            f"{path} holds another run than this study's {entry.name!r}: give the study another folder, or its entry "
            f"another name ({error})"
        ) from error


def _stop(folder: RunFolder, error: Exception) -> None:
    images = (logs.read(folder.log) or [{"images": 0}])[-1]["images"]
    write_text(folder.path / STOPPED, json.dumps({"error": str(error), "images": images}))
