"""Parts of a page that needs nothing but itself."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from facm.studies.demo_report import contact_sheet, write_report
from facm.studies.html import Panel, escaped, folded_json, grid, image, page, png_of, unparsed


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


HOSTILE = [
    "<script>alert(1)</script>",
    "' onerror='alert(1)",
    '" onerror="alert(1)',
    "</title><b>",
    "a\u202eb",
    "&lt;",
    "\ud83d",
    "\x1b[1m",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_text_from_elsewhere_is_no_markup_anywhere_on_a_page(text, tmp_path):
    summary = {
        "teacher": {text: 1.0},
        "student": {"1": 1.0},
        **{what: {"teacher": {text: 1.0}, "student": {"1": 1.0}} for what in ("accuracy", "precision", "recall")},
        "features": text,
        "n": 4,
        "reference_floor": 0.5,
        "seconds": {text: 1.0},
    }
    panels = [Panel(text, torch.zeros(4, 1, 8, 8))]
    log = {text: [{"images": 1000, text: 1.0}, {"images": 2000, text: 0.5}]}
    write_report(tmp_path / "report.html", summary, log, panels, {text: json.dumps({text: text})}, json.dumps([text]))
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    for part in (written, page(text, []), grid(panels[0])):
        parser = Tags()
        parser.feed(part)
        assert parser.unexpected == []
        assert "\u202e" not in part
        assert "\x1b" not in part
    assert escaped(text) in written


class Tags(HTMLParser):
    """Collects what no page of ours has."""

    def __init__(self):
        super().__init__()
        self.unexpected = []

    def handle_starttag(self, tag, attrs):
        allowed = {"charset", "name", "content", "lang", "class", "alt", "src"}
        self.unexpected += [name for name, _ in attrs if name not in allowed]
        self.unexpected += [tag] * (tag in ("script", "b", "a", "iframe"))


@pytest.mark.parametrize(
    "text", ["$a$", "$\\frac$", "_hidden", "\\mathrm{", "$", "a\ud83db", "a\nb", *HOSTILE], ids=ascii
)
def test_text_from_elsewhere_is_no_formula_in_a_picture(text, recwarn):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 2))
    axis = figure.subplots()
    axis.plot([1, 2], [1, 2], label=unparsed(text))
    axis.set_title(unparsed(text))
    assert len(axis.legend().get_texts()) == 1
    png_of(figure)
    contact_sheet([Panel(text, torch.zeros(4, 1, 8, 8))] * 2)
    assert [str(w.message) for w in recwarn] == []
