"""The text demo: from nothing to a tiny text-to-image pipeline and its few-step students, in one folder with a report.

pictures/ and data/ hold the digits with their captions, untrained/ and model/ the pipeline before and after its
training (run: teacher/), lora/ and full/ the runs of the students, lora-student/ and full-student/ their pipelines.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from facm.core.claims import held
from facm.core.files import atomically, write_text
from facm.core.terminal import console, say
from facm.core.untrusted.door import read_json, read_text
from facm.data import Digits
from facm.evaluation.evaluator import build_evaluator
from facm.evaluation.reference import reference_floor
from facm.foundation.export.diffusers_folder import write_folder
from facm.foundation.export.student import student_of
from facm.foundation.prepare.pipeline import Options, prepare
from facm.foundation.prepare.sources import source_at
from facm.pretrained.trained import Trained, load_trained
from facm.runs import log as logs
from facm.runs.folder import RunFolder
from facm.sampling.methods import Consistency, Euler
from facm.studies.beside import cores_for_two, trained_beside
from facm.studies.demo_folder import Clock, begin, check_mine, train_part
from facm.studies.html import steps
from facm.studies.text_demo.measure import Prompts, drawn, measured
from facm.studies.text_demo.model import write_pictures, write_untrained
from facm.studies.text_demo.report import Strip, contact_sheet, write_report
from facm.studies.text_demo.runs import GUIDANCE, text_student, text_teacher
from facm.studies.text_demo.stock import by_diffusers
from facm.studies.train_and_measure import SEED_OF_EVALUATION

TEACHER_NFE = (1, 2, 4, 32)
STUDENT_NFE = (1, 2, 4)
SAMPLES = 1_000
DIGITS: int | None = None
"""Digits that are prepared; None: all."""
STUDENTS = {"lora": "LoRA", "full": "all weights"}
"""Folder of a student's run -> what it is called."""


def run_text_demo(out: Path, seed: int, quiet: bool) -> None:
    """Make, train, distil, export, sample, measure and report in ``out``; what is finished is not done again."""
    summary_file, mark = out / "summary.json", {"seed": seed, "demo": "text"}
    check_mine(out, mark)  # no lock is left in somebody else's folder
    if summary_file.exists():
        say(f"{out} holds a finished demo; for a new one choose another folder or delete it")
        try:
            _print_table(read_json(summary_file, links=False), out / "report.html")
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{summary_file} is not a demo's ({type(error).__name__}: {error})") from error
        return
    clock = Clock(out / "seconds.json")
    with held(out, make=True):
        begin(out, mark)
        if not (_model(out, seed, clock, quiet) and _students(out, seed, clock, quiet)):
            return
        summary = _measure_and_report(out, seed, clock, quiet)
        write_text(summary_file, json.dumps(summary, indent=2))  # last: its presence says that the demo is complete
        _print_table(summary, out / "report.html")


def _model(out: Path, seed: int, clock: Clock, quiet: bool) -> bool:
    """The trained text-to-image pipeline in model/, and the prepared data; False where it was interrupted."""

    def prepared() -> None:
        _unless(out / "pictures", partial(write_pictures, seed=seed, most=DIGITS))
        _unless(out / "untrained", partial(write_untrained, seed=seed))
        if not (out / "data" / "manifest.json").exists():
            prepare(source_at(out / "pictures"), out / "untrained", out / "data", Options(batch_size=100))

    _timed(clock, "prepare", prepared)
    run = text_teacher(out / "untrained", out / "data", seed=seed)
    if not train_part(run, out / "teacher", "teacher", clock, quiet):
        return False
    _unless(out / "model", partial(_export, out / "teacher"))
    return True


def _students(out: Path, seed: int, clock: Clock, quiet: bool) -> bool:
    """The trained and exported students; False where one was interrupted."""
    runs = {name: text_student(out / "model", out / "data", lora=name == "lora", seed=seed) for name in STUDENTS}
    if cores_for_two():
        with trained_beside(out / "lora", runs["lora"]) as lora_is_whole:
            if not quiet:
                say("the students are trained side by side; this is the one of all weights")
            if not train_part(runs["full"], out / "full", "full", clock, quiet):
                return False
            began = time.monotonic()
            if not lora_is_whole():
                return False
            clock.add("lora", time.monotonic() - began)  # what it took longer than the other
    for name, run in runs.items():
        if not train_part(run, out / name, name, clock, quiet):
            return False
        _unless(out / f"{name}-student", partial(_export, out / name))
    return True


def _export(run: Path, path: Path) -> None:
    write_folder(student_of(load_trained(run)), path)


def _unless(path: Path, make: Callable[[Path], None]) -> None:
    """``make`` what is not there; it is whole or not there."""
    if not path.exists():
        make(path)


def _timed(clock: Clock, part: str, work: Callable[[], None]) -> None:
    began = time.monotonic()
    work()
    clock.add(part, time.monotonic() - began)


def _measure_and_report(out: Path, seed: int, clock: Clock, quiet: bool) -> dict[str, Any]:
    """Measure all, and write the report and the contact sheet; the summary."""
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = {name: load_trained(out / name) for name in ("teacher", *STUDENTS)}
    prompts, evaluator = Prompts.of(out / "model", device), build_evaluator(Digits().open(), device)
    rows: list[dict[str, Any]] = []

    def add(who: str, **row: Any) -> None:
        rows.append({"who": who} | row)
        if not quiet:
            said = f"Frechet distance {row['frechet_distance']:.3f}, class accuracy {row['accuracy']:.3f}"
            say(f"{who}, {steps(row['steps'])}: {said}")

    common = (prompts, evaluator, SAMPLES, SEED_OF_EVALUATION)
    for nfe in TEACHER_NFE:
        add("teacher", **measured(trained["teacher"], Euler(nfe), *common, GUIDANCE))
    for name, who in STUDENTS.items():
        for nfe in STUDENT_NFE:
            add(who, **measured(trained[name], Consistency(nfe), *common))
    strips, shown = _strips(out, trained, prompts, device)
    floor = reference_floor(evaluator.dataset, evaluator.extractor)
    clock.add("evaluate", time.monotonic() - began)
    summary = _summary(rows, floor, evaluator.extractor.identity, clock.read(), seed)
    summary["stock_difference"] = _difference(strips)
    write_report(
        out / "report.html",
        summary,
        strips,
        shown,
        {name: logs.read(RunFolder(out / name).log) for name in trained},
        {name: read_text(RunFolder(out / name).run_json) for name in trained},
        read_text(RunFolder(out / "lora").environment_json),
    )
    with atomically(out / "samples.png") as partial:
        partial.write_bytes(contact_sheet(strips, shown))
    return summary


def _strips(
    out: Path, trained: dict[str, Trained], prompts: Prompts, device: torch.device
) -> tuple[list[Strip], list[str]]:
    """Rows of pictures of the same prompts from the same noise, and the prompts: one of each digit."""
    indices, seed = range(10), SEED_OF_EVALUATION
    shown = prompts.text(indices)
    strips = [
        Strip(f"teacher, {steps(nfe)}", drawn(trained["teacher"], Euler(nfe), prompts, indices, device, seed, GUIDANCE))
        for nfe in (32, 1)
    ]
    for name, who in STUDENTS.items():
        for nfe in STUDENT_NFE:
            x = drawn(trained[name], Consistency(nfe), prompts, indices, device, seed)
            strips.append(Strip(f"{who}, {steps(nfe)}", x, name, nfe))
        for nfe in (1, 2):
            x = by_diffusers(out / f"{name}-student", shown, nfe, seed)
            strips.append(Strip(f"{who}, {steps(nfe)}, by diffusers", x, name, nfe, stock=True))
    return strips, shown


def _difference(strips: list[Strip]) -> float:
    """Largest difference of a pixel in [-1, 1] between this package's one step and that of diffusers' pipeline."""
    one = {(strip.run, strip.stock): strip.pictures.cpu() for strip in strips if strip.steps == 1}
    return max(float((one[name, True] - one[name, False].clamp(-1, 1)).abs().max()) for name in STUDENTS)


def _summary(
    rows: list[dict[str, Any]], floor: float, features: str, seconds: dict[str, float], seed: int
) -> dict[str, Any]:
    parts = {name: round(seconds.get(name, 0.0), 1) for name in ("prepare", "teacher", *STUDENTS, "evaluate")}
    return {
        "rows": rows,
        "reference_floor": floor,
        "seconds": {**parts, "total": round(sum(parts.values()), 1)},
        "n": SAMPLES,
        "features": features,
        "guidance_scale": GUIDANCE.scale,
        "seed": seed,
        "cores": os.cpu_count(),
    }


def _print_table(summary: dict[str, Any], report: Path) -> None:
    from rich.table import Table

    names = ("frechet_distance", "accuracy", "precision", "recall")
    titles = ("Frechet distance", "class accuracy", "precision", "recall")
    table = Table("", "steps", *titles, title=f"digits for prompts, guidance {summary['guidance_scale']:g}")
    for row in summary["rows"]:
        table.add_row(row["who"], str(row["steps"]), *(f"{row[name]:.3f}" for name in names))
    console().print(table)
    say(f"one half of the real digits against the other: {summary['reference_floor']:.3f}")
    say(f"diffusers' pipeline and facm's sampler, one step: pixels differ by {summary['stock_difference']:.1e} at most")
    say("seconds: " + ", ".join(f"{part} {value:.0f}" for part, value in summary["seconds"].items()))
    say(f"report: {report}")
