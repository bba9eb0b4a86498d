"""The demo: one command, from nothing to numbers and pictures, that can be interrupted and shown again."""

import dataclasses
import functools
import json
import re
import signal

import pytest
from PIL import Image

from facm import cli
from facm.evaluation.classifier import SmallClassifier
from facm.networks.lightning_dit import LightningDiT
from facm.recipes import digits
from facm.runs.config import Intervals
from facm.runs.folder import open_run
from facm.studies import demo
from tests.training.run_parts import Crash, before_step, contents, crash_at, signal_at

NETWORK = LightningDiT(input_size=8, patch_size=4, in_channels=1, hidden_size=16, depth=1, num_heads=2, num_classes=10)
KEYS = {"teacher", "student", "accuracy", "reference_floor", "seconds"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The demo's own recipes with a tiny network and few images, samples and epochs."""

    def shortened(recipe, images):
        def short(*arguments, **options):
            run = recipe(*arguments, images=images, **options)
            return dataclasses.replace(run, every=Intervals(log=256, checkpoint=256, ema_snapshots=0))

        return short

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FACM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patched.setattr(digits, "NETWORK", NETWORK)
        patched.setattr(demo, "digits_teacher", shortened(digits.digits_teacher, 768))
        patched.setattr(demo, "digits_student", shortened(digits.digits_student, 512))
        patched.setattr(demo, "SAMPLES", 64)
        patched.setattr("facm.evaluation.evaluator.SmallClassifier", functools.partial(SmallClassifier, epochs=1))
        yield patched


@pytest.fixture(scope="module")
def done(small, tmp_path_factory):
    """(folder, what was printed): one finished demo."""
    import contextlib
    import io

    out, said = tmp_path_factory.mktemp("demo") / "out", io.StringIO()
    with contextlib.redirect_stdout(said):
        cli.main(["demo", "--out", str(out)])
    return out, said.getvalue()


def test_the_summary_has_every_number(done):
    summary = json.loads((done[0] / "summary.json").read_text())
    assert summary.keys() >= KEYS
    assert set(summary["teacher"]) == {"1", "2", "4", "8", "32"}
    assert set(summary["student"]) == {"1", "2", "4", "8"}
    assert set(summary["seconds"]) == {"teacher", "distill", "evaluate", "total"}
    assert {who: set(column) for who, column in summary["accuracy"].items()} == {
        who: set(summary[who]) for who in ("teacher", "student")
    }
    numbers = [*summary["teacher"].values(), *summary["student"].values(), summary["reference_floor"]]
    assert all(isinstance(number, float) and number > 0 for number in numbers)
    parts = summary["seconds"]
    assert parts["total"] == pytest.approx(parts["teacher"] + parts["distill"] + parts["evaluate"], abs=0.11)


def test_the_numbers_are_those_of_the_evaluations(done):
    summary = json.loads((done[0] / "summary.json").read_text())
    for who in ("teacher", "student"):
        rows = [json.loads(line) for line in (done[0] / who / "evaluations.jsonl").read_text().splitlines()]
        assert {str(row["nfe"]): row["frechet_distance"] for row in rows} == summary[who]
        assert {str(row["nfe"]): row["accuracy"] for row in rows} == summary["accuracy"][who]


def test_the_report_needs_nothing_but_itself(done):
    page = (done[0] / "report.html").read_text()
    sources = re.findall(r"(?:src|href)\s*=\s*['\"]?([^'\" >]+)", page)
    assert len(sources) >= 8  # real digits, three grids of each network, the curves
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in page
    assert "@import" not in page
    summary = json.loads((done[0] / "summary.json").read_text())
    for who in ("teacher", "student"):
        for steps, distance in summary[who].items():
            assert f"<td>{who}</td><td>{steps}</td><td>{distance:.3f}</td>" in page
    with Image.open(done[0] / "samples.png") as sheet:
        assert min(sheet.size) > 100


def test_it_says_how_it_goes_and_what_came_out(done):
    out, said = done
    assert "student, 1 step: Frechet distance" in said
    assert "class accuracy" in said
    assert f"report: {out / 'report.html'}" in said


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"out = .*file is not a folder"):
        demo.run_demo(tmp_path / "file", seed=0, quiet=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_finished_demo_is_shown_again_and_untouched(done, small, capsys):
    out, _ = done
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    with before_step(lambda images: pytest.fail("it trains again")):
        cli.main(["demo", "--out", str(out)])
    said = capsys.readouterr().out
    assert "holds a finished demo" in said
    assert "Frechet distance" in said
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_a_finished_demo_of_another_seed_is_refused(done, small, capsys):
    out, _ = done
    with pytest.raises(SystemExit) as end:
        cli.main(["demo", "--out", str(out), "--seed", "5"])
    assert end.value.code == 2
    assert "not seed 5" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_demo_goes_on_and_ends_with_the_same_networks(done, small, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["demo", "--out", str(out), "--quiet"]
    with before_step(signal_at(384, signal.SIGTERM)):
        cli.main(command)  # the teacher; exit code 0
    assert "the same command goes on from there" in capsys.readouterr().out
    assert not (out / "student").exists()
    with pytest.raises(Crash), before_step(crash_in("student", 384, out)):
        cli.main(command)
    with small.context() as patched:
        patched.setattr(demo, "evaluate", raise_crash)
        with pytest.raises(Crash):
            cli.main(command)
    with before_step(lambda images: pytest.fail("it trains again")):
        cli.main(command)
    for who in ("teacher", "student"):
        assert contents(open_run(out / who)[0])["log"] == contents(open_run(done[0] / who)[0])["log"]
    first, second = (json.loads((path / "summary.json").read_text()) for path in (done[0], out))
    assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in second.items() if k != "seconds"}


def crash_in(part, clock, out):
    return lambda images: crash_at(clock)(images) if (out / part).exists() else None


def raise_crash(*arguments, **options):
    raise Crash


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["demo", *map(str, arguments)])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("mine")
    assert f"--out {tmp_path} is in use by something else" in refused(capsys, "--out", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_a_demo_begun_with_another_seed_is_refused(small, tmp_path, capsys):
    out = tmp_path / "out"
    with before_step(signal_at(0, signal.SIGTERM)):
        cli.main(["demo", "--out", str(out), "--quiet"])
    assert "a demo begun with {'seed': 0}, not seed 1" in refused(capsys, "--out", out, "--seed", 1)


def test_an_impossible_seed_leaves_no_folder(tmp_path, capsys):
    assert "seed = -1, expected an integer within" in refused(capsys, "--out", tmp_path / "out", "--seed", -1)
    assert not (tmp_path / "out").exists()


def test_a_kill_while_a_run_folder_was_made_is_no_obstacle(small, tmp_path):
    out = tmp_path / "out"
    with before_step(signal_at(0, signal.SIGTERM)):
        cli.main(["demo", "--out", str(out), "--quiet"])
    for file in ("run.json", ".lock", "sessions.jsonl"):
        (out / "teacher" / file).unlink()
    for file in (out / "teacher" / "checkpoints").iterdir():
        file.unlink()
    (out / "teacher" / "checkpoints").rmdir()
    assert {p.name for p in (out / "teacher").iterdir()} == {"environment.json"}
    with before_step(signal_at(0, signal.SIGTERM)):
        cli.main(["demo", "--out", str(out), "--quiet"])
    assert open_run(out / "teacher")[0].checkpoints()
