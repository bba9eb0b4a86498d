"""A study's numbers over its seeds: means with their spread, paired differences, what collapsed, what it cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facm.core.objective import as_objective
from facm.pretrained.trained import FromRun
from facm.runs import log as logs
from facm.runs.folder import RunFolder, open_run
from facm.sampling.methods import default_method
from facm.studies.cost import forward_passes
from facm.studies.study import Entry, Study
from facm.studies.train_and_measure import Wanted, measured, stopped, wanted

STEADY = 0.1
"""Gradient norms before this fraction of a run are warm-up."""


@dataclass(frozen=True)
class Cell:
    """One number of the table over the seeds.

    values: in the order of the seeds, None where a run has collapsed.
    """

    values: tuple[float | None, ...]

    @property
    def known(self) -> list[float]:
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        """None unless every seed has a value: a mean over the survivors would flatter."""
        return statistics.fmean(self.known) if self.known and len(self.known) == len(self.values) else None

    @property
    def sd(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None below two of them."""
        return statistics.stdev(self.known) if self.mean is not None and len(self.known) > 1 else None

    def minus(self, other: Cell) -> Cell:
        """Differences seed by seed: what the seeds share, teacher and noise, cancels."""
        pairs = zip(self.values, other.values, strict=True)
        return Cell(tuple(None if a is None or b is None else a - b for a, b in pairs))


@dataclass(frozen=True)
class Line:
    """One entry over the seeds.

    entry: of the first seed.
    teaches: whether it is a teacher.
    cells: (steps, clock) -> distances; a clock of None is the end.
    accuracy, precision, recall: steps -> these at the end, of the classes and of the nearest neighbours.
    cost: forward passes an image.
    stable: number of seeds that ended, without a skipped step, better with the fewest steps than the network that they
        started from.
    collapsed_at: clock of each seed's collapse, or None.
    grad_norm: the largest of the logged means after warm-up; None where it is not finite.
    tangent_rms: at the end; None where it is not finite.
    """

    entry: Entry
    teaches: bool
    cells: Mapping[tuple[int, int | None], Cell]
    accuracy: Mapping[int, Cell]
    precision: Mapping[int, Cell]
    recall: Mapping[int, Cell]
    cost: float
    stable: int
    collapsed_at: tuple[int | None, ...]
    grad_norm: Cell
    tangent_rms: Cell

    @property
    def course(self) -> list[tuple[int, int | None]]:
        """The clocks that the run is measured at, in order, each with its key in ``cells``: None for the end."""
        return [*((clock, clock) for clock in sorted(self.entry.at)), (self.entry.run.images, None)]

    @property
    def total_cost(self) -> float:
        """Forward passes of the whole run."""
        return self.cost * self.entry.run.images


@dataclass(frozen=True)
class Summary:
    """A study with its numbers.

    study: of the first seed.
    seeds: in the order of all values.
    n: samples behind each number.
    features: identity of the feature network.
    floor: the distance of one half of the real data from the other.
    teachers: one line each.
    lines: one for each entry.
    """

    study: Study
    seeds: tuple[int, ...]
    n: int
    features: str
    floor: float
    teachers: tuple[Line, ...]
    lines: tuple[Line, ...]

    def baseline(self, line: Line) -> Line:
        """The line that ``line`` is compared with."""
        return next((other for other in self.lines if other.entry.name == line.entry.against), self.lines[0])


def summarise(studies: Mapping[int, Study], home: Path, n: int, features: str, floor: float) -> Summary:
    """All numbers of finished runs. Raises ValueError where one is missing."""
    seeds = tuple(studies)
    first = studies[seeds[0]]

    def line(index: int, kind: str) -> Line:
        entries = {seed: getattr(studies[seed], kind)[index] for seed in seeds}
        cost = forward_passes(entries[seeds[0]].run)
        return _line(entries, kind == "teachers", home, n, features, cost)

    return Summary(
        first,
        seeds,
        n,
        features,
        floor,
        tuple(line(i, "teachers") for i in range(len(first.teachers))),
        tuple(line(i, "entries") for i in range(len(first.entries))),
    )


def _line(entries: Mapping[int, Entry], teaches: bool, home: Path, n: int, features: str, cost: float) -> Line:
    entry = next(iter(entries.values()))
    paths = {seed: home / f"seed-{seed}" / e.name for seed, e in entries.items()}
    cells: dict[tuple[int, int | None], Cell] = {}
    others: dict[str, dict[int, Cell]] = {"accuracy": {}, "precision": {}, "recall": {}}
    for want in wanted(entry):
        rows = [_row(paths[seed], e, want, n, features) for seed, e in entries.items()]
        cells[want.nfe, want.images] = Cell(tuple(None if row is None else row["frechet_distance"] for row in rows))
        if want.images is None:
            for name, of_steps in others.items():
                of_steps[want.nfe] = Cell(tuple(None if row is None else row.get(name) for row in rows))
    histories = [logs.read(RunFolder(path).log) for path in paths.values()]
    fewest = min(entry.nfe)
    starts = [_start(e, fewest, n, features) for e in entries.values()]
    return Line(
        entry,
        teaches,
        cells,
        others["accuracy"],
        others["precision"],
        others["recall"],
        cost,
        sum(_stable(*state) for state in zip(cells[fewest, None].values, starts, histories, strict=True)),
        tuple((stopped(path) or {}).get("images") for path in paths.values()),
        Cell(tuple(_largest(history, e.run.images) for history, e in zip(histories, entries.values(), strict=True))),
        Cell(tuple(_finite(history[-1].get("tangent_rms")) if history else None for history in histories)),
    )


def _row(path: Path, entry: Entry, want: Any, n: int, features: str) -> dict[str, Any] | None:
    if stopped(path):
        return None
    row = measured(path, want, entry.run, n, features)
    if row is None:
        raise ValueError(f"{path} has no row with {want.nfe} steps, n = {n} and {features}: train and measure it first")
    return row


def _start(entry: Entry, nfe: int, n: int, features: str) -> float | None:
    """The distance with ``nfe`` steps of the network that a student started from, where it was measured."""
    if not isinstance(entry.run.initial, FromRun):
        return None
    path = Path(entry.run.initial.path)
    run = open_run(path)[1]
    method = default_method(as_objective(run.objective).interface, nfe)
    row = measured(path, Wanted(method, nfe, None), run, n, features)
    return None if row is None else row["frechet_distance"]


def _stable(end: float | None, start: float | None, history: list[dict[str, Any]]) -> bool:
    skipped = bool(history) and history[-1]["skipped"] > 0
    return end is not None and not skipped and (start is None or end < start)


def _largest(history: list[dict[str, Any]], images: int) -> float | None:
    norms = [record["grad_norm"] for record in history if record["images"] > STEADY * images]
    return max(norms) if norms and all(map(math.isfinite, norms)) else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
