"""A self-contained HTML page: table, pictures, curves, configuration, environment."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from facm.core.files import write_text
from facm.runs import log
from facm.sampling.images import grid_png
from facm.studies.html import Panel, escaped, folded_json, grid, image, page, png_of, unparsed


def write_report(
    path: Path,
    summary: dict[str, Any],
    histories: dict[str, list[dict[str, Any]]],
    panels: list[Panel],
    configurations: dict[str, str],
    environment: str,
) -> None:
    """Write the page. histories: log records by run; configurations: run.json texts by run."""
    parts = [
        "<h1>FACM demo: a one-step generator of handwritten digits</h1>",
        _table(summary),
        f"<p class=note>Fréchet distance in the features {escaped(summary['features'])} on {summary['n']} samples "
        "a row; it is not an FID and compares only with itself. One half of the real digits against the other: "
        f"{summary['reference_floor']:.3f}. Accuracy, precision and recall in the same features.</p>",
        "<h2>The same noise, the same labels</h2><div class=grids>",
        *(grid(panel) for panel in panels),
        "</div><h2>Training</h2>",
        image(curves(histories), "curves"),
        "<h2>Seconds</h2>",
        "<p>" + ", ".join(f"{escaped(name)} {value:.0f}" for name, value in summary["seconds"].items()) + "</p>",
        *(f"<h2>Configuration: {escaped(name)}</h2>{folded_json(text)}" for name, text in configurations.items()),
        f"<h2>Environment</h2>{folded_json(environment)}",
    ]
    write_text(path, page("FACM demo", parts))


def _table(summary: dict[str, Any]) -> str:
    rows = [
        "<tr><th></th><th>steps</th><th>Fréchet distance</th><th>accuracy</th><th>precision</th><th>recall</th></tr>"
    ]
    for who in ("teacher", "student"):
        for steps, distance in summary[who].items():
            cells = [distance, *(summary[what][who][steps] for what in ("accuracy", "precision", "recall"))]
            numbers = "".join(f"<td>{value:.3f}</td>" for value in cells)
            rows.append(f"<tr class={who}><td>{who}</td><td>{escaped(steps)}</td>{numbers}</tr>")
    return f"<table>{''.join(rows)}</table>"


def contact_sheet(panels: list[Panel], columns: int = 10) -> bytes:
    """A PNG with all grids and their captions, for a README or a slide."""
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(12, 3.1), layout="constrained")
    half = (len(panels) + 1) // 2
    for axis, panel in zip(figure.subplots(2, half).flat, panels, strict=False):
        axis.imshow(Image.open(io.BytesIO(grid_png(panel.samples, columns, scale=4))))
        axis.set_title(unparsed(panel.caption), fontsize=10)
    for axis in figure.axes:
        axis.axis("off")
    return png_of(figure, dpi=100)


def curves(histories: dict[str, list[dict[str, Any]]]) -> bytes:
    """Losses and the gradient's norm over images seen, one column a run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots(2, len(histories), squeeze=False, sharex="col")
    hidden = {"images", "lr", "skipped", "grad_norm", "tangent_rms", "clamped", *log.TIMED}
    for column, (name, records) in enumerate(histories.items()):
        thousands = [record["images"] / 1000 for record in records]
        for key in records[0] if records else ():
            if key not in hidden:
                axes[0][column].plot(thousands, [record[key] for record in records], label=unparsed(key))
        for key in ("grad_norm", "tangent_rms"):
            if records and key in records[0]:
                axes[1][column].plot(thousands, [record[key] for record in records], label=key)
        axes[0][column].set_title(unparsed(name))
        axes[1][column].set_yscale("log")
        axes[1][column].set_xlabel("images seen (thousands)")
        for row in axes:
            row[column].legend()
            row[column].grid(alpha=0.3)
    return png_of(figure)
