"""Pictures in a grid with their prompts below."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from facm.core.files import atomically
from facm.sampling.images import as_strips, to_uint8

LEAST_WIDTH = 128
"""Pixels of a picture's width in the grid: smaller pictures are enlarged, so that there is room for words."""
LINES = 3
"""Lines of a prompt."""
LINE = 15
"""Pixels of a line."""
GAP = 6


def captioned_png(
    rows: Sequence[Tensor], prompts: Sequence[str], titles: Sequence[str] = (), columns: int = 8
) -> bytes:
    """A PNG with a row for each of ``rows`` (n, C, H, W) in [-1, 1]. The pictures one above the other share a prompt,
    written below them; ``titles``, one a row, stand above the rows; ``columns`` prompts beside each other. Of clips
    (n, C, frames, H, W) the frames are beside each other, and the prompts below each other.

    Raises ValueError where there are not as many prompts as pictures in a row, or titles as rows.
    """
    from PIL import Image

    n = len(rows[0])
    if len(prompts) != n or (titles and len(titles) != len(rows)):
        raise ValueError(f"{len(prompts)} prompts and {len(titles)} titles for {len(rows)} rows of {n} pictures")
    if any(row.ndim == 5 for row in rows):
        columns = 1
    pixels = [to_uint8(as_strips(row)) for row in rows]
    parts = [
        _sheet([row[k : k + columns] for row in pixels], prompts[k : k + columns], titles) for k in range(0, n, columns)
    ]
    whole = Image.new("RGB", (parts[0].width, sum(part.height for part in parts)), (255, 255, 255))
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    buffer = io.BytesIO()
    whole.save(buffer, "PNG")
    return buffer.getvalue()


def _sheet(rows: Sequence[np.ndarray], prompts: Sequence[str], titles: Sequence[str]) -> Any:
    """One block of the grid: rows of (n, H, W, 3) with their prompts below."""
    from PIL import Image, ImageDraw, ImageFont

    n, height, width, _ = rows[0].shape
    scale = max(1, -(-LEAST_WIDTH // width))
    width, height = width * scale, height * scale
    font, above = ImageFont.load_default(12), LINE if titles else 0
    size = (n * (width + GAP) - GAP, len(rows) * (above + height + GAP) + LINES * LINE)
    sheet = Image.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        top = r * (above + height + GAP)
        if titles:
            draw.text((0, top), titles[r], fill=(0, 0, 0), font=font)
        for k, image in enumerate(row):
            large = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(large, (k * (width + GAP), top + above))
    top = len(rows) * (above + height + GAP)
    for k, prompt in enumerate(prompts):
        for i, text in enumerate(_wrapped(prompt, width, font)):
            draw.text((k * (width + GAP), top + i * LINE), text, fill=(0, 0, 0), font=font)
    return sheet


def save_captioned(
    path: Path, rows: Sequence[Tensor], prompts: Sequence[str], titles: Sequence[str] = (), new: bool = False
) -> None:
    """Write the picture of :func:`captioned_png`. new: raise TakenError where there is something at ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomically(path, new) as partial:
        partial.write_bytes(captioned_png(rows, prompts, titles))


def _wrapped(prompt: str, width: int, font: Any) -> list[str]:
    """The prompt in at most LINES lines of ``width`` pixels; what has no room is left out, and dots say so."""
    lines = [""]
    for word in prompt.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"{lines[LINES - 1]} ..."]
    return lines
