"""Parts of a page that needs nothing but itself."""

import base64
import io
import re

import pytest
import torch
from PIL import Image

from facm.studies.html import Panel, folded_json, grid, image, page, png_of


def embedded(part):
    (data,) = re.findall(r"src='data:image/png;base64,([^']+)'", part)
    return base64.b64decode(data)


def test_a_page_is_a_whole_document_that_asks_for_nothing_else():
    text = page("a < b & c", ["<p>one</p>", "<p>two</p>"])
    assert text.startswith("<!doctype html>")
    assert text.endswith("</body></html>")
    assert "<title>a &lt; b &amp; c</title>" in text
    assert "<p>one</p>\n<p>two</p>" in text
    assert not re.search(r"http|@import|<script|<link|url\(", text)


def test_a_picture_is_inside_and_its_caption_is_text():
    part = image(b"\x89PNG bytes", "it's <b>")
    assert embedded(part) == b"\x89PNG bytes"
    assert "alt='it&#x27;s &lt;b&gt;'" in part


def test_a_grid_has_its_samples_and_its_caption():
    part = grid(Panel("1 step & more", torch.full((4, 1, 8, 8), -1.0)))
    assert part.count("1 step &amp; more") == 2
    assert part.startswith("<figure><img")
    with Image.open(io.BytesIO(embedded(part))) as picture:
        assert min(picture.size) >= 4 * 8


def test_json_is_indented_and_escaped():
    part = folded_json('{"a": [1], "b": "<script>"}')
    assert "&quot;a&quot;: [\n    1\n  ]" in part
    assert "&lt;script&gt;" in part
    assert "<script" not in part
    with pytest.raises(ValueError, match="Expecting"):
        folded_json("{")


def test_a_figure_becomes_a_png_of_the_asked_size():
    from matplotlib.figure import Figure

    for dpi in (50, 110):
        with Image.open(io.BytesIO(png_of(Figure(figsize=(4, 2)), dpi=dpi))) as picture:
            assert (picture.format, picture.size) == ("PNG", (4 * dpi, 2 * dpi))
    with Image.open(io.BytesIO(png_of(Figure(figsize=(1, 1))))) as picture:
        assert picture.size == (110, 110)
