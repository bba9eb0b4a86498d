"""The demo: a teacher on digits, a FACM student distilled from it, both measured, in one folder with a report."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from facm.core.claims import contents, held
from facm.core.files import atomically, write_text
from facm.core.terminal import console, say
from facm.core.untrusted.door import read_json, read_text
from facm.evaluation.evaluate import evaluate
from facm.evaluation.evaluator import Evaluator, build_evaluator
from facm.evaluation.reference import reference_floor
from facm.evaluation.row import Row, append_row
from facm.evaluation.samples import Sampling
from facm.pretrained.trained import Trained, load_trained
from facm.recipes.digits import digits_student, digits_teacher
from facm.runs import log as logs
from facm.runs.checkpointer import reached
from facm.runs.config import Run
from facm.runs.folder import LockedError, RunFolder, RunFolderError, UntrustedRecipeError, create_or_continue
from facm.sampling.methods import Consistency, Euler, Method
from facm.studies.demo_report import contact_sheet, write_report
from facm.studies.html import Panel, steps
from facm.studies.panels import SHOWN, panel_of
from facm.studies.train_and_measure import SEED_OF_EVALUATION
from facm.training.loop import train
from facm.training.progress import progress

TEACHER_NFE = (1, 2, 4, 8, 32)
STUDENT_NFE = (1, 2, 4)
SAMPLES = 2_000


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


def run_demo(out: Path, seed: int, quiet: bool) -> None:
    """Train, distil, sample, evaluate and report in ``out``; parts that are finished are not done again."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out = {out} is not a folder")
    summary_file, report_file = out / "summary.json", out / "report.html"
    if summary_file.exists():
        _begin(out, seed)
        say(f"{out} holds a finished demo; for a new one choose another folder or delete it")
        try:
            _print_table(read_json(summary_file, links=False), report_file)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{summary_file} is not a demo's ({type(error).__name__}: {error})") from error
        return
    clock = Clock(out / "seconds.json")
    teacher_path, student_path = out / "teacher", out / "student"
    teacher_run, student_run = digits_teacher(seed=seed), digits_student(str(teacher_path), seed=seed)
    _check_mine(out, seed)  # no lock is left in somebody else's folder
    with held(out, make=True):
        _begin(out, seed)
        if not _train_part(teacher_run, teacher_path, "teacher", clock, quiet):
            return
        if not _train_part(student_run, student_path, "distill", clock, quiet):
            return

        summary = _evaluate_and_report(out, seed, clock, quiet)
        write_text(summary_file, json.dumps(summary, indent=2))  # last: its presence says that the demo is complete
        _print_table(summary, report_file)


def _evaluate_and_report(out: Path, seed: int, clock: Clock, quiet: bool) -> dict[str, Any]:
    """Measure both networks and write the report and the contact sheet; the summary."""
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folders = {who: RunFolder(out / who) for who in ("teacher", "student")}
    teacher, student = load_trained(folders["teacher"].path), load_trained(folders["student"].path)
    evaluator = build_evaluator(teacher.dataset, device)
    rows = {
        "teacher": {str(k): _measure(teacher, Euler(k), evaluator, quiet) for k in TEACHER_NFE},
        "student": {str(k): _measure(student, Consistency(k), evaluator, quiet) for k in STUDENT_NFE},
    }
    floor = reference_floor(evaluator.dataset, evaluator.extractor)
    panels = _panels(teacher, student, evaluator)
    clock.add("evaluate", time.monotonic() - began)
    summary = _summary(rows, floor, clock.read(), seed)
    write_report(
        out / "report.html",
        summary,
        {who: logs.read(folder.log) for who, folder in folders.items()},
        panels,
        {who: read_text(folder.run_json) for who, folder in folders.items()},
        read_text(folders["student"].environment_json),
    )
    with atomically(out / "samples.png") as partial:
        partial.write_bytes(contact_sheet(panels))
    return summary


def _begin(out: Path, seed: int) -> None:
    """Mark the folder as this demo's, unless it is already."""
    if not _check_mine(out, seed):
        write_text(out / "demo.json", json.dumps({"seed": seed}))


def _check_mine(out: Path, seed: int) -> bool:
    """Whether the folder is this demo's, begun earlier with the same seed. Raises RunFolderError if it is another's."""
    mark = out / "demo.json"
    if not (out.exists() and contents(out)):
        return False
    if not mark.exists():
        raise RunFolderError(f"out = {out} is in use by something else and is never overwritten: choose another folder")
    begun = read_json(mark, links=False)
    if begun != {"seed": seed}:
        raise RunFolderError(f"out = {out} holds a demo begun with {begun}, not seed {seed}: choose another folder")
    return True


def _train_part(run: Run, path: Path, part: str, clock: Clock, quiet: bool) -> bool:
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
    with progress(run, part, quiet) as report:
        outcome = train(run, folder, report=report)
    clock.add(part, time.monotonic() - began)
    if not outcome.finished:
        say(f"{outcome.signal}: saved at {outcome.images} of {run.images} images; the same command goes on from there")
    return outcome.finished


def _measure(trained: Trained, method: Method, evaluator: Evaluator, quiet: bool) -> Row:
    row = evaluate(trained, Sampling(method, SAMPLES, SEED_OF_EVALUATION), evaluator)
    append_row(trained, row)
    if not quiet:
        who = "student" if isinstance(method, Consistency) else "teacher"
        say(f"{who}, {steps(method.nfe)}: Frechet distance {row.measurement.frechet_distance:.3f}")
    return row


def _panels(teacher: Trained, student: Trained, evaluator: Evaluator) -> list[Panel]:
    """Real digits, and samples of both networks from the same noise."""
    import numpy as np

    real = evaluator.dataset.read(np.arange(10 * SHOWN))
    assert real.cond is not None
    by_class = [real.x_1[real.cond == label][: SHOWN // 10] for label in range(10)]
    panels = [Panel("real digits", torch.stack(by_class, dim=1).flatten(0, 1))]
    panels += [panel_of("teacher", teacher, Euler(k), evaluator.device) for k in (1, 4, 32)]
    return panels + [panel_of("student", student, Consistency(k), evaluator.device) for k in STUDENT_NFE]


def _summary(rows: dict[str, dict[str, Row]], floor: float, seconds: dict[str, float], seed: int) -> dict[str, Any]:
    def column(who: str, what: str) -> dict[str, float]:
        return {k: row.to_json()[what] for k, row in rows[who].items()}

    parts = {name: round(seconds.get(name, 0.0), 1) for name in ("teacher", "distill", "evaluate")}
    return {
        "teacher": column("teacher", "frechet_distance"),
        "student": column("student", "frechet_distance"),
        "accuracy": {who: column(who, "accuracy") for who in rows},
        "precision": {who: column(who, "precision") for who in rows},
        "recall": {who: column(who, "recall") for who in rows},
        "reference_floor": floor,
        "seconds": {**parts, "total": round(sum(parts.values()), 1)},
        "n": SAMPLES,
        "features": rows["student"]["1"].measurement.features,
        "guidance_scale": 1.0,
        "seed": seed,
        "cores": os.cpu_count(),
    }


def _print_table(summary: dict[str, Any], report: Path) -> None:
    from rich.table import Table

    table = Table("", "steps", "Frechet distance", "class accuracy", "precision", "recall", title="digits, 8 x 8")
    for who in ("teacher", "student"):
        for nfe, distance in summary[who].items():
            others = [summary[what][who][nfe] for what in ("accuracy", "precision", "recall")]
            table.add_row(who, nfe, f"{distance:.3f}", *(f"{value:.3f}" for value in others))
    console().print(table)
    say(f"one half of the real digits against the other: {summary['reference_floor']:.3f}")
    seconds = summary["seconds"]
    say(
        f"seconds: teacher {seconds['teacher']:.0f}, distillation {seconds['distill']:.0f}, "
        f"evaluation {seconds['evaluate']:.0f}, total {seconds['total']:.0f}"
    )
    say(f"report: {report}")
