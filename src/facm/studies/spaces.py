"""Tables of a study that is measured in two spaces: whether they agree on an order, and when the order settles."""

from __future__ import annotations

from itertools import combinations

from facm.studies.html import steps
from facm.studies.summary import Cell, Line, Summary
from facm.studies.table import Row, spread

Further = tuple[str, str, tuple[Row, list[Row]]]
"""A title, a paragraph, and a table."""


def further_tables(summary: Summary, pixels: Summary) -> list[Further]:
    """The end of every run in both spaces with precision, recall and accuracy, and the way to it."""
    nfe = min(nfe for line in summary.lines for nfe, _ in line.cells)
    return [
        (
            "Two feature spaces",
            f"The same samples in the features {summary.features} and in pixels. {agreement(summary, pixels, nfe)}",
            _ends(summary, pixels),
        ),
        (
            "Over the run",
            f"Fréchet distance with {steps(nfe)} in the features {summary.features}, and the rank among the rows that "
            "are compared with one row, at equal shares of each run; all but the last are in the middle of a learning "
            "rate's decay.",
            _course(summary, nfe),
        ),
    ]


def groups(summary: Summary) -> list[list[Line]]:
    """Lines that are compared with the same one."""
    found: dict[str, list[Line]] = {}
    for line in summary.lines:
        found.setdefault(summary.baseline(line).entry.name, []).append(line)
    return list(found.values())


def agreement(summary: Summary, pixels: Summary, nfe: int) -> str:
    """How many pairs of compared rows are in the same order in both spaces, by their means over the seeds."""
    there = {line.entry.name: line.cells[nfe, None].mean for line in pixels.lines}
    same = pairs = 0
    for lines in groups(summary):
        here = {line.entry.name: line.cells[nfe, None].mean for line in lines}
        for a, b in combinations(here, 2):
            values = here[a], here[b], there[a], there[b]
            if None not in values:
                pairs += 1
                same += (here[a] < here[b]) == (there[a] < there[b])  # type: ignore[operator]
    return f"With {steps(nfe)} the two agree on the order of {same} of {pairs} pairs of rows that are compared."


def _ends(summary: Summary, pixels: Summary) -> tuple[Row, list[Row]]:
    nfes = sorted({nfe for line in (*summary.teachers, *summary.lines) for nfe, _ in line.cells})
    header = ["", *(f"{steps(nfe)}, {space}" for space in ("features", "pixels") for nfe in nfes)]
    header += [f"{steps(nfe)}, {name}" for nfe in nfes for name in ("precision", "recall", "accuracy")]
    found: list[Row] = []
    for line, other in zip((*summary.teachers, *summary.lines), (*pixels.teachers, *pixels.lines), strict=True):
        cells = [of.cells.get((nfe, None)) for of in (line, other) for nfe in nfes]
        shares = [of.get(nfe) for nfe in nfes for of in (line.precision, line.recall, line.accuracy)]
        found.append((line.entry.label, *(_shown(cell, "{:.3f}") for cell in (*cells, *shares))))
    return tuple(header), found


def _course(summary: Summary, nfe: int) -> tuple[Row, list[Row]]:
    longest = max(len(line.course) for line in summary.lines)
    header = ("", *(f"{k}/{longest} of the run" for k in range(1, longest)), "end")
    found: list[Row] = []
    for lines in groups(summary):
        ranks = [_ranks([line.cells[nfe, line.course[k][1]] for line in lines]) for k in range(longest)]
        for place, line in enumerate(lines):
            at = [line.cells[nfe, key] for _, key in line.course]
            found.append(
                (
                    line.entry.label,
                    *(f"{_shown(cell, '{:.3f}')} ({ranks[k][place]})" for k, cell in enumerate(at)),
                )
            )
    return header, found


def _ranks(cells: list[Cell]) -> list[str]:
    """1 for the lowest mean; "-" without a mean."""
    known = sorted(cell.mean for cell in cells if cell.mean is not None)
    return ["-" if cell.mean is None else str(known.index(cell.mean) + 1) for cell in cells]


def _shown(cell: Cell | None, form: str) -> str:
    """Empty where nothing was measured."""
    return "" if cell is None else spread(cell, form)
