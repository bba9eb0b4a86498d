"""facm study: from one command to table, JSON, figures and report; what it refuses; facm show studies."""

import json
import re
import signal
import sys
from pathlib import Path

import pytest
from PIL import Image

from facm import cli
from facm.cli.lookup import STUDIES
from facm.runs import log as logs
from tests.studies.study_parts import Few, N, setting
from tests.training.run_parts import before_step, signal_at

MINE = """
from dataclasses import dataclass, replace
from facm.studies.rows import Bench
from tests.studies.study_parts import Few, Quarters, pair, setting

def study(bench):
    return pair(replace(bench, setting=setting()))

def short(bench):
    made = study(bench)
    return replace(made, entries=made.entries[:1])

def nothing(bench):
    return 3

def unequal(bench):
    made = study(bench)
    plain = made.entries[1]
    return replace(made, entries=(made.entries[0], replace(plain, run=replace(plain.run, images=96))))

def fewer(bench):
    return pair(replace(bench, setting=setting(data=Few(100))))

def chosen(bench, budgets=(4,), arms=("facm",)):
    from facm.studies.tables.order import order
    return order(replace(bench, setting=setting()), budgets, arms)
"""
OPTIONS = ("--num-samples", N, "--features", "mine.py:Quarters")
pytestmark = pytest.mark.slow
FILES = {"table.md", "results.jsonl", "numbers.png", "training.png", "report.html"}


def command(*arguments):
    """As a user types it: sys.argv is what the report quotes and what children are started with."""
    words = ["study", *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["/usr/bin/facm", *words])
        cli.main(words)


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        command(*arguments)
    said = capsys.readouterr()
    words = " ".join(re.sub("[─│╭╮╰╯]", " ", said.out + said.err).split())
    assert exit_.value.code == 2, words
    assert "Traceback" not in words
    assert "unexpected" not in words
    return words


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with mine.py, from which the commands run."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "mine.py").write_text(MINE)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FACM_CACHE", str(folder / "cache"))
        patched.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def done(place):
    """A finished study of two seeds, and what the command printed."""
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        command("mine.py:study", "--out", "out", "--seeds", 0, 1, *OPTIONS)
    return place / "out", said.getvalue()


def test_it_leaves_a_table_rows_figures_and_a_report(done):
    out, _ = done
    assert {p.name for p in out.iterdir()} == {"seed-0", "seed-1", "study"}
    assert {p.name for p in (out / "study").iterdir()} == FILES
    for seed in (0, 1):
        assert {p.name for p in (out / f"seed-{seed}").iterdir()} == {"teacher", "facm", "plain-cm"}
    for name in ("numbers.png", "training.png"):
        with Image.open(out / "study" / name) as picture:
            assert min(picture.size) > 100


def test_the_numbers_are_those_of_the_evaluations(done):
    out, _ = done
    found = [json.loads(line) for line in (out / "study" / "results.jsonl").read_text().splitlines()]
    assert [(r["entry"], r["nfe"]) for r in found] == [
        *(("teacher", nfe) for nfe in (1, 2, 4)),
        *((name, nfe) for name in ("facm", "plain-cm") for nfe in (1, 2)),
    ]
    for r in found:
        rows = [logs.read(out / f"seed-{seed}" / r["entry"] / "evaluations.jsonl") for seed in (0, 1)]
        of = [next(row["frechet_distance"] for row in own if row["nfe"] == r["nfe"]) for own in rows]
        assert r["frechet_distance"] == of
        assert (
            r["command"]
            == f"facm study mine.py:study --out out --seeds 0 1 --num-samples {N} --features mine.py:Quarters"
        )
        assert (r["seeds"], r["n"], r["features"]) == ([0, 1], N, "quarters")
        assert r["floor"] > 0
    table = (out / "study" / "table.md").read_text()
    assert "over the seeds 0, 1, Fréchet distance of 40 samples in the features quarters" in table
    assert f"| FACM | {found[3]['mean']:.3f} ± {found[3]['sd']:.3f} |" in table


def test_the_report_needs_nothing_but_itself(done):
    out, _ = done
    whole = (out / "study" / "report.html").read_text()
    page = re.sub(r"<pre>.*?</pre>", "", whole, flags=re.DOTALL)  # the environment may quote anything
    assert whole.count("<pre>") == 3 + 1, "three configurations and the environment"
    sources = re.findall(r"(?:src|href)\s*=\s*['\"]?([^'\" >]+)", page)
    assert len(sources) == 2 + 3, "two figures, and the samples of three networks"
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r"base64,[^']+", "", page)
    for part in ("teacher, 4 steps", "FACM, 1 step", "plain CM, 1 step", "<h2>Environment</h2>", "seed 0</h2>"):
        assert part in page
    table = (out / "study" / "table.md").read_text()
    for cell in re.findall(r"\d+\.\d{3} ± \d+\.\d{3}", table):
        assert cell in page


def test_it_says_how_it_goes_and_what_came_out(done):
    _, said = done
    lines = [line.partition(":")[0] for line in said.splitlines() if line.startswith("seed ") and " step" in line]
    assert lines == [f"seed {seed}/teacher" for seed in (0, 1)] + [
        f"seed {seed}/{name}" for seed in (0, 1) for name in ("facm", "plain-cm")
    ]
    assert re.search(rf"6 networks, \d+ s now; report: {Path('out') / 'study' / 'report.html'}", said)
    assert "Pair (Sec. 0)" in said


def test_the_second_time_nothing_is_trained_or_measured(done, capsys):
    out, _ = done
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if "study" not in p.parts[-2:]}
    table = (out / "study" / "table.md").read_text()
    with before_step(lambda images: pytest.fail("it trains again")):
        command("mine.py:study", "--out", "out", "--seeds", 0, 1, *OPTIONS)
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*") if "study" not in p.parts[-2:]}
    assert after == before
    assert (out / "study" / "table.md").read_text() == table
    assert "seed 0/facm" not in capsys.readouterr().out


def test_another_study_in_the_folder_shares_its_networks(done, capsys):
    out, _ = done
    with before_step(lambda images: pytest.fail("it trains again")):
        command("mine.py:short", "--out", Path("out").resolve(), "--seeds", 1, *OPTIONS)  # however it is spelled
    assert {p.name for p in (out / "short").iterdir()} == FILES
    assert "2 networks" in capsys.readouterr().out


def test_one_network_alone_as_a_job_of_a_cluster(place, capsys):
    options = ("mine.py:study", "--out", "single", "--seeds", 0, *OPTIONS)
    assert "cannot train 0/facm: its teacher single/seed-0/teacher is not trained to its end yet" in refused(
        capsys, *options, "--only", "0/facm"
    )
    command(*options, "--only", "0/teacher")
    assert [p.name for p in (place / "single").rglob("*") if (p / "run.json").exists()] == ["teacher"]
    command(*options, "--only", "0/facm", "--jobs", 2)
    assert {p.name for p in (place / "single").iterdir()} == {"seed-0"}, "no report"
    assert re.findall("seed (0/[a-z]+): 1 step", capsys.readouterr().out) == ["0/teacher", "0/facm"]
    assert "--only 0/none, expected SEED/NAME, one of 0/teacher, 0/facm, 0/plain-cm" in refused(
        capsys, *options, "--only", "0/none"
    )


def test_an_interrupted_study_says_how_to_go_on(place, capsys):
    with before_step(signal_at(32, signal.SIGTERM)):
        command("mine.py:study", "--out", "stopped", "--seeds", 0, *OPTIONS)
    assert "interrupted: the same command goes on" in capsys.readouterr().out
    assert not (place / "stopped" / "study").exists()


def test_several_jobs_are_children_with_the_same_command(place, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("facm.studies.schedule.side_by_side", lambda *arguments: asked.append(arguments))
    command("mine.py:study", "--out", "apart", "--jobs", 2, *OPTIONS)
    ((plan, evaluator, jobs, words),) = asked
    assert (list(plan.studies), plan.n, plan.home, jobs) == ([0, 1, 2], N, Path("apart"), 2)
    assert words[:3] == [sys.executable, "-m", "facm"]
    assert words[3:] == ["study", "mine.py:study", "--out", "apart", "--jobs", "2", *map(str, OPTIONS)]
    assert evaluator.extractor.identity == "quarters"
    assert "interrupted" in capsys.readouterr().out


def test_what_is_measured_against_is_what_was_trained_on(place, monkeypatch):
    """Not the size's own data."""
    seen = []
    monkeypatch.setattr("facm.studies.schedule.in_turn", lambda plan, evaluator: seen.append(evaluator))
    command("mine.py:fewer", "--out", "fewer", *OPTIONS)
    assert len(seen[0].dataset) == 100
    assert seen[0].reference.n == 100


def test_a_size_may_have_other_data_to_measure_against(place, monkeypatch):
    asked, seen = [], []

    def find(*arguments):
        asked.append(arguments)
        return setting(reference=Few(50))

    monkeypatch.setattr("facm.studies.scales.find_setting", find)
    monkeypatch.setattr("facm.studies.schedule.in_turn", lambda plan, evaluator: seen.append(evaluator))
    command("weights", "--at", "some", "--data", "there", *OPTIONS)
    command("mine.py:fewer", *OPTIONS)
    assert asked == [("some", "there"), ("digits", None)]
    assert [len(evaluator.dataset) for evaluator in seen] == [50, 100], "a study's own data are their own reference"


def test_the_size_says_how_many_samples_and_which_folder(place, monkeypatch):
    seen = []
    monkeypatch.setattr("facm.studies.schedule.in_turn", lambda plan, evaluator: seen.append(plan))
    command("mine.py:study", "--features", "mine.py:Quarters")
    assert (seen[0].n, seen[0].home) == (2_000, Path("runs/studies/digits"))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("stabilty",), "unknown study 'stabilty': did you mean stability? expected one of stability, weights"),
        (("stability", "--at", "mnist"), "--at mnist, expected one of digits, fashion, cifar10"),
        (("stability", "--data", "x"), "--data x with digits, which come with scikit-learn; expected None"),
        (("stability", "--jobs", 0), "--jobs 0, expected at least 1"),
        (("stability", "--seeds", 0, 1, 0), "--seeds 0 1 0, expected at least one, each of them once"),
        (("stability", "--num-samples", 1), "--num-samples 1, expected at least 2 samples to measure"),
        (("stability", "--num-samples", 0), "--num-samples 0, expected at least 2 samples to measure"),
        (("stability", "--budgets", 4), "--budgets with study 'stability', which does not let you choose its budgets"),
        (("order", "--budgets", 0), "--budgets 0, expected at least one, each a whole multiple from 1 on"),
        (("order", "--arms", "facm", "dmd"), "arms = ('facm', 'dmd'), expected 'facm' and others of facm, "),
        (("absent.py:study",), "study 'absent.py:study': there is no file absent.py"),
        (("mine.py:absent",), "expected mine.py:FUNCTION, with one of study, short, nothing, unequal, fewer, chosen"),
        (("mine.py",), "expected mine.py:FUNCTION, with one of study"),
        (("mine.py:nothing",), "study 'nothing' returned int, expected a facm.studies.study.Study"),
        (("mine.py:unequal",), "rows that disagree in images cannot be compared"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(place, capsys, arguments, said):
    assert said in refused(capsys, *arguments, "--out", "refused")
    assert not (place / "refused").exists()


def test_a_study_in_two_spaces_measures_and_shows_both(place, capsys):
    chosen = ("--budgets", 1, "--arms", "facm", "tract", "ayf")
    command("mine.py:chosen", "--seeds", 0, "--out", "order", *chosen, *OPTIONS)
    folder = place / "order" / "chosen"
    assert {file.name for file in folder.iterdir()} == FILES
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert {row["features"] for row in found} == {"quarters", "identity"}
    names = {f"order-{arm}-1x" for arm in ("facm", "tract", "ayf")}
    assert {row["entry"] for row in found} == {"teacher", *names}, "no teacher that nobody starts from"
    assert {row["at_images"] for row in found if row["entry"] == "order-tract-1x"} == {None, 32, 64, 96}
    said = (folder / "table.md").read_text()
    assert "## Two feature spaces" in said
    assert "## Over the run" in said
    assert "minus the row that it is compared with" in (folder / "report.html").read_text()
    capsys.readouterr()
    command("mine.py:chosen", "--seeds", 0, "--out", "order", *chosen, *OPTIONS)
    assert "training begins" not in capsys.readouterr().out, "what is finished is not done again"


def test_the_studies_are_listed_each_with_a_line(capsys):
    cli.main(["show", "studies"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")][:-1] == list(STUDIES)
    assert lines[lines.index("weights") + 1].strip().startswith("Table 4: ")
    assert lines[-1] == "facm study NAME; its options: facm study --help"
