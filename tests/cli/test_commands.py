"""The command line: what it does, what it refuses, and how it says so."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import facm
from facm import cli
from facm.cli.lookup import recipes as known_recipes
from facm.evaluation.classifier import SmallClassifier
from facm.runs.folder import create, open_run
from facm.training.trainer import NonFiniteError
from tests.training.run_parts import before_step, contents, flow_run, signal_at, trained

SMALL = {
    "network.hidden-size": 16,
    "network.depth": 1,
    "network.num-heads": 2,
    "batch-size": 16,
    "every.log": 16,
    "every.checkpoint": 32,
    "every.ema-snapshots": 16,
    "optimizer.lr": 0.03,  # so that a few steps make a difference
    "optimizer.warmup-images": 0,
}
OVERRIDES = [word for name, value in SMALL.items() for word in (f"--run.{name}", value)]

RECIPES = """
from dataclasses import dataclass
from facm import FlowMatching, Labels, Run
from facm.data import ImageFolder, Moons
from facm.networks.mlp import MLP

@dataclass(frozen=True)
class Broken:
    condition: Labels = Labels(2)
    def __call__(self, network, batch, rng, teacher=None):
        raise ValueError("broken at the first step")

def moons(images: int = 64, width: int = 8) -> Run:
    '''Two moons.

    Args:
        images: length of the run.
        width: of the network.
    '''
    return Run(MLP(width=width, num_classes=2), Moons(n=50), FlowMatching(Labels(2)), images, 16)

def broken() -> Run:
    return Run(MLP(width=8, num_classes=2), Moons(n=50), Broken(), 64, 16)

def needs(images: int) -> Run:
    return moons(images)

def pictures(path: str) -> Run:
    return Run(MLP(width=8, num_classes=2), ImageFolder(path, 8), FlowMatching(Labels(2)), 64, 16)

def nothing():
    return 3

def clash(out: str = "x"):
    return moons()

def _private():
    return moons()
"""


def command(*arguments):
    cli.main([str(a) for a in arguments])


def refused(capsys, *arguments):
    """The words of an error: exit code 2, nothing on stdout, no traceback; boxes and line breaks taken out."""
    with pytest.raises(SystemExit) as exit_:
        command(*arguments)
    said = capsys.readouterr()
    words = " ".join(re.sub("[─│╭╮╰╯]", " ", said.out + said.err).split())
    assert exit_.value.code == 2, words
    assert "Traceback" not in words
    assert "unexpected" not in words
    return words


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory):
    """A judge trained for a moment, kept out of the user's cache."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FACM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patched.setattr("facm.evaluation.evaluator.SmallClassifier", functools.partial(SmallClassifier, epochs=1))
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A teacher and a student of digits, trained by the command line for a few steps."""
    root = tmp_path_factory.mktemp("runs")
    command("train", "digits-teacher", "--images", 64, "--out", root / "teacher", "--quiet", *OVERRIDES)
    teacher = ("--teacher", root / "teacher")
    command("train", "digits-student", *teacher, "--images", 48, "--out", root / "student", "--quiet", *OVERRIDES)
    return root


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(RECIPES)
    return tmp_path


# --- train -----------------------------------------------------------------------------------------------------------


def test_options_of_a_recipe_and_of_the_run_reach_the_run(runs):
    _, run = open_run(runs / "teacher")
    assert (run.images, run.batch_size, run.network.hidden_size, run.network.depth) == (64, 16, 16, 1)
    assert (run.every.log, run.every.checkpoint, run.every.ema_snapshots, run.every.keep) == (16, 32, 16, 2)
    record = json.loads((runs / "teacher" / "run.json").read_text())
    assert record["recipe"] == "digits-teacher"
    assert record["run"]["network"]["hidden_size"] == 16
    _, student = open_run(runs / "student")
    assert student.teacher.path == student.initial.path == str(runs / "teacher")


def test_a_run_leaves_everything_it_promises(runs):
    names = {p.name for p in (runs / "teacher").iterdir()}
    assert {"run.json", "environment.json", "sessions.jsonl", "log.jsonl", "checkpoints", "ema", "samples"} <= names
    with Image.open(runs / "teacher" / "samples" / f"{64:012d}.png") as grid:
        assert grid.size[0] > grid.size[1] > 32


def test_overrides_go_before_the_recipes_own_defaults_and_options_before_those(recipes):
    command("train", "mine.py:moons", "--out", "a", "--quiet", "--images", 32, "--run.network.width", 4)
    _, run = open_run(recipes / "a")
    assert (run.images, run.network.width) == (32, 4)


def test_a_recipe_in_a_file_is_copied_and_resumed_without_it(recipes, capsys):
    with before_step(signal_at(16, signal.SIGTERM)):
        command("train", "mine.py:moons", "--quiet", "--run.network.depth", 1)
    assert "SIGTERM: saved at 32 of 64 images; go on with: facm resume runs/moons" in capsys.readouterr().out
    (recipes / "mine.py").unlink()
    command("resume", "runs/moons")
    assert "done: 64 images" in capsys.readouterr().out
    assert (recipes / "runs" / "moons" / "recipe.py").read_text() == RECIPES


def test_a_second_ctrl_c_ends_without_a_traceback(recipes, capsys):
    with pytest.raises(SystemExit) as exit_, before_step(signal_at(16, signal.SIGINT, times=2)):
        command("train", "mine.py:moons", "--quiet")
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_recipe_that_needs_arguments_takes_them(recipes, capsys):
    command("train", "mine.py:needs", "--images", 16, "--quiet", "--out", "a", "--run.seed", 4)
    assert open_run(recipes / "a")[1].seed == 4
    assert "--images" in refused(capsys, "train", "mine.py:needs", "--out", "b")


def test_quiet_prints_nothing(recipes, capsys):
    command("train", "mine.py:moons", "--quiet")
    command("resume", "runs/moons", "--quiet")
    command("evaluate", "runs/moons", "--nfe", 1, "--n", 8, "--quiet")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_not_quiet_says_how_it_goes_and_how_it_ended(recipes, capsys):
    command("train", "mine.py:moons")
    said = capsys.readouterr().out
    assert re.search(r"moons: 64/64 images, loss \d\.\d+, \d+ images/s, 0 s left", said)
    assert "done: 64 images in 0 s, 0 steps skipped: runs/moons" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits-techer"], "unknown recipe 'digits-techer': did you mean digits-teacher"),
        (["digits-teacher", "--imagse", "5"], "Perhaps you meant: --images INT"),
        (["digits-teacher", "--run.bacth-size", "5"], "Perhaps you meant: --run.batch-size INT"),
        (["digits-teacher", "--images", "many"], "Error parsing --images: invalid literal"),
        (["digits-teacher", "--images", "0"], "images = 0: zero steps train nothing"),
        (["digits-teacher", "--run.images", "0"], "images = 0: zero steps train nothing"),
        (["digits-teacher", "--seed", "-1"], "seed = -1, expected 0 or more"),
        (["digits-teacher", "--run.optimizer.lr", "nan"], "optimizer.lr = nan, expected a positive number"),
        (["digits-teacher", "--run.precision", "fp16"], "invalid choice 'fp16' for argument '--run.precision'"),
        (["digits-teacher", "--run.network.num-heads", "5"], "not a multiple of num_heads = 5"),
        (["digits-teacher", "--run.objective.condition.classes", "3"], "data with 10 classes, condition = Labels"),
        (["digits-student", "--guidance-scale", "0.5"], "guidance scale = 0.5, expected w >= 1"),
        (["digits-student", "--teacher", "nowhere"], "nowhere is not a run folder: it has no run.json"),
        (["digits-student"], "runs/digits-teacher is not a run folder"),
        (["mine.py:moon"], "did you mean moons?"),
        (["mine.py:_private"], "with one of moons, broken, needs, pictures, nothing, clash"),
        (["mine.py"], "expected mine.py:FUNCTION, with one of moons"),
        (["yours.py:moons"], "there is no file yours.py"),
        (["folder.py:moons"], "cannot read the recipe file folder.py: Is a directory"),
        (["mine.py:nothing"], "returned int, expected a facm.runs.config.Run"),
        (["mine.py:broken"], "broken at the first step"),
        (["mine.py:clash"], "has an argument 'out', an option of the command: rename it"),
        (["mine.py:pictures", "--path", "empty"], "path = 'empty' holds no images"),
        (["mine.py:pictures", "--path", "gone"], "path = 'gone', expected an existing folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_named_and_leaves_no_folder(recipes, capsys, arguments, words):
    (recipes / "empty").mkdir()
    (recipes / "folder.py").mkdir()
    assert words in refused(capsys, "train", *arguments, "--out", "new")
    assert words in refused(capsys, "train", *arguments)
    assert {p.name for p in recipes.iterdir()} - {"mine.py", "empty", "folder.py", "__pycache__"} <= {"runs"}
    assert not (recipes / "runs").exists() or not list((recipes / "runs").iterdir())


def test_a_syntax_error_and_a_missing_import_are_one_line(recipes, capsys):
    (recipes / "bad.py").write_text("def run(:\n")
    (recipes / "lacks.py").write_text("import a_package_that_is_not_there\n")
    for file, words in (("bad.py", "(bad.py, line 1)"), ("lacks.py", "No module named 'a_package_that_is_not_there'")):
        with pytest.raises(SystemExit) as exit_:
            command("train", f"{file}:run")
        said = capsys.readouterr()
        assert exit_.value.code == 2
        assert words in said.err
        assert "Traceback" not in said.err


def test_a_folder_in_use_is_never_overwritten(recipes, capsys):
    command("train", "mine.py:moons", "--quiet")
    before = contents(open_run(Path("runs/moons"))[0])
    assert "--out runs/moons is in use and is never overwritten" in refused(capsys, "train", "mine.py:moons")
    assert contents(open_run(Path("runs/moons"))[0]) == before


def test_a_run_that_got_somewhere_is_kept_when_it_fails(recipes, monkeypatch):
    def fail(images):
        if images == 48:
            raise NonFiniteError("at last")

    with pytest.raises(SystemExit), before_step(fail):
        command("train", "mine.py:moons", "--quiet", "--run.every.log", 16)
    assert (recipes / "runs" / "moons" / "run.json").exists()


def test_a_folder_of_another_process_is_not_taken_away(recipes, monkeypatch, capsys):
    import contextlib

    from facm.runs.folder import LockedError

    @contextlib.contextmanager
    def held(folder):
        raise LockedError("another process has it")
        yield

    monkeypatch.setattr("facm.training.loop.locked", held)
    assert "another process has it" in refused(capsys, "train", "mine.py:moons")
    assert (recipes / "runs" / "moons" / "run.json").exists()


def test_the_users_bug_is_shown_with_its_place_or_wholly(recipes, capsys, monkeypatch):
    (recipes / "bug.py").write_text("def run():\n    return 1 + 'x'\n")
    with pytest.raises(SystemExit):
        command("train", "bug.py:run")
    assert re.search(
        r"unexpected TypeError in .*bug.py:2 .*FACM_DEBUG=1.*\nerror: unsupported operand", capsys.readouterr().err
    )
    monkeypatch.setenv("FACM_DEBUG", "1")
    with pytest.raises(TypeError):
        command("train", "bug.py:run")


# --- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["resume", "sample", "evaluate"])
def test_a_folder_that_is_no_run_is_named(tmp_path, capsys, what):
    for path in (tmp_path, tmp_path / "gone"):
        assert f"{path} is not a run folder: it has no run.json" in refused(capsys, what, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["sample", "evaluate"])
def test_a_run_without_a_checkpoint_is_an_error(tmp_path, capsys, what):
    folder = create(tmp_path / "run", flow_run())
    assert "has no checkpoint yet" in refused(capsys, what, folder.path)


def test_resuming_a_finished_run_says_that_it_is_done(runs, capsys):
    command("resume", runs / "teacher")
    assert "done: 64 images" in capsys.readouterr().out


# --- sample ----------------------------------------------------------------------------------------------------------


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file}


def test_samples_are_a_grid_and_arrays(runs, tmp_path, capsys):
    command("sample", runs / "student", "--n", 23, "--nfe", 2, "--out", tmp_path / "new" / "x.png", "--npz")
    assert f"23 samples, Consistency with 2 evaluations: {tmp_path}/new/x.png" in capsys.readouterr().out
    images = arrays(tmp_path / "new" / "x.npz")
    assert (images["images"].shape, images["images"].dtype) == ((23, 8, 8, 3), np.uint8)
    assert images["labels"].tolist() == [i % 10 for i in range(23)]
    with Image.open(tmp_path / "new" / "x.png") as grid:
        assert grid.size == (4 * (10 * 9 - 1), 4 * (3 * 9 - 1))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(runs, tmp_path):
    for name, options in {"a": [], "b": [], "c": ["--seed", 1]}.items():
        command("sample", runs / "teacher", "--n", 6, "--nfe", 2, "--npz", "--out", tmp_path / f"{name}.png", *options)
    read = {name: (tmp_path / f"{name}.png").read_bytes() for name in "abc"}
    assert read["a"] == read["b"] != read["c"]
    one, two = arrays(tmp_path / "a.npz"), arrays(tmp_path / "b.npz")
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_samples_do_not_depend_on_how_many_are_drawn(runs, tmp_path):
    for n in (300, 7):
        command("sample", runs / "teacher", "--n", n, "--npz", "--out", tmp_path / f"{n}.png")
    many, few = (arrays(tmp_path / f"{n}.npz")["images"] for n in (300, 7))
    assert np.array_equal(many[:7], few)


def test_sampling_again_never_overwrites(runs, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs / "teacher", run)
    for _ in range(3):
        command("sample", run, "--n", 2)
    name = f"{64:012d}-euler1-seed0"
    assert {p.name for p in (run / "samples").glob("*euler*")} == {f"{name}.png", f"{name}-2.png", f"{name}-3.png"}
    out = tmp_path / "x.png"
    command("sample", run, "--n", 2, "--out", out)
    assert f"--out {out}: {out} exists and is not overwritten" in refused(capsys, "sample", run, "--n", 2, "--out", out)


def test_classes_are_repeated_in_turn(runs, tmp_path):
    options = ["--n", 5, "--classes", 3, 7, "--npz", "--out", tmp_path / "x.png"]
    command("sample", runs / "student", *options)
    assert arrays(tmp_path / "x.npz")["labels"].tolist() == [3, 7, 3, 7, 3]


def test_every_sampler_head_and_weight_gives_other_samples(runs, tmp_path):
    variants = {
        "consistency": [],
        "times": ["--times", 0, 0.7, 0.9],
        "shift": ["--shift", 3],
        "euler": ["--sampler", "euler"],
        "native": ["--sampler", "euler", "--head", "native"],
        "heun": ["--sampler", "heun"],
        "ema": ["--ema", 0.2],
        "synthesised": ["--ema", 0.1],
        "raw": ["--raw"],
        "guided": ["--guidance-scale", 3],
    }
    images = {}
    for name, options in variants.items():
        command("sample", runs / "student", "--n", 4, "--nfe", 3, "--npz", "--out", tmp_path / f"{name}.png", *options)
        images[name] = arrays(tmp_path / f"{name}.npz")["images"]
    assert all(value.shape == (4, 8, 8, 3) for value in images.values())
    assert len({value.tobytes() for value in images.values()}) == len(variants)


SAMPLING_MISTAKES = [
    (["--nfe", "0"], "--nfe 0: zero steps make no sample"),
    (["--nfe", "-1"], "--nfe -1: zero steps make no sample"),
    (["--nfe", "4", "--sampler", "heun"], "nfe = 4 with Heun, expected an odd number"),
    (["--guidance-scale", "0.5"], "guidance scale = 0.5, expected w >= 1"),
    (["--guidance-scale", "nan"], "guidance scale = nan"),
    (["--guidance-low", "0.9", "--guidance-high", "0.1"], "guidance interval = [0.9, 0.1]"),
    (["--ema", "0.7"], "sigma_rel = 0.7, expected a length in (0, 0.28]"),
    (["--ema", "0.1", "--raw"], "raw = True with sigma_rel = 0.1"),
    (["--shift", "0"], "shift = 0.0, expected a positive number"),
    (["--times", "0", "0.5", "--nfe", "3"], "times = (0.0, 0.5) for nfe = 3, expected 3 times"),
    (["--times", "0.5", "--nfe", "1"], "expected times that start at 0"),
    (["--times", "0", "0.5", "--sampler", "euler"], "--times (0.0, 0.5) with --sampler euler"),
    (["--seed", "-1"], "--seed -1, expected 0 or more"),
    (["--sampler", "euleer"], "invalid choice 'euleer' for argument '--sampler'"),
    (["--smapler", "euler"], "Perhaps you meant: --sampler"),
]


@pytest.mark.parametrize(("options", "words"), SAMPLING_MISTAKES, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("what", ["sample", "evaluate"])
def test_a_sampling_option_that_makes_no_sense_is_named(runs, capsys, monkeypatch, what, options, words):
    monkeypatch.setattr("facm.evaluation.evaluator.build_evaluator", lambda *a: pytest.fail("work before the check"))
    before = {p for p in (runs / "student").rglob("*")}
    assert words in refused(capsys, what, runs / "student", *options)
    assert {p for p in (runs / "student").rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "--n", "0"], "--n 0, expected at least one sample"),
        (["sample", "--n", "2.5"], "Error parsing --n: invalid literal"),
        (["sample", "--classes", "11"], "--classes 11, expected 0 to 9, or 10 for no class"),
        (["sample", "--classes", "3", "-1"], "--classes -1, expected 0 to 9"),
        (["sample", "--out", "grid"], "--out grid, expected a name that ends in .png"),
        (["evaluate", "--n", "1"], "--n 1, expected at least 2 samples to measure"),
        (["evaluate", "--nfe"], "--nfe is empty"),
        (["evaluate", "--nfe", "1", "0"], "--nfe 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_number_that_makes_no_sense_is_named(runs, capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, arguments[0], runs / "student", *arguments[1:])
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_drawn_or_guided_is_said(recipes, capsys):
    command("train", "mine.py:moons", "--quiet")
    assert "samples of shape (100, 2) cannot be drawn" in refused(capsys, "sample", "runs/moons")
    run = flow_run(
        data=facm.data.Checkerboard(n=64), objective=facm.FlowMatching(facm.Unconditional(), label_dropout=0.0)
    )
    folder = trained(
        recipes / "plain", facm.runs.config.dataclasses.replace(run, network=facm.networks.mlp.MLP(width=8))
    )
    assert "--classes (1,), but the network is unconditional" in refused(capsys, "sample", folder.path, "--classes", 1)
    words = refused(capsys, "evaluate", folder.path, "--guidance-scale", 2, "--n", 4)
    assert "no null condition to guide with" in words


# --- evaluate --------------------------------------------------------------------------------------------------------


def test_rows_carry_their_whole_provenance(runs, capsys):
    command("evaluate", runs / "student", "--nfe", 1, 2, "--n", 32, "--seed", 5, "--ema", 0.2)
    said = capsys.readouterr().out
    rows = [json.loads(line) for line in (runs / "student" / "evaluations.jsonl").read_text().splitlines()]
    assert [row["nfe"] for row in rows] == [1, 2]
    folder, _ = open_run(runs / "student")
    for row in rows:
        assert row["sampler"] == "consistency"
        assert (row["n"], row["n_reference"], row["seed"], row["ema"], row["images"]) == (32, 1797, 5, 0.2, 48)
        assert row["guidance"] == {"type": "facm:Guidance", "scale": 1.0, "low": 0.125, "high": 1.0}
        assert row["checkpoint"] == facm.runs.checkpoint.load(folder.checkpoints()[-1]).sha256
        assert row["features"].startswith("small-classifier-")
        assert len(row["reference"]) == 64
        assert row["versions"]["torch"] == torch.__version__
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", row["date"])
        assert row["labels"] == "balanced"
        assert row["quantised"] == "rounded to 8 bits"
        assert row["method"]["nfe"] == row["nfe"]
        assert row["threads"] == torch.get_num_threads()
        assert row["device"] == "cpu"
        assert row["run"] == str(runs / "student")
        assert np.isfinite(row["frechet_distance"])
        assert 0 <= row["accuracy"] <= 1
    assert "consistency" in said
    assert "1797 real samples" in said


def test_the_same_evaluation_gives_the_same_numbers(runs):
    for _ in range(2):
        command("evaluate", runs / "teacher", "--nfe", 2, "--n", 20, "--quiet")
    one, two = [json.loads(line) for line in (runs / "teacher" / "evaluations.jsonl").read_text().splitlines()]
    timed = ("seconds", "date")
    assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in two.items() if k not in timed}


def test_data_that_are_gone_are_named(recipes, capsys):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (recipes / "pictures" / name).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(recipes / "pictures" / name / "x.png")
    (recipes / "more.py").write_text(
        "from facm import FlowMatching, Labels, Run\n"
        "from facm.data import ImageFolder\n"
        "from facm.networks.lightning_dit import LightningDiT\n"
        "def run():\n"
        "    network = LightningDiT(8, 4, 3, 16, 1, 2, num_classes=2)\n"
        "    return Run(network, ImageFolder('pictures', 8), FlowMatching(Labels(2)), 32, 16)\n"
    )
    command("train", "more.py:run", "--quiet")
    shutil.rmtree(recipes / "pictures")
    for what in ("sample", "evaluate", "resume"):
        assert "path = 'pictures', expected an existing folder" in refused(capsys, what, "runs/run")


# --- show and help ---------------------------------------------------------------------------------------------------


def test_show_lists_the_recipes(capsys):
    command("show", "recipes")
    said = capsys.readouterr().out
    assert all(name in said for name in known_recipes())
    assert "A FACM student distilled from a digits teacher." in said


def test_show_tells_a_recipe_and_a_run(runs, recipes, capsys):
    command("show", "digits-student")
    said = capsys.readouterr().out
    assert all(part in said for part in ("FACM", "TeacherVelocity", "path = 'runs/digits-teacher'", "parameters: "))
    command("show", "mine.py:moons")
    assert "Moons" in capsys.readouterr().out
    command("show", runs / "student")
    said = " ".join(capsys.readouterr().out.split())
    assert "48 of 48 images (finished), 6 EMA snapshots" in said
    assert "last log record: images 48, loss" in said


def test_show_says_how_an_unfinished_run_goes_on(recipes, capsys):
    with before_step(signal_at(16, signal.SIGTERM)):
        command("train", "mine.py:moons", "--quiet", "--out", "[a] b")
    capsys.readouterr()
    command("show", "[a] b")
    said = " ".join(capsys.readouterr().out.split())
    assert "32 of 64 images (unfinished: facm resume [a] b)" in said


def test_show_reads_what_a_kill_left_of_the_evaluations(runs, capsys, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs / "student", run)
    (run / "evaluations.jsonl").write_text('{"nfe": 1, "samp')
    command("evaluate", run, "--nfe", 1, "--n", 4, "--quiet")
    command("show", run)
    assert "consistency" in capsys.readouterr().out


def test_show_of_what_is_nothing_is_an_error(tmp_path, capsys):
    assert f"{tmp_path} is a folder without run.json" in refused(capsys, "show", tmp_path)
    assert "did you mean digits-teacher" in refused(capsys, "show", "digits-techer")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["train", "--help"], ["evaluate", "--help"]])
def test_help_is_exit_code_0(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        command(*arguments)
    assert exit_.value.code == 0
    assert "usage: facm" in capsys.readouterr().out


def test_the_help_of_a_recipe_has_its_options_the_commands_and_the_runs(recipes, capsys):
    with pytest.raises(SystemExit) as exit_:
        command("train", "mine.py:moons", "--help")
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    for part in ("Two moons.", "--width INT", "of the network. (default: 8)", "--out", "--quiet", "--run.optimizer.lr"):
        assert part in said


def test_a_misspelt_command_names_the_commands(capsys):
    commands = "prepare, verify, train, resume, plan, sample, evaluate, statistics, export, import, show, demo"
    assert commands in refused(capsys, "trian")


TIMED_HELP = """
import resource, sys
from facm.cli import main
try:
    main(["--help"])
except SystemExit as done:
    used = resource.getrusage(resource.RUSAGE_SELF)
    heavy = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "numpy", "sklearn", "matplotlib", "PIL"})
    print(done.code, used.ru_utime + used.ru_stime, heavy, sep="|")
"""


def test_help_is_quick_and_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", TIMED_HELP], capture_output=True, text=True, check=True)
    code, seconds, heavy = done.stdout.splitlines()[-1].split("|")
    assert (code, heavy) == ("0", "[]")
    assert float(seconds) < 0.5


@pytest.mark.slow
def test_the_installed_command_refuses_without_a_traceback(tmp_path):
    script = Path(sys.executable).with_name("facm")
    if not script.exists():
        pytest.skip("the command is not installed beside this Python")
    arguments = [script, "train", "digits-student", "--guidance-scale", "0.5"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: guidance scale = 0.5, expected w >= 1 (w = 1 is no guidance)\n"
    assert list(tmp_path.iterdir()) == []
