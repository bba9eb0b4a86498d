"""One self-contained page of a run, or of several side by side: curves, samples, evaluations, configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from facm.core.files import atomically
from facm.core.untrusted.door import read_bytes
from facm.reports.chart import chart, span
from facm.reports.history import History, flattened, is_number, read_history
from facm.studies.html import escaped, folded_json, image, page

CHARTS = (
    ("loss", ("loss", "anchor", "shortcut", "flow"), False),
    ("anchor by quarters of time", tuple(f"anchor_t{k}" for k in range(1, 5)), False),
    ("shortcut by quarters of time", tuple(f"shortcut_t{k}" for k in range(1, 5)), False),
    ("flow by quarters of time", tuple(f"flow_t{k}" for k in range(1, 5)), False),
    ("gradient norm and tangent", ("grad_norm", "tangent_rms"), True),
    ("clamped share", ("clamped",), False),
    ("learning rate", ("lr",), False),
    ("images a second", ("images_per_s", "images_per_s_per_rank"), False),
    ("waiting for data, utilisation", ("data_wait", "mfu"), False),
    ("memory, GB", ("memory_gb", "peak_memory_gb"), False),
)
"""Title, numbers of the log, and whether their axis is logarithmic."""
NOT_DRAWN = frozenset({"images", "skipped", "seconds_left"})
MOST_PICTURE = 2**24
MARK = "<!-- facm report -->"
"""By which a page is known that may be written anew."""
STYLE = """<style>
body { max-width: 84rem; background: #fcfcfb } h1 { margin-bottom: .2rem } h2 { border-bottom: 1px solid #ddd }
.runs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1.2rem }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.2rem }
.chart svg { width: 100%; height: auto; background: #fff; border: 1px solid #e4e4e0; border-radius: 4px }
.chart polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round } .chart line { stroke: #ececea }
.chart text { font: 11px system-ui, sans-serif; fill: #666 } .legend { font-size: .82rem; color: #444 }
.legend span { margin-right: .9rem; white-space: nowrap }
.legend i { display: inline-block; width: .7rem; height: .7rem;
margin-right: .3rem; border-radius: 2px } .facts td:first-child { color: #666 } td { overflow-wrap: anywhere }
.facts { display: table; width: 100%; table-layout: fixed; font-size: .9rem }
.facts td { text-align: left; padding: .2rem .4rem }
.facts td:first-child { width: 8.5rem } table.wide td { white-space: nowrap } .sheet { margin-top: .6rem }
.sheets { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); gap: 1rem }
.runs + .runs { margin-top: 1.1rem }
.sheet button { border: 0; padding: 0; background: none; cursor: zoom-in; width: 100% }
.sheet img { width: 100%; image-rendering: pixelated; border-radius: 3px; display: block }
dialog { border: 0; padding: .6rem; max-width: 96vw; max-height: 96vh; overflow: auto; border-radius: 6px }
dialog img { max-width: none; width: max-content; min-width: min(88vw, 60rem) }
dialog img { image-rendering: pixelated; cursor: zoom-out }
dialog::backdrop { background: #000b } .bar { height: .5rem; background: #e6e6e2; border-radius: 3px; overflow: hidden }
.bar div { height: 100%; background: #2f8f4e } details { margin: .5rem 0 }
</style>"""
ZOOM = """<dialog onclick="this.close()"><img alt="enlarged"></dialog><script>
document.addEventListener('click', e => { const b = e.target.closest('.sheet button'); if (!b) return;
const d = document.querySelector('dialog'); d.querySelector('img').src = b.querySelector('img').src; d.showModal() })
</script>"""
LIVE = """<script>setInterval(async () => { if (document.querySelector('dialog').open) return; try {
const t = await (await fetch('/', {cache: 'no-store'})).text();
const open = [...document.querySelectorAll('details')].map(d => d.open);
const m = new DOMParser().parseFromString(t, 'text/html').querySelector('main');
document.querySelector('main').replaceWith(m);
document.querySelectorAll('details').forEach((d, k) => d.open = open[k] || false);
document.title = document.title.replace(' (gone)', '') } catch { if (!document.title.endsWith('(gone)'))
document.title += ' (gone)' } }, SECONDS * 1000)</script>"""


def write_report(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of the runs in ``paths``; its path, by default report.html in the first one's folder.

    A page that was written so before is written anew. Raises ValueError for no run, and where something else is at
    ``out``.
    """
    if not paths:
        raise ValueError("runs is empty, expected the folder of at least one run")
    text = report([read_history(path) for path in paths])
    target = paths[0] / "report.html" if out is None else out
    if target.is_symlink() or (target.exists() and MARK.encode() not in read_bytes(target, 2**30)):
        raise ValueError(f"out = {target} exists and is no report, which is not overwritten; choose another name")
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with atomically(target) as partial:
        partial.write_text(text, encoding="utf-8")
    return target


def report(histories: Sequence[History], live: float | None = None) -> str:
    """The page. live: it is loaded again every so many seconds."""
    names = ", ".join(history.name for history in histories)
    parts = [
        f"<h1>{escaped(names)}</h1>",
        _row("runs", [_head(history, len(histories) > 1) for history in histories]),
        "<h2>Training</h2>",
        *_charts(histories),
        "<h2>Samples over time</h2>",
        _row("runs", [_pictures(history) for history in histories]),
        "<h2>Evaluations</h2>",
        *(_evaluations(history, len(histories) > 1) for history in histories),
        *(["<h2>What differs</h2>", _differences(histories)] if len(histories) > 1 else []),
        "<h2>Configuration and environment</h2>",
        *(_folded(history) for history in histories),
    ]
    script = "" if live is None else LIVE.replace("SECONDS", f"{live:g}")
    return page(f"facm: {names}", [MARK, STYLE, "<main>", *parts, "</main>", ZOOM, script])


def _row(kind: str, cells: Sequence[str]) -> str:
    return f"<div class={kind}>{''.join(f'<div>{cell}</div>' for cell in cells)}</div>"


def _head(history: History, named: bool) -> str:
    last, images = history.last, history.last.get("images", 0)
    part = min(images / history.length, 1.0) if history.length else 0.0
    begun = [session for session in history.sessions if "date" in session]
    session = begun[-1] if begun else {}
    run = history.record["run"]
    facts = {
        "folder": history.path,
        "recipe": history.record.get("recipe") or "from Python",
        "objective": _kind(run.get("objective")),
        "network": _kind(run.get("network")),
        "data": _kind(run.get("data")),
        "images": f"{images:,} of {history.length:,} ({part:.0%}){', finished' if history.finished else ''}",
        "time left": _duration(last.get("seconds_left")) if not history.finished else "none",
        **({"warned": history.warning} if history.warning else {}),
        "steps skipped": last.get("skipped", "-"),
        "device": _device(session),
        "begun": begun[0]["date"] if begun else "-",
        "sessions": len(begun),
    }
    rows = "".join(f"<tr><td>{escaped(k)}</td><td>{escaped(v)}</td></tr>" for k, v in facts.items())
    title = f"<h3>{escaped(history.name)}</h3>" if named else ""
    return f"{title}<div class=bar><div style='width:{part:.1%}'></div></div><table class=facts>{rows}</table>"


def _device(session: dict[str, Any]) -> str:
    ranks = session.get("ranks", 1)
    many = "" if ranks == 1 else f"{ranks} x "
    return f"{many}{session.get('device', '-')}, {session.get('precision', '-')}"


def _kind(value: Any) -> str:
    return str(value.get("type", "-")).rpartition(":")[2] if isinstance(value, dict) else "-"


def _duration(seconds: Any) -> str:
    if not is_number(seconds):
        return "-"
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _charts(histories: Sequence[History]) -> list[str]:
    """One chart a group of numbers and run; those of several runs have the same axes and stand side by side."""
    end = float(max(max(history.length, history.last.get("images", 0)) for history in histories))
    known = NOT_DRAWN.union(*(keys for _, keys, _ in CHARTS))
    others = sorted({key for history in histories for key in history.last if key not in known})
    groups = [*CHARTS, *((key, (key,), False) for key in others)]
    drawn: list[list[str]] = []
    for title, keys, log in groups:
        of_runs = [{k: points for k in keys if (points := history.series(k))} for history in histories]
        values = [y for series in of_runs for points in series.values() for y in settled(points)]
        if not values:
            continue
        low, high = span(values, log)
        many = len(histories) > 1
        titles = [f"{title}: {history.name}" if many else title for history in histories]
        pairs = zip(titles, of_runs, strict=True)
        drawn.append(
            [chart(t, s, low, high, end, log) if s else f"<p class=note>no {escaped(t)}</p>" for t, s in pairs]
        )
    if not drawn:
        return ["<p class=note>no line of the log yet</p>"]
    if len(histories) == 1:
        return [_row("charts", [cell for (cell,) in drawn])]
    return [_row("runs", cells) for cells in drawn]


def settled(points: Sequence[tuple[float, float]]) -> list[float]:
    """The values without those of the beginning, which would hide all others: a gradient's first norm may be 1e8."""
    return [y for _, y in points[len(points) // 20 + (len(points) > 2) :]]


def _pictures(history: History) -> str:
    cells = []
    for images, file in reversed(history.pictures):
        try:
            png = read_bytes(file, MOST_PICTURE, links=False)
        except (OSError, ValueError):  # it was removed meanwhile, or is no picture of ours
            continue
        said = f"{images:,} images"
        button = f"<button type=button>{image(png, said)}</button>"
        cells.append(f"<figure class=sheet>{button}<figcaption>{said}</figcaption></figure>")
    sheets = f"<div class=sheets>{''.join(cells)}</div>"
    return sheets if cells else "<p class=note>no pictures yet</p>"


COLUMNS = {
    "nfe": "steps",
    "sampler": "sampler",
    "weights": "weights",
    "images": "images",
    "frechet_distance": "Fréchet distance",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
    "inception_score": "Inception score",
    "clip_score": "CLIP",
    "n": "n",
    "features": "features",
}


def _evaluations(history: History, named: bool) -> str:
    title = f"<h3>{escaped(history.name)}</h3>" if named else ""
    if not history.evaluations:
        return f"{title}<p class=note>none yet: facm evaluate {escaped(history.path)}</p>"
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in history.evaluations)]
    head = "".join(f"<th>{escaped(COLUMNS[key])}</th>" for key in keys)
    body = "".join(
        f"<tr>{''.join(f'<td>{_cell(row.get(key))}</td>' for key in keys)}</tr>" for row in history.evaluations
    )
    return f"{title}<table class=wide><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else escaped(f"{value:,}" if isinstance(value, int) else value)


def _differences(histories: Sequence[History]) -> str:
    flat = [flattened(history.record["run"]) for history in histories]
    keys = [key for key in dict.fromkeys(k for each in flat for k in each) if len({f.get(key) for f in flat}) > 1]
    if not keys:
        return "<p class=note>the configurations are the same</p>"
    head = "".join(f"<th>{escaped(history.name)}</th>" for history in histories)
    cells = {key: "".join(f"<td>{escaped(each.get(key, '-'))}</td>" for each in flat) for key in keys}
    rows = "".join(f"<tr><td>{escaped(key or 'run')}</td>{row}</tr>" for key, row in cells.items())
    return f"<table><tr><th></th>{head}</tr>{rows}</table>"


def _folded(history: History) -> str:
    parts = {"run.json": history.record, "environment.json": history.environment, "sessions": history.sessions}
    shown = "".join(f"<p>{escaped(name)}</p>{folded_json(json.dumps(value))}" for name, value in parts.items())
    return f"<h3>{escaped(history.name)}</h3>{shown}"
