"""A study's numbers: means, spread, pairs, what collapsed, from rows and logs written by hand; table, JSON, figures."""

import io
import json
import math
import re
from dataclasses import replace

import pytest
from PIL import Image

from facm.runs import log as logs
from facm.runs.environment import environment
from facm.studies import figures
from facm.studies.cost import forward_passes
from facm.studies.figures import numbers, over_training
from facm.studies.report import panels, write
from facm.studies.summary import Cell, summarise
from facm.studies.table import jsonl, markdown, print_table, records, rows, said
from tests.studies.study_parts import N, an_evaluator, bench, pair, row, stop, written

SEEDS = (0, 1, 2)
FACM = ({1: 1.0, 2: 0.5}, {1: 1.5, 2: 0.5}, {1: 2.0, 2: 0.5})
PLAIN = ({1: 2.0, 2: 0.4}, {1: 1.0, 2: 0.6}, {1: 3.5, 2: 0.5})
TEACHER = {1: 3.0, 2: 2.0, 4: 1.0}


def record(images, norm, **more):
    return {"images": images, "grad_norm": norm, **more}


STEADY = (record(6, 100.0), record(16, 2.0), record(48, 4.0), record(64, 3.0, tangent_rms=0.5))


def study_at(home, *, facm=FACM, plain=PLAIN, teacher=TEACHER, log=STEADY, change=lambda study: study):
    """{seed: study} and their run folders; an entry whose distances are None has collapsed at 48 images."""
    studies = {seed: change(pair(bench(home, seed))) for seed in SEEDS}
    for seed, study in studies.items():
        for entry, values in zip(study.parts, (teacher, facm[seed], plain[seed]), strict=True):
            path = home / f"seed-{seed}" / entry.name
            written(path, entry, values or {}, log)
            if values is None:
                stop(path, 48)
    return studies


def summary_of(home, **parts):
    return summarise(study_at(home, **parts), home, N, "quarters", 0.125)


@pytest.fixture(scope="module", autouse=True)
def counted_once():
    """What a step costs is counted once for each objective, which takes most of a summary's time."""
    costs = {}

    def cost(run):
        if run.objective not in costs:
            costs[run.objective] = forward_passes(run)
        return costs[run.objective]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("facm.studies.summary.forward_passes", cost)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def summary(home):
    return summary_of(home)


@pytest.fixture
def collapsed(tmp_path):
    return summary_of(tmp_path / "collapsed", plain=(PLAIN[0], None, PLAIN[2]))


# --- cells -----------------------------------------------------------------------------------------------------------


def test_mean_and_spread():
    cell = Cell((1.0, 2.0, 6.0))
    assert cell.mean == 3.0
    assert cell.sd == pytest.approx(math.sqrt((4 + 1 + 9) / 2), rel=1e-12)
    assert (Cell((2.0,)).mean, Cell((2.0,)).sd) == (2.0, None)


def test_a_mean_over_the_survivors_would_flatter():
    cell = Cell((1.0, None, 3.0))
    assert (cell.mean, cell.sd, cell.known) == (None, None, [1.0, 3.0])
    assert (Cell((None,)).mean, Cell(()).mean) == (None, None)


def test_differences_are_paired_by_seed():
    assert Cell((1.0, 2.0, None, 4.0)).minus(Cell((0.5, 3.0, 1.0, None))) == Cell((0.5, -1.0, None, None))
    with pytest.raises(ValueError, match="zip"):
        Cell((1.0,)).minus(Cell((1.0, 2.0)))


# --- summary ---------------------------------------------------------------------------------------------------------


def test_a_summary_has_every_number_in_the_order_of_the_seeds(summary, home):
    assert (summary.seeds, summary.n, summary.features, summary.floor) == (SEEDS, N, "quarters", 0.125)
    (teacher,), (facm, plain) = summary.teachers, summary.lines
    assert teacher.cells == {(nfe, None): Cell((value,) * 3) for nfe, value in TEACHER.items()}
    assert facm.cells == {(1, None): Cell((1.0, 1.5, 2.0)), (2, None): Cell((0.5, 0.5, 0.5))}
    assert plain.cells[1, None] == Cell((2.0, 1.0, 3.5))
    assert plain.accuracy == {1: Cell((0.5,) * 3), 2: Cell((0.5,) * 3)}
    assert (teacher.teaches, facm.teaches) == (True, False)
    assert [line.entry.name for line in (teacher, facm, plain)] == ["teacher", "facm", "plain-cm"]
    assert facm.cost == forward_passes(pair(bench(home)).entries[0].run)
    assert facm.total_cost == facm.cost * 64


def test_warm_up_is_no_part_of_the_largest_gradient(summary):
    """The first tenth of 64 images."""
    line = summary.lines[0]
    assert line.grad_norm == Cell((4.0,) * 3)
    assert line.tangent_rms == Cell((0.5,) * 3)


def test_a_norm_that_is_not_finite_is_no_number(tmp_path):
    log = (record(16, 9.0), record(32, math.nan), record(64, 1.0, tangent_rms=math.inf))
    line = summary_of(tmp_path, log=log).lines[0]
    assert line.grad_norm == line.tangent_rms == Cell((None,) * 3)


def test_a_run_without_a_log_after_warm_up_has_no_norm(tmp_path):
    assert summary_of(tmp_path, log=(record(6, 9.0),)).lines[0].grad_norm == Cell((None,) * 3)


def test_better_than_where_it_started_is_stable(summary):
    assert [line.stable for line in summary.lines] == [3, 2], "plain-cm of seed 2 is worse than its teacher's 3.0"


def test_as_good_as_where_it_started_is_not_stable(tmp_path):
    assert summary_of(tmp_path, facm=({1: 3.0, 2: 0.5}, *FACM[1:])).lines[0].stable == 2


def test_a_skipped_step_is_not_stable(tmp_path):
    log = (*STEADY[:-1], record(64, 3.0, skipped=1))
    assert [line.stable for line in summary_of(tmp_path, log=log).lines] == [0, 0]


def test_a_collapsed_run_is_not_stable_and_has_no_numbers(collapsed):
    plain = collapsed.lines[1]
    assert plain.cells == {(1, None): Cell((2.0, None, 3.5)), (2, None): Cell((0.4, None, 0.5))}
    assert plain.accuracy[1] == Cell((0.5, None, 0.5))
    assert plain.collapsed_at == (None, 48, None)
    assert plain.stable == 1
    assert collapsed.lines[0].collapsed_at == (None, None, None)


def test_rows_of_a_collapsed_run_do_not_count(tmp_path):
    studies = study_at(tmp_path)
    stop(tmp_path / "seed-1" / "facm", 32)
    assert summarise(studies, tmp_path, N, "quarters", 0.1).lines[0].cells[1, None] == Cell((1.0, None, 2.0))


def test_where_a_student_started_is_measured_as_the_study_does(tmp_path):
    """A row with guidance in the teacher's folder says nothing."""
    studies = study_at(tmp_path)
    for seed, study in studies.items():
        teacher = study.teachers[0]
        guided = row(teacher, next(iter(_wanted(teacher))), 0.0, guidance={"scale": 2.0})
        file = tmp_path / f"seed-{seed}" / "teacher" / "evaluations.jsonl"
        kept = file.read_text()
        file.write_text(json.dumps(guided) + "\n" + kept)
        logs.append(file, guided)
    assert summarise(studies, tmp_path, N, "quarters", 0.1).lines[0].stable == 3


def _wanted(entry):
    from facm.studies.train_and_measure import wanted

    return wanted(entry)


def test_without_one_step_the_fewest_steps_decide(tmp_path):
    def twice(study):
        return replace(study, entries=tuple(replace(entry, nfe=(2, 4)) for entry in study.entries))

    better, worse = {2: 1.9, 4: 9.0}, {2: 2.1, 4: 0.1}  # the teacher has 2.0 with two steps
    found = summary_of(tmp_path, facm=(better, better, worse), plain=(worse, worse, better), change=twice)
    assert [line.stable for line in found.lines] == [2, 1]
    assert "better with 2 steps than that one" in said(found)
    assert rows(found)[0][1:4] == ("2 steps", "4 steps", "2 steps, minus FACM")


def test_from_scratch_there_is_nothing_to_be_better_than(tmp_path):
    def scratch(study):
        run = bench(tmp_path, study.entries[0].run.seed).facm_scratch().run
        return replace(study, entries=(replace(study.entries[0], run=run), study.entries[1]))

    values = ({1: 99.0, 2: 0.5},) * 3
    assert summary_of(tmp_path, facm=values, change=scratch).lines[0].stable == 3


def test_a_number_that_is_missing_is_an_error_that_says_which(tmp_path):
    studies = study_at(tmp_path, plain=(PLAIN[0], {1: 1.0}, PLAIN[2]))
    said = rf"{tmp_path}/seed-1/plain-cm has no row with 2 steps, n = 40 and quarters: train and measure it first"
    with pytest.raises(ValueError, match=said):
        summarise(studies, tmp_path, N, "quarters", 0.1)
    with pytest.raises(ValueError, match=r"n = 41 and quarters"):
        summarise(studies, tmp_path, 41, "quarters", 0.1)


# --- table -----------------------------------------------------------------------------------------------------------


def test_the_table_line_by_line(summary):
    header, (teacher, facm, plain) = rows(summary)
    assert header == (
        "",
        "1 step",
        "2 steps",
        "1 step, minus FACM",
        "stable",
        "largest gradient norm",
        "images",
        "forward passes / 1000",
        "published FID",
    )
    cost = [f"{line.cost * line.entry.run.images / 1000:,.0f}" for line in (*summary.teachers, *summary.lines)]
    assert teacher == (
        "teacher (4 steps: 1.000 ± 0.000)",
        "3.000 ± 0.000",
        "2.000 ± 0.000",
        "",
        "",
        "4 ± 0",
        "96",
        cost[0],
        "",
    )
    published = "1.76 (1 step), 1.50 (2 steps)"
    assert facm == ("FACM", "1.500 ± 0.500", "0.500 ± 0.000", "", "3/3", "4 ± 0", "64", cost[1], published)
    # 2.0 - 1.0, 1.0 - 1.5, 3.5 - 2.0: mean 2/3, sd of (1, -0.5, 1.5)
    difference = "+0.667 ± 1.041 (worse in 2/3)"
    assert plain == ("plain CM", "2.167 ± 1.258", "0.500 ± 0.100", difference, "2/3", "4 ± 0", "64", cost[2], "")


def test_as_good_is_not_worse(tmp_path):
    plain = rows(summary_of(tmp_path, plain=(FACM[0], FACM[1], {1: 2.3, 2: 1.0})))[1][2]
    assert plain[3] == "+0.100 ± 0.173 (worse in 1/3)"


def test_without_published_numbers_there_is_no_column_for_them(tmp_path):
    def unpublished(study):
        return replace(study, entries=tuple(replace(entry, published={}) for entry in study.entries))

    header, body = rows(summary_of(tmp_path, change=unpublished))
    assert header[-1] == "forward passes / 1000"
    assert {len(line) for line in body} == {len(header)}


def test_what_collapsed_is_said(collapsed):
    plain = rows(collapsed)[1][2]
    assert plain[1:5] == ("collapsed (1 of 3)", "collapsed (1 of 3)", "-", "1/3")


def test_what_was_not_measured_stays_empty(tmp_path):
    def once(study):
        return replace(study, entries=(study.entries[0], replace(study.entries[1], nfe=(2,))))

    plain = rows(summary_of(tmp_path, change=once))[1][2]
    assert plain[1:4] == ("", "0.500 ± 0.100", "")


def test_one_seed_has_no_spread(tmp_path):
    studies = {0: study_at(tmp_path)[0]}
    found = rows(summarise(studies, tmp_path, N, "quarters", 0.1))[1]
    assert found[1][1:3] == ("1.000", "0.500")
    assert found[2][3] == "+1.000 (worse in 1/1)"


def test_the_text_says_what_the_numbers_are(summary):
    text = said(summary)
    assert text.startswith("Which? Mean ± standard deviation over the seeds 0, 1, 2, Fréchet distance of 40 samples")
    assert "in the features quarters: no FID" in text
    assert "one half of the real data against the other: 0.125." in text
    assert "better with 1 step than that one" in text


def test_markdown_is_one_table(summary):
    text = markdown(summary)
    assert text.startswith("# Pair (Sec. 0)\n\nWhich? ")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 5
    assert {line.count("|") for line in lines} == {10}
    assert lines[2].startswith("| teacher (4 steps: 1.000 ± 0.000) | 3.000 ± 0.000 |")


@pytest.mark.parametrize("label", ["a | b", "<script>", "a\nb", "a\u202eb", "[/bold]", "\x1b[31m"], ids=ascii)
def test_a_label_cannot_break_the_table(home, summary, label, capsys):
    lines = tuple(replace(line, entry=replace(line.entry, label=label)) for line in summary.lines)
    named = replace(summary, lines=lines)
    table = markdown(named).split("\n\n")[2].splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {len(rows(summary)[0]) + 1}
    assert "<script" not in markdown(named)
    print_table(named)
    said = capsys.readouterr().out + markdown(named)
    assert not re.search("[\x1b\u202e]", said)
    assert numbers(named)[:4] == b"\x89PNG"


def test_the_terminals_table_fits(summary, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_table(summary)
    text = capsys.readouterr().out
    assert "Pair (Sec. 0)" in text
    assert "2.167 ± 1.258" in " ".join(text.split())
    assert "published" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_every_number_is_one_row_of_json(summary):
    found = [json.loads(line, parse_constant=pytest.fail) for line in jsonl(summary, "facm study pair").splitlines()]
    keys = [(r["entry"], r["nfe"]) for r in found]
    assert keys == [("teacher", 1), ("teacher", 2), ("teacher", 4)] + [
        (name, nfe) for name in ("facm", "plain-cm") for nfe in (1, 2)
    ]
    first = found[3]
    assert first["frechet_distance"] == [1.0, 1.5, 2.0]
    assert (first["mean"], first["sd"], first["published"], first["stable"]) == (1.5, 0.5, 1.76, 3)
    assert (first["seeds"], first["n"], first["evaluation_seed"], first["floor"]) == ([0, 1, 2], N, 1, 0.125)
    assert (first["features"], first["command"], first["at_images"]) == ("quarters", "facm study pair", None)
    assert first["accuracy"] == [0.5, 0.5, 0.5]
    assert (first["images"], first["forward_passes_per_image"]) == (64, summary.lines[0].cost)
    assert (first["largest_grad_norm"], first["last_tangent_rms"]) == ([4.0] * 3, [0.5] * 3)
    assert first["versions"] == environment()["versions"]
    assert found[0]["stable"] is None, "teachers are not asked"
    assert found[5]["published"] is None


def test_json_has_null_where_there_is_no_number(tmp_path):
    log = (record(16, math.nan), record(64, math.inf, tangent_rms=math.nan))
    found = summary_of(tmp_path, plain=(PLAIN[0], None, PLAIN[2]), log=log)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in jsonl(found, "x").splitlines()]
    last = lines[-1]
    assert last["frechet_distance"] == [0.4, None, 0.5]
    assert (last["mean"], last["sd"]) == (None, None)
    assert last["collapsed_at"] == [None, 48, None]
    assert last["largest_grad_norm"] == last["last_tangent_rms"] == [None] * 3


# --- earlier clocks --------------------------------------------------------------------------------------------------


@pytest.fixture
def timed(tmp_path):
    def often(study):
        rows = tuple(replace(e, at=(32,), series=e.name) for e in study.entries)
        return replace(study, entries=rows, x_label="images of the distillation")

    return summary_of(tmp_path / "timed", change=often)


def test_earlier_clocks_are_in_the_json_and_not_in_the_table(timed):
    facm = timed.lines[0]
    assert facm.cells[1, 32] == Cell((2.0, 2.5, 3.0))
    assert set(facm.accuracy) == {1, 2}
    found = [r for r in records(timed, "x") if r["entry"] == "facm"]
    assert [(r["nfe"], r["at_images"], r["mean"], r["accuracy"] is None) for r in found] == [
        (1, None, 1.5, False),
        (2, None, 0.5, False),
        (1, 32, 2.5, True),
        (2, 32, 1.5, True),
    ]
    assert rows(timed)[1][1][1] == "1.500 ± 0.500"


def test_over_time_the_clock_is_x(timed):
    points = figures._series(timed)
    assert points["facm, 1 step"] == [(64, Cell((1.0, 1.5, 2.0))), (32, Cell((2.0, 2.5, 3.0)))]
    assert set(points) == {"facm, 1 step", "facm, 2 steps", "plain-cm, 1 step", "plain-cm, 2 steps"}


# --- figures ---------------------------------------------------------------------------------------------------------


def drawn(png):
    """Width, height, and whether anything but white is in it."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return (*image.size, image.convert("L").getextrema()[0] < 128)


def test_numbers_are_drawn_as_dots_or_over_what_was_varied(summary, collapsed, timed, tmp_path):
    width, height, ink = drawn(numbers(summary))
    assert (width, ink) == (990, True)
    taller = replace(summary, lines=summary.lines * 3)
    assert drawn(numbers(taller))[1] > height
    assert drawn(numbers(collapsed)) == (990, height, True)
    assert drawn(numbers(timed))[2]


def test_entries_without_a_place_are_no_points(summary):
    first, second = summary.lines
    placed = replace(first, entry=replace(first.entry, series="a", x=0.1))
    varied = replace(summary, lines=(placed, second), study=replace(summary.study, x_label="weight of it"))
    assert list(figures._series(varied)) == ["a, 1 step", "a, 2 steps"]
    assert figures._series(varied)["a, 1 step"] == [(0.1, first.cells[1, None])]
    assert drawn(numbers(varied))[2]


@pytest.mark.parametrize(("xs", "spans"), [((1.0, 4.0), 4.0), ((0.5, 8.0), 16.0), ((0.0, 2.0), 1.0)])
def test_far_apart_means_a_logarithmic_axis(summary, xs, spans):
    lines = [replace(line, entry=replace(line.entry, x=x)) for line, x in zip(summary.lines, xs, strict=True)]
    assert figures._spans(replace(summary, lines=tuple(lines))) == spans


def test_training_is_drawn_even_where_norms_are_not_finite(tmp_path, summary, home):
    assert drawn(over_training(summary, home))[2]
    log = (record(16, math.nan), record(32, 2.0), record(64, math.inf, tangent_rms=math.nan))
    assert drawn(over_training(summary_of(tmp_path, log=log), tmp_path))[2]


def test_a_band_is_the_median_between_the_extremes(tmp_path, monkeypatch):
    summary = summary_of(tmp_path, log=())
    for seed, norm in zip(SEEDS, (1.0, 7.0, 2.0), strict=True):
        for images in (64, 32):
            record_ = {"images": images, "grad_norm": norm * images}
            logs.append(tmp_path / f"seed-{seed}" / "facm" / "log.jsonl", record_)
    logs.append(tmp_path / "seed-1" / "facm" / "log.jsonl", {"images": 32, "grad_norm": math.nan})

    class Axis:
        def plot(self, xs, ys, **_):
            self.plotted = list(xs), list(ys)
            return [self]

        def get_color(self):
            return "red"

        def fill_between(self, xs, low, high, **_):
            self.filled = list(xs), list(low), list(high)

    axis = Axis()
    figures._band(axis, summary.lines[0], tmp_path, SEEDS, "grad_norm")
    assert axis.plotted == ([0.032, 0.064], [64.0, 128.0])
    assert axis.filled == ([0.032, 0.064], [32.0, 64.0], [224.0, 448.0])
    silent = Axis()
    figures._band(silent, summary.lines[1], tmp_path, SEEDS, "grad_norm")
    assert not hasattr(silent, "plotted")


# --- report ----------------------------------------------------------------------------------------------------------


def test_a_study_of_collapsed_runs_has_a_report_without_their_pictures(tmp_path):
    """Nothing is loaded for them: these folders have no weights at all."""
    evaluator = an_evaluator()
    found = summary_of(tmp_path, facm=(None,) * 3, plain=(None,) * 3)
    for seed in SEEDS:
        stop(tmp_path / f"seed-{seed}" / "teacher", 16)
    assert list(panels(found, evaluator, tmp_path / "seed-0", "cpu")) == []
    page = write(found, evaluator, tmp_path, tmp_path / "pair", "facm study <pair>", "cpu")
    assert page == tmp_path / "pair" / "report.html"
    text = page.read_text()
    assert text.count("<td>collapsed (3 of 3)</td>") == 4
    assert "<h1>Pair</h1>" in text


def test_pictures_are_for_images_only(summary, tmp_path):
    from facm.data import Moons
    from facm.evaluation import Identity
    from facm.evaluation.evaluator import build_evaluator

    assert list(panels(summary, build_evaluator(Moons(n=50).open(), "cpu", Identity()), tmp_path, "cpu")) == []
