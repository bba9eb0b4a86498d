"""A study's pictures: its numbers over what was varied, and gradient and tangent over training."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from facm.runs import log as logs
from facm.runs.folder import RunFolder
from facm.studies.html import png_of, steps, unparsed
from facm.studies.study import COMPUTE, Entry
from facm.studies.summary import STEADY, Cell, Line, Summary

LIGHT = 0.15


def numbers(summary: Summary) -> bytes:
    """Distances over x where the study has one, else a dot for each seed, entry and number of steps."""
    from matplotlib.figure import Figure

    if summary.study.x_label:
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        axis = figure.subplots()
        for name, points in _series(summary).items():
            known = sorted(((x, cell) for x, cell in points if cell.mean is not None), key=lambda point: point[0])
            means, spreads = [cell.mean or 0.0 for _, cell in known], [cell.sd or 0.0 for _, cell in known]
            axis.errorbar([x for x, _ in known], means, spreads, marker="o", capsize=3, label=unparsed(name))
        axis.set_xlabel(unparsed(summary.study.x_label))
        axis.set_ylabel("Fréchet distance")
        if summary.study.x_label.startswith("weight") or _spans(summary) > 8:
            axis.set_xscale("log")
        axis.set_yscale("log")
        axis.grid(alpha=0.3, which="both")
        axis.legend()
        return png_of(figure)
    lines = [*summary.teachers, *summary.lines]
    figure = Figure(figsize=(9, 1.2 + 0.36 * len(lines)), layout="constrained")
    axis = figure.subplots()
    nfes = sorted({nfe for line in lines for nfe, _ in line.cells})
    for k, nfe in enumerate(nfes):
        xs, ys = [], []
        for place, line in enumerate(lines):
            cell = line.cells.get((nfe, None))
            xs += cell.known if cell else []
            ys += [-place + 0.15 * (k - (len(nfes) - 1) / 2)] * (len(cell.known) if cell else 0)
        axis.plot(xs, ys, "o", alpha=0.7, label=steps(nfe))
    axis.axvline(summary.floor, color="gray", linestyle=":", label="real halves")
    axis.set_yticks([-place for place in range(len(lines))], [unparsed(line.entry.label) for line in lines])
    axis.set_xscale("log")
    axis.set_xlabel("Fréchet distance, a dot for each seed")
    axis.grid(alpha=0.3, which="both", axis="x")
    axis.legend()
    return png_of(figure)


def _series(summary: Summary) -> dict[str, list[tuple[float, Cell]]]:
    """(series, number of steps) -> points; entries measured over time have their clocks for x."""
    points: dict[str, list[tuple[float, Cell]]] = defaultdict(list)
    compute = summary.study.x_label == COMPUTE
    for line in summary.lines:
        fewest = min(nfe for nfe, _ in line.cells)
        for (nfe, images), cell in line.cells.items():
            over_time = bool(line.entry.at)
            x = (images or line.entry.run.images) * (line.cost if compute else 1) if over_time else line.entry.x
            if x is not None and (nfe == fewest or not compute):  # so many rows that one number of steps fills it
                points[f"{line.entry.series}, {steps(nfe)}"].append((x, cell))
    return points


def _spans(summary: Summary) -> float:
    xs = [x for points in _series(summary).values() for x, _ in points if x > 0]
    return max(xs) / min(xs) if xs else 1.0


def over_training(summary: Summary, home: Path) -> bytes:
    """Gradient norm and size of the tangent: the median over the seeds, and their range."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axes = figure.subplots(2, 1)
    shown = (("grad_norm", "gradient norm"), ("tangent_rms", "tangent dF/dt, rms"))
    for axis, (key, title) in zip(axes, shown, strict=True):
        highest = 0.0
        axis.set_prop_cycle(color=[colormaps["tab20"](k) for k in range(20)])  # more rows than the usual ten colours
        for line in summary.lines:
            highest = max(highest, _band(axis, line, home, summary.seeds, key))
        axis.set_yscale("log")
        if highest:
            axis.set_ylim(top=3 * highest)  # a zero prediction's cosine has a first gradient of 1e8
        axis.set_ylabel(title)
        axis.grid(alpha=0.3, which="both")
    axes[1].set_xlabel("images seen (thousands)")
    axes[0].legend(fontsize=8, ncols=2)
    return png_of(figure)


def _band(axis: Any, line: Line, home: Path, seeds: tuple[int, ...], key: str) -> float:
    """Draw one entry; its largest value after warm-up."""
    values: dict[int, list[float]] = defaultdict(list)
    for seed in seeds:
        for record in logs.read(RunFolder(_folder(line.entry, home, seed)).log):
            if math.isfinite(record.get(key, math.nan)):  # a window with a skipped step has none
                values[record["images"]].append(record[key])
    if not values:
        return 0.0
    clocks = sorted(values)
    thousands = [clock / 1000 for clock in clocks]
    medians = [statistics.median(values[clock]) for clock in clocks]
    drawn = axis.plot(thousands, medians, label=unparsed(line.entry.label), lw=1.2)
    low, high = [min(values[clock]) for clock in clocks], [max(values[clock]) for clock in clocks]
    axis.fill_between(thousands, low, high, alpha=LIGHT, color=drawn[0].get_color(), lw=0)
    return max((top for clock, top in zip(clocks, high, strict=True) if clock > STEADY * clocks[-1]), default=0.0)


def _folder(entry: Entry, home: Path, seed: int) -> Path:
    return home / f"seed-{seed}" / entry.name
