"""The demo: a teacher on digits, a FACM student distilled from it, both measured, in one folder with a report."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from facm.core.claims import held
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
from facm.runs.folder import RunFolder
from facm.sampling.methods import Euler, FlowThenJump, Method
from facm.studies.demo_folder import Clock, begin, check_mine, train_part
from facm.studies.demo_report import contact_sheet, write_report
from facm.studies.html import Panel, steps
from facm.studies.panels import SHOWN, panel_of
from facm.studies.train_and_measure import SEED_OF_EVALUATION

TEACHER_NFE = (1, 2, 4, 8, 32)
STUDENT_NFE = (1, 2, 4, 8)
"""By the shortcut alone, which is consistency sampling, up to 2; along the anchor's flow first from 3 on."""
SAMPLES = 2_000


def run_demo(out: Path, seed: int, quiet: bool) -> None:
    """Train, distil, sample, evaluate and report in ``out``; parts that are finished are not done again."""
    summary_file, report_file, mark = out / "summary.json", out / "report.html", {"seed": seed}
    if summary_file.exists():
        begin(out, mark)
        say(f"{out} holds a finished demo; for a new one choose another folder or delete it")
        try:
            _print_table(read_json(summary_file, links=False), report_file)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{summary_file} is not a demo's ({type(error).__name__}: {error})") from error
        return
    clock = Clock(out / "seconds.json")
    teacher_path, student_path = out / "teacher", out / "student"
    teacher_run, student_run = digits_teacher(seed=seed), digits_student(str(teacher_path), seed=seed)
    check_mine(out, mark)  # no lock is left in somebody else's folder
    with held(out, make=True):
        begin(out, mark)
        if not train_part(teacher_run, teacher_path, "teacher", clock, quiet):
            return
        if not train_part(student_run, student_path, "distill", clock, quiet):
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
        "student": {str(k): _measure(student, FlowThenJump(k), evaluator, quiet) for k in STUDENT_NFE},
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


def _measure(trained: Trained, method: Method, evaluator: Evaluator, quiet: bool) -> Row:
    row = evaluate(trained, Sampling(method, SAMPLES, SEED_OF_EVALUATION), evaluator)
    append_row(trained, row)
    if not quiet:
        who = "student" if isinstance(method, FlowThenJump) else "teacher"
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
    return panels + [panel_of("student", student, FlowThenJump(k), evaluator.device) for k in STUDENT_NFE]


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
