"""Line charts as SVG, for pages that load nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from facm.studies.html import escaped

WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 10, 26
COLOURS = ("#2563a8", "#c2571a", "#2f8f4e", "#8a4fa3", "#a33b4b", "#6b6b6b", "#1f8f99", "#94770f")
MOST_POINTS = 400
Points = Sequence[tuple[float, float]]


def chart(title: str, series: Mapping[str, Points], low: float, high: float, end: float, log: bool) -> str:
    """A figure with one line a series, from 0 to ``end`` images and from ``low`` to ``high``, which all runs share."""
    lines = []
    for k, points in enumerate(series.values()):
        drawn = " ".join(
            f"{_x(x, end):.1f},{_y(y, low, high, log):.1f}" for x, y in thinned(points) if y > 0 or not log
        )
        lines.append(f"<polyline points='{drawn}' stroke='{COLOURS[k % len(COLOURS)]}'/>")
    grid = "".join(_across(value, low, high, log) for value in ticks(low, high, log))
    clocks = "".join(
        f"<text x='{_x(end * part, end):.1f}' y='{HEIGHT - 8}' text-anchor='{anchor}'>{_short(end * part)}</text>"
        for part, anchor in ((0, "start"), (0.5, "middle"), (1, "end"))
    )
    legend = "".join(
        f"<span><i style='background:{COLOURS[k % len(COLOURS)]}'></i>{escaped(name)} {_short(points[-1][1])}</span>"
        for k, (name, points) in enumerate(series.items())
    )
    what = escaped(f"{title}{', logarithmic' * log}")
    return (
        f"<figure class=chart><figcaption>{what}</figcaption>"
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='{what} over images seen'>{grid}{clocks}"
        f"{''.join(lines)}</svg><div class=legend>{legend}</div></figure>"
    )


def thinned(points: Points) -> Points:
    """At most :data:`MOST_POINTS` of the points, the last among them."""
    step = -(-len(points) // MOST_POINTS)
    return [*points[: len(points) - 1 : step], points[-1]] if step > 1 else points


def span(values: Sequence[float], log: bool) -> tuple[float, float]:
    """The range of an axis for these values: with room, from 0 where they are near it."""
    if log:
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive), max(positive)
        return (low / 1.5, high * 1.5)
    low, high = min(values), max(values)
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    room = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return (low if low == 0 else low - room, high + room)


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Three to six round numbers within the range."""
    if log:
        first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
        if last - first >= 2:
            return [10.0**k for k in range(first, last + 1, max(1, (last - first) // 4))]
        finer = [factor * 10.0**k for k in range(first - 1, last + 1) for factor in (1, 2, 5)]
        return [value for value in finer if low <= value <= high]
    raw = (high - low) / 4
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    first = math.ceil(low / step)
    return [step * k for k in range(first, math.floor(high / step) + 1)]


def _across(value: float, low: float, high: float, log: bool) -> str:
    y = _y(value, low, high, log)
    line = f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>"
    return f"{line}<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{_short(value)}</text>"


def _x(x: float, end: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (x / end if end else 0)


def _y(y: float, low: float, high: float, log: bool) -> float:
    if log:
        y, low, high = math.log(y), math.log(low), math.log(high)
    part = (y - low) / (high - low) if high > low else 0.5
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(part, 0), 1)


def _short(value: float) -> str:
    """A number in few characters: 12.3M, 4.5k, 0.0012."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
