"""Parts of a self-contained HTML page: style, pictures, grids of samples, folded JSON."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from facm.core.terminal import plain
from facm.sampling.images import grid_png

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; display: block; max-width: 100%; overflow-x: auto }
td, th { padding: .25rem .9rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left } tr.student { background: #eef6ee }
.grids { display: flex; flex-wrap: wrap; gap: 1.4rem } figure { margin: 0 } figcaption { font-size: .9rem; color: #555 }
img { max-width: 100%; height: auto } .grids img { image-rendering: pixelated; width: 17rem }
p, li, figcaption { overflow-wrap: anywhere }
pre { background: #f6f6f6; padding: .8rem; overflow: auto; font-size: 12px } p.note { color: #555 }
"""


def escaped(text: object) -> str:
    """Text from elsewhere for a page, made plain: it is no markup, and cannot reverse or hide what stands around it."""
    return html.escape(plain(text, keep="\n"))


def unparsed(text: object) -> str:
    """Text from elsewhere for matplotlib, made plain: dollars are no formulas, and a first underscore hides nothing."""
    shown = plain(text).replace("$", r"\$")
    return f"\u2060{shown}" if shown.startswith("_") else shown


@dataclass(frozen=True)
class Panel:
    """A grid of samples.

    caption: under it.
    samples: (B, C, H, W) in [-1, 1].
    """

    caption: str
    samples: Tensor


def page(title: str, parts: Sequence[str]) -> str:
    """A whole document of HTML parts."""
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{escaped(title)}</title>"
    body = "\n".join(parts)
    return f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>"


def steps(nfe: int) -> str:
    """1 step, 2 steps: as captions and tables say it."""
    return "1 step" if nfe == 1 else f"{nfe} steps"


def grid(panel: Panel) -> str:
    picture = image(grid_png(panel.samples, scale=4), panel.caption)
    return f"<figure>{picture}<figcaption>{escaped(panel.caption)}</figcaption></figure>"


def image(png: bytes, alt: str) -> str:
    return f"<img alt='{escaped(alt)}' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"


def folded_json(text: str) -> str:
    """JSON, indented, behind a click."""
    return f"<details><summary>show</summary><pre>{escaped(json.dumps(json.loads(text), indent=2))}</pre></details>"


def png_of(figure: Any, dpi: int = 110) -> bytes:
    """A matplotlib figure as PNG, without a display."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
