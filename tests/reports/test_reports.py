"""The page of a run, in a browser's words and as numbers; the terminal; the server on this machine."""

import dataclasses
import html.parser
import json
import math
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request

import pytest

import facm
from facm.data import Digits
from facm.networks import LightningDiT
from facm.reports.chart import span, thinned, ticks
from facm.reports.history import flattened, read_history
from facm.reports.page import report, settled, write_report
from facm.reports.server import serving
from facm.reports.terminal import sparkline
from facm.runs import log as logs
from facm.runs.folder import RunFolder
from tests.cli.cli_parts import command, refused
from tests.training.run_parts import flow_run

NETWORK = LightningDiT(input_size=8, patch_size=4, in_channels=1, hidden_size=48, depth=1, num_heads=3, num_classes=10)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of pictures that differ in their seed and length."""
    root = tmp_path_factory.mktemp("runs")
    for name, seed, images in (("first", 0, 320), ("second", 1, 160)):
        objective = facm.FlowMatching(facm.Labels(10))
        run = flow_run(network=NETWORK, data=Digits(), objective=objective, seed=seed, images=images)
        facm.train(run, root / name, quiet=True)
    return root


class Tags(html.parser.HTMLParser):
    """All tags with their attributes, and whether they are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "line", "polyline", "i", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("i", "polyline", "line"):
            assert self.open.pop() == tag


def test_a_page_has_everything_and_loads_nothing(runs):
    out = write_report([runs / "first"])
    assert out == runs / "first" / "report.html"
    text = out.read_text()
    tags = Tags(text).found
    assert not [
        value for _, attrs in tags for key, value in attrs.items() if key in ("src", "href") and "data:" not in value
    ]
    assert "http" not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.S)
    pictures = [attrs["alt"] for tag, attrs in tags if tag == "img" and attrs["alt"] != "enlarged"]
    assert pictures == ["320 images", "240 images", "160 images", "80 images"]  # the newest first
    lines = [attrs["points"].split() for tag, attrs in tags if tag == "polyline"]
    records = logs.read(RunFolder(runs / "first").log)
    assert {len(line) for line in lines} == {len(records)}
    for word in (
        "FlowMatching",
        "320 of 320 (100%), finished",
        "facm evaluate",
        "LightningDiT",
        "loss",
        "learning rate",
    ):
        assert word in text
    write_report([runs / "first"])  # a page of its own is written anew


def test_two_runs_stand_side_by_side_on_one_scale_with_what_differs(runs):
    text = report([read_history(runs / name) for name in ("first", "second")])
    rows = re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td></tr>", text.partition("What differs")[2])
    assert rows == [("images", "320", "160"), ("seed", "0", "1")]
    for title in ("loss", "learning rate"):
        scales = [
            re.findall(r"text-anchor='end'>([^<]*)<", figure)
            for figure in re.findall(rf"<figcaption>{title}: (?:first|second).*?</svg>", text)
        ]
        assert len(scales) == 2
        assert scales[0] == scales[1]
    assert "the configurations are the same" in report([read_history(runs / "first")] * 2)


def test_text_from_elsewhere_is_no_markup(runs, tmp_path):
    run = tmp_path / "<script>alert(1)</script>"
    shutil.copytree(runs / "first", run.with_name("x"))
    run = run.with_name("x")
    record = json.loads((run / "run.json").read_text())
    record["recipe"] = "<img src=x onerror=alert(1)>\x1b[2J"
    (run / "run.json").write_text(json.dumps(record))
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({"images": 400, "loss": 1.0, "</svg><b>": 2.0, "text": "x", "nan": math.nan}) + "\n[]\n")
    text = report([read_history(run)])
    assert "<img src=x" not in text
    assert "</svg><b>" not in text
    assert "\x1b" not in text
    Tags(text)


def test_a_page_overwrites_nothing_else_and_no_link_is_read(runs, tmp_path):
    mine = tmp_path / "mine.html"
    mine.write_text("my own page")
    with pytest.raises(ValueError, match=r"mine\.html exists and is no report, which is not overwritten"):
        write_report([runs / "first"], mine)
    assert mine.read_text() == "my own page"
    run = tmp_path / "run"
    shutil.copytree(runs / "first", run)
    (run / "samples" / "000000000999.png").symlink_to("/etc/hostname")
    assert "999 images" not in report([read_history(run)])
    with pytest.raises(ValueError, match=r"is not a run folder: it has no run\.json"):
        write_report([tmp_path])


def test_axes_and_bars():
    assert ticks(0.0, 1.0, False) == pytest.approx([0, 0.5, 1.0])
    assert ticks(0.5, 2000.0, True) == pytest.approx([1, 10, 100, 1000])
    assert ticks(0.4, 2.5, True) == pytest.approx([0.5, 1, 2])
    assert span([1.0, 10.0], False) == (0.0, pytest.approx(10.5))
    assert span([5.0, 5.0], False)[0] < 5 < span([5.0, 5.0], False)[1]
    points = [(float(k), float(k)) for k in range(1001)]
    assert len(thinned(points)) <= 400
    assert thinned(points)[-1] == (1000.0, 1000.0)
    assert settled([(0.0, 1e8), (1.0, 2.0), (2.0, 3.0)]) == [2.0, 3.0]
    assert sparkline([0.0, 1.0, 2.0], 8) == "▁▅█"
    assert sparkline([1.0, 1.0], 8) == "▁▁"
    assert sparkline([0.0, 0.0, 7.0, 7.0], 2) == "▁█"
    assert sparkline([], 8) == ""
    assert flattened({"type": "A", "b": {"type": "C", "d": 1}}) == {"": "A", "b": "C", "b.d": "1"}


def test_the_terminal_shows_the_newest_numbers_once_where_no_line_can_be_overwritten(runs, capsys):
    command("watch", runs / "first")
    said = capsys.readouterr().out
    assert "first: 320 of 320 images (100%), finished" in said
    assert re.search(r"^ +loss +\d+\.\d+ +[▁▂▃▄▅▆▇█]{3} ", said, re.M)
    assert "newest samples:" in said


def test_the_page_is_served_on_this_machine_alone(runs, capsys):
    server = serving([runs / "first"], 0, 2.0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        port = server.server_address[1]
        assert server.server_address[0] == "127.0.0.1"
        with urllib.request.urlopen(f"http://localhost:{port}/", timeout=60) as answer:
            text = answer.read().decode()
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "}, 2 * 1000)" in text
        assert "320 of 320" in text
        for request, status in (
            (urllib.request.Request(f"http://localhost:{port}/", headers={"Host": "evil.example:80"}), 403),
            (f"http://localhost:{port}/run.json", 404),
        ):
            with pytest.raises(urllib.error.HTTPError) as error:
                urllib.request.urlopen(request, timeout=60)
            assert error.value.code == status
        message = f"--port {port} is in use: expected a free one, or 0 for any"
        assert message in refused(capsys, "watch", runs / "first", "--page", "--port", port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert "--port 70000, expected one within [0, 65535]" in refused(
        capsys, "watch", runs / "first", "--page", "--port", 70000
    )


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_a_phone_or_a_desk(runs, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    page = write_report([runs / "first", runs / "second"], tmp_path / "page.html")
    probe = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script>"
    page.write_text(page.read_text().replace("</body>", f"{probe}</body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={max(width, 500)},2000", "--dump-dom"]
    frame = tmp_path / "frame.html"  # a window is at least 500 wide, a frame in it is not
    content = page.read_text().replace("&", "&amp;").replace('"', "&quot;")
    frame.write_text(
        f'<iframe style="border:0;width:{width}px;height:1900px" srcdoc="{content}"></iframe><script>'
        "onload = () => { document.title = document.querySelector('iframe').contentDocument.title }</script>"
    )
    done = subprocess.run([browser, *options, frame.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    wide, inner = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout).groups()
    assert int(inner) == width
    assert int(wide) <= width


def test_runs_are_dataclasses_no_more_than_needed(runs):
    history = read_history(runs / "second")
    assert (history.length, history.finished, history.name) == (160, True, "second")
    assert dataclasses.replace(history, records=[]).finished is False
