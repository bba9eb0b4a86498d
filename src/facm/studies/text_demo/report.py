"""The text demo's page: table, pictures with their prompts, curves, configurations, environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from facm.core.files import write_text
from facm.sampling.captioned import captioned_png
from facm.studies.demo_report import curves
from facm.studies.html import escaped, folded_json, image, page

COLUMNS = {
    "frechet_distance": "Fréchet distance",
    "accuracy": "class accuracy",
    "precision": "precision",
    "recall": "recall",
}


@dataclass(frozen=True, eq=False)
class Strip:
    """One row of pictures.

    title: above it.
    pictures: (n, 1, H, W) in [-1, 1].
    run: the folder of the run that made it, and steps: in so many steps; empty and 0 for a teacher's.
    stock: whether diffusers' pipeline drew it.
    """

    title: str
    pictures: Tensor
    run: str = ""
    steps: int = 0
    stock: bool = False


def write_report(
    path: Path,
    summary: dict[str, Any],
    strips: list[Strip],
    prompts: list[str],
    histories: dict[str, list[dict[str, Any]]],
    configurations: dict[str, str],
    environment: str,
) -> None:
    """Write the page. histories: log records by run; configurations: run.json texts by run."""
    parts = [
        "<h1>FACM text demo: few-step text-to-image students of handwritten digits</h1>",
        _table(summary),
        f"<p class=note>Fréchet distance in the features {escaped(summary['features'])} on {summary['n']} samples "
        "a row; it is not an FID and compares only with itself. One half of the real digits against the other: "
        f"{summary['reference_floor']:.3f}. Class accuracy: how often the same classifier sees the prompt's digit. "
        f"The teacher is guided with w = {summary['guidance_scale']:g}, its students need no guidance. "
        f"Seed {summary['seed']}.</p>",
        "<h2>The same noise, the same prompts</h2>",
        image(contact_sheet(strips, prompts), "pictures with their prompts"),
        "<p class=note>The rows by diffusers come from its own pipeline, opened with "
        "<code>DiffusionPipeline.from_pretrained</code> on the exported folder. With one step its pictures and facm's "
        f"differ by {summary['stock_difference']:.1e} at most; with more, the noise between the steps is "
        "another.</p>",
        "<h2>Training</h2>",
        image(curves(histories), "curves"),
        "<h2>Seconds</h2>",
        "<p>" + ", ".join(f"{escaped(name)} {value:.0f}" for name, value in summary["seconds"].items()) + "</p>",
        *(f"<h2>Configuration: {escaped(name)}</h2>{folded_json(text)}" for name, text in configurations.items()),
        f"<h2>Environment</h2>{folded_json(environment)}",
    ]
    write_text(path, page("FACM text demo", parts))


def contact_sheet(strips: list[Strip], prompts: list[str]) -> bytes:
    """A PNG with all pictures, their prompts below them."""
    rows = [strip.pictures.cpu().clamp(-1, 1) for strip in strips]
    return captioned_png(rows, prompts, [strip.title for strip in strips], columns=len(prompts))


def _table(summary: dict[str, Any]) -> str:
    head = "".join(f"<th>{title}</th>" for title in ("", "steps", *COLUMNS.values()))
    lines = [f"<tr>{head}</tr>"]
    for row in summary["rows"]:
        kind = "teacher" if row["who"] == "teacher" else "student"
        numbers = "".join(f"<td>{row[name]:.3f}</td>" for name in COLUMNS)
        lines.append(f"<tr class={kind}><td>{escaped(row['who'])}</td><td>{row['steps']}</td>{numbers}</tr>")
    return f"<table>{''.join(lines)}</table>"
