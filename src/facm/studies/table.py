"""A summary as a table, in Markdown and on the terminal, and as rows of JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from facm.core.terminal import console, plain
from facm.runs.environment import environment
from facm.studies.html import steps
from facm.studies.summary import Cell, Line, Summary
from facm.studies.train_and_measure import SEED_OF_EVALUATION

Row = tuple[str, ...]

GRADIENT, IMAGES, PUBLISHED = "largest gradient norm", "images", "published FID"
ON_PAGE_ONLY = (GRADIENT, IMAGES, PUBLISHED)


def rows(summary: Summary) -> tuple[Row, list[Row]]:
    """The header and the lines, as text."""
    nfes = sorted({nfe for line in summary.lines for nfe, _ in line.cells})
    published = any(line.entry.published for line in summary.lines)
    header = (
        "",
        *map(steps, nfes),
        f"{steps(nfes[0])}, minus {_baselines(summary)}",
        "stable",
        GRADIENT,
        IMAGES,
        "forward passes / 1000",
        *((PUBLISHED,) if published else ()),
    )
    found = []
    for line in (*summary.teachers, *summary.lines):
        found.append(
            (
                _label(line, nfes),
                *(_text(line, line.cells.get((nfe, None))) for nfe in nfes),
                "" if line.teaches else difference(line, summary.baseline(line), nfes[0]),
                "" if line.teaches else f"{line.stable}/{len(summary.seeds)}",
                spread(line.grad_norm, "{:.2g}"),
                f"{line.entry.run.images:,}",
                f"{line.total_cost / 1000:,.0f}",
                *((_published(line),) if published else ()),
            )
        )
    return header, found


def _label(line: Line, nfes: list[int]) -> str:
    """A teacher's most steps have no column of their own."""
    ends = [(nfe, cell) for (nfe, images), cell in line.cells.items() if images is None and nfe not in nfes]
    return line.entry.label + "".join(f" ({steps(nfe)}: {spread(cell, '{:.3f}')})" for nfe, cell in ends)


def _text(line: Line, cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.mean is None:
        return f"collapsed ({cell.values.count(None)} of {len(cell.values)})"
    return spread(cell, "{:.3f}")


def spread(cell: Cell, form: str) -> str:
    """Mean and standard deviation, each written as ``form``; "-" without a mean."""
    if cell.mean is None:
        return "-"
    return form.format(cell.mean) + ("" if cell.sd is None else " ± " + form.format(cell.sd))


def _baselines(summary: Summary) -> str:
    """What the lines are compared with, in words."""
    several = any(line.entry.against for line in summary.lines)
    return "the row that it is compared with" if several else summary.lines[0].entry.label


def difference(line: Line, first: Line, nfe: int) -> str:
    """Paired by seed, and in how many seeds the row is worse; empty for the row that others are compared with."""
    own, theirs = line.cells.get((nfe, None)), first.cells.get((nfe, None))
    if line is first or own is None or theirs is None:
        return ""
    apart = own.minus(theirs)
    if apart.mean is None:
        return "-"
    worse = sum(value > 0 for value in apart.known)
    return f"{spread(apart, '{:+.3f}').replace('± +', '± ')} (worse in {worse}/{len(apart.values)})"


def _published(line: Line) -> str:
    return ", ".join(f"{fid:.2f} ({steps(nfe)})" for nfe, fid in line.entry.published.items())


def titled(summary: Summary) -> str:
    source = summary.study.source
    return summary.study.title + (f" ({source})" if source else "")


def markdown(summary: Summary) -> str:
    """The table with what it says and what it was measured with."""
    return f"# {plain(titled(summary))}\n\n{plain(said(summary))}\n\n{table(*rows(summary))}"


def table(header: Row, body: list[Row]) -> str:
    """A header and lines in Markdown."""
    return "\n".join([_line(header), "|" + "---|" * len(header), *map(_line, body)]) + "\n"


def _line(cells: Row) -> str:
    """A line of the table; a label may have any characters."""
    return "| " + " | ".join(plain(cell).replace("|", r"\|").replace("<", "&lt;") for cell in cells) + " |"


def said(summary: Summary) -> str:
    """One paragraph: the question, the seeds, the measure and what it is relative to."""
    seeds = ", ".join(map(str, summary.seeds))
    fewest = steps(min(nfe for line in summary.lines for nfe, _ in line.cells))
    return (
        f"{summary.study.question} Mean ± standard deviation over the seeds {seeds}, Fréchet distance of "
        f"{summary.n:,} samples in the features {summary.features}: no FID, and to be compared within this table only; "
        f"one half of the real data against the other: {summary.floor:.3f}. Differences are paired by seed. Stable: "
        f"ended without a skipped step and, where it started from a network, better with {fewest} than that one. "
        "Forward passes are counted, of the whole run."
    )


def records(summary: Summary, command: str) -> Iterator[dict[str, Any]]:
    """One row of JSON for each number."""
    where = environment()
    for line in (*summary.teachers, *summary.lines):
        for (nfe, images), cell in line.cells.items():
            yield {
                "study": summary.study.title,
                "source": summary.study.source,
                "entry": line.entry.name,
                "label": line.entry.label,
                "nfe": nfe,
                "at_images": images,
                "frechet_distance": list(cell.values),
                "mean": cell.mean,
                "sd": cell.sd,
                "accuracy": list(line.accuracy[nfe].values) if images is None else None,
                "precision": list(line.precision[nfe].values) if images is None else None,
                "recall": list(line.recall[nfe].values) if images is None else None,
                "seeds": list(summary.seeds),
                "evaluation_seed": SEED_OF_EVALUATION,
                "n": summary.n,
                "features": summary.features,
                "floor": summary.floor,
                "images": line.entry.run.images,
                "forward_passes_per_image": line.cost,
                "stable": None if line.teaches else line.stable,
                "collapsed_at": list(line.collapsed_at),
                "largest_grad_norm": list(line.grad_norm.values),
                "last_tangent_rms": list(line.tangent_rms.values),
                "published": line.entry.published.get(nfe),
                "command": command,
                "date": time.strftime("%Y-%m-%d"),
                "device": where["device"],
                "cores": where["cores"],
                "versions": where["versions"],
                "commit": (where["git"] or {}).get("commit"),
            }


def jsonl(summary: Summary, command: str) -> str:
    return "".join(json.dumps(record) + "\n" for record in records(summary, command))


def print_table(summary: Summary) -> None:
    from rich import box
    from rich.table import Table

    header, body = rows(summary)
    shown = [k for k, name in enumerate(header) if name not in ON_PAGE_ONLY]  # the others do not fit into 80 characters
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), title=plain(titled(summary)))
    for k in shown:
        number = header[k].endswith(("step", "steps"))
        table.add_column(plain(header[k]), justify="right" if k else "left", no_wrap=number)
    for row in body:
        table.add_row(*(plain(row[k]) for k in shown))
    terminal = console()
    terminal.print(table)
    terminal.print(said(summary), style="dim")
