"""What a finished study leaves in its folder: table.md, results.jsonl, the figures, and one page with all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from facm.core.files import atomically, write_text
from facm.core.terminal import plain
from facm.core.untrusted.door import read_text
from facm.evaluation.evaluator import Evaluator
from facm.pretrained.trained import load_trained
from facm.runs.folder import RunFolder
from facm.sampling.images import is_image
from facm.studies.figures import numbers, over_training
from facm.studies.html import Panel, escaped, folded_json, grid, image, page
from facm.studies.panels import panel_of
from facm.studies.spaces import further_tables
from facm.studies.summary import Summary
from facm.studies.table import Row, jsonl, markdown, rows, said, table
from facm.studies.train_and_measure import stopped, wanted


def write(
    summary: Summary,
    evaluator: Evaluator,
    home: Path,
    folder: Path,
    command: str,
    device: torch.device,
    pixels: Summary | None = None,
) -> Path:
    """Write everything below ``folder``; the page's path. pixels: the same networks measured in pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    further = [] if pixels is None else further_tables(summary, pixels)
    more = "".join(f"\n## {plain(title)}\n\n{plain(text)}\n\n{table(*cells)}" for title, text, cells in further)
    write_text(folder / "table.md", markdown(summary) + more)
    write_text(folder / "results.jsonl", jsonl(summary, command) + ("" if pixels is None else jsonl(pixels, command)))
    found = {"numbers.png": numbers(summary), "training.png": over_training(summary, home)}
    for name, png in found.items():
        with atomically(folder / name) as partial:
            partial.write_bytes(png)
    first = home / f"seed-{summary.seeds[0]}"
    environment = read_text(RunFolder(first / summary.lines[0].entry.name).environment_json)
    parts = [
        f"<h1>{escaped(summary.study.title)}</h1>",
        f"<p>{escaped(said(summary))}</p>",
        _table(*rows(summary)),
        image(found["numbers.png"], "distances"),
        *(f"<h2>{escaped(title)}</h2><p>{escaped(text)}</p>{_table(*cells)}" for title, text, cells in further),
        f"<h2>Training</h2>{image(found['training.png'], 'gradient norm and tangent over training')}",
        f"<h2>The same noise, the same labels: seed {summary.seeds[0]}</h2><div class=grids>",
        *(grid(panel) for panel in panels(summary, evaluator, first, device)),
        "</div><h2>Configurations</h2>",
        *(
            f"<h3>{escaped(line.entry.label)}</h3>{folded_json(read_text(RunFolder(first / line.entry.name).run_json))}"
            for line in (*summary.teachers, *summary.lines)
        ),
        f"<h2>Environment</h2>{folded_json(environment)}",
    ]
    write_text(folder / "report.html", page(f"facm study: {summary.study.title}", parts))
    return folder / "report.html"


def panels(summary: Summary, evaluator: Evaluator, folder: Path, device: torch.device) -> Iterator[Panel]:
    """Samples of every entry, teachers at their most steps, the others at one; nothing for data that are no images."""
    if not is_image(evaluator.dataset.shape):
        return
    for line in (*summary.teachers, *summary.lines):
        path = RunFolder(folder / line.entry.name).path
        if stopped(path):
            continue
        ends = [want for want in wanted(line.entry) if want.images is None]
        want = max(ends, key=lambda w: w.nfe) if line.teaches else min(ends, key=lambda w: w.nfe)
        yield panel_of(line.entry.label, load_trained(path), want.method, device)


def _table(header: Row, body: list[Row]) -> str:
    head = "".join(f"<th>{escaped(cell)}</th>" for cell in header)
    lines = ["".join(f"<td>{escaped(cell)}</td>" for cell in row) for row in body]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
