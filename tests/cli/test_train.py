"""facm train and facm resume: what reaches the run, what is refused, and how it is printed."""

import json
import re
import signal
from pathlib import Path

import pytest
from PIL import Image

from facm.runs.folder import open_run
from facm.training.finite import NonFiniteError
from tests.cli.cli_parts import OVERRIDES, RECIPES, command, refused
from tests.core.core_parts import held_elsewhere
from tests.training.run_parts import before_step, contents, signal_at


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
    command("evaluate", "runs/moons", "--num-steps", 1, "--num-samples", 8, "--quiet")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_not_quiet_says_how_it_goes_and_how_it_ended(recipes, capsys):
    command("train", "mine.py:moons")
    said = capsys.readouterr().out
    assert re.search(r"moons: 64/64 images, loss \d\.\d+, \d+ images/s, 0 s left", said)
    assert re.search(r"done: 64 images in \d+ s, 0 steps skipped: runs/moons", said)


def test_the_first_line_names_the_folder(recipes, capsys):
    command("train", "mine.py:moons", "--out", "a", "--device", "cpu")
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "training mine.py:moons in a: 64 images in steps of 16, on cpu in fp32"


@pytest.mark.parametrize(
    "words",
    [
        "mine.py:moons --out a --quiet --images 32 --width 4",
        "--out a --quiet --images 32 --width 4 mine.py:moons",
        "--quiet mine.py:moons --images 32 --out=a --width 4",
        "--images 32 mine.py:moons --width 4 --out a --quiet",
        "--images=32 --width=4 --out=a --quiet mine.py:moons",
        "--run.optimizer.betas 0.9 0.99 mine.py:moons --quiet --images 32 --width 4 --out a",
        "--engine.checkpointing mine.py:moons --quiet --images 32 --width 4 --out a",
        "--out a --no-quiet mine.py:moons --quiet --images 32 --width 4",
    ],
)
def test_options_may_stand_before_the_recipe(recipes, words):
    command("train", *words.split())
    _, run = open_run(Path("a"))
    assert (run.images, run.network.width) == (32, 4)


def test_the_value_of_an_option_is_no_recipe(recipes, capsys):
    command("train", "--out", "digits-teacher", "mine.py:moons", "--quiet", "--images", 16)
    assert open_run(Path("digits-teacher"))[1].images == 16
    assert "expected a recipe, as in facm train digits-teacher" in refused(capsys, "train", "--out", "mine.py:moons")
    assert "unknown recipe 'moon'" in refused(capsys, "train", "--quiet", "moon")
    assert "unknown recipe 'moon'" in refused(capsys, "train", "moon", "--out", "mine.py:moons")


def test_a_plan_takes_options_before_the_recipe(recipes, capsys):
    command("plan", "--gpus", 2, "--on", "cpu", "mine.py:moons", "--images", 32)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mine.py:moons on 2 x 80 GB, ddp, 8 images at once"
    assert [line.split()[0] for line in lines[1:3]] == ["parameters", "gradients"]
    assert lines[-1].startswith("total")
    assert "?" not in "".join(lines)


def test_a_dry_run_checks_everything_and_writes_nothing(runs, recipes, capsys):
    before = sorted(recipes.iterdir())
    student = ["digits-student", "--teacher", runs / "teacher", *OVERRIDES, "--images", 96]
    command("train", *student, "--out", "a", "--dry-run")
    said = capsys.readouterr().out
    for part in (
        "data: Digits, 1797 samples of shape (1, 8, 8)",
        "network: LightningDiT, 10,612 parameters; initial weights: FromRun(path=",
        f"teacher: FromRun(path='{runs / 'teacher'}', sigma_rel=0.05",
        "run: 96 images in steps of 16, on cpu in fp32, engine alone",
        "would write to a: run.json",
        "checkpoints: 3, of which the newest 2 stay; EMA snapshots: 12",
        "nothing was written",
    ):
        assert part in said
    assert sorted(recipes.iterdir()) == before
    for options, words in (
        (["--teacher", "nowhere"], "nowhere is not a run folder"),
        (["--run.network.depth", 2], "does not fit LightningDiT"),
        (["--run.batch-size", 15, "--engine.accumulate", 2], "expected a multiple of"),
        (["--run.objective.condition.classes", 3], "data with 10 classes"),
    ):
        assert words in refused(capsys, "train", *student, "--dry-run", *options)
    assert sorted(recipes.iterdir()) == before


def test_a_dry_run_names_a_folder_in_use_and_where_a_run_goes_on(recipes, capsys):
    command("train", "mine.py:moons", "--quiet", "--out", "a")
    before = contents(open_run(Path("a"))[0])
    words = refused(capsys, "train", "mine.py:moons", "--out", "a", "--dry-run")
    assert "--out a is in use and is never overwritten" in words
    command("train", "mine.py:moons", "--out", "a", "--dry-run", "--resume")
    assert "would go on in a from 64 of 64 images" in capsys.readouterr().out
    words = refused(capsys, "train", "mine.py:moons", "--out", "a", "--dry-run", "--resume", "--run.seed", 1)
    assert "holds another run than this command's (seed differ)" in words
    assert contents(open_run(Path("a"))[0]) == before


def test_the_configuration_is_printed_as_it_would_be_stored(recipes, capsys):
    command("train", "--print-config", "mine.py:moons", "--images", 32, "--precision", "bf16", "--run.seed", 3)
    printed = json.loads(capsys.readouterr().out)
    assert [path.name for path in recipes.iterdir() if path.name != "__pycache__"] == ["mine.py"]
    command("train", "mine.py:moons", "--images", 32, "--precision", "bf16", "--run.seed", 3, "--quiet")
    assert json.loads(Path("runs/moons/run.json").read_text())["run"] == printed
    assert (printed["images"], printed["precision"], printed["seed"]) == (32, "bf16", 3)


def test_precision_is_part_of_the_run_and_used(recipes):
    for precision in ("fp32", "bf16"):
        command("train", "mine.py:moons", "--quiet", "--out", precision, "--precision", precision)
    fp32, bf16 = (open_run(Path(name))[0] for name in ("fp32", "bf16"))
    assert [open_run(folder.path)[1].precision for folder in (fp32, bf16)] == ["fp32", "bf16"]
    assert [json.loads(folder.sessions.read_text())["precision"] for folder in (fp32, bf16)] == ["fp32", "bf16"]
    assert contents(fp32) != contents(bf16)


def test_a_device_that_is_not_there_is_named_before_there_is_a_folder(recipes, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for device, words in (
        ("cuda", "--device cuda, and PyTorch sees no GPU"),
        ("cuda:1", "--device cuda:1, and PyTorch sees no GPU"),
        ("tpu", "--device tpu, expected auto, cpu, cuda"),
    ):
        assert words in refused(capsys, "train", "mine.py:moons", "--device", device)
    assert not Path("runs").exists()
    command("train", "mine.py:moons", "--device", "cpu", "--quiet")
    assert "--device cuda, and PyTorch" in refused(capsys, "resume", "runs/moons", "--device", "cuda")
    command("resume", "runs/moons", "--device", "cpu", "--quiet")


def test_errors_of_the_library_name_options(recipes, capsys):
    words = refused(capsys, "train", "mine.py:moons", "--engine.accumulate", 3)
    assert "--run.batch-size 16 over 1 ranks with --engine.accumulate 3" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits-techer"], "unknown recipe 'digits-techer': did you mean digits-teacher"),
        (["digits-teacher", "--imagse", "5"], "unknown option '--imagse': did you mean --images?"),
        (
            ["digits-teacher", "--run.bacth-size", "5"],
            "unknown option '--run.bacth-size': did you mean --run.batch-size?",
        ),
        (["digits-teacher", "--images", "many"], "Error parsing --images: invalid literal"),
        (["digits-teacher", "--images", "0"], "--run.images 0, expected an integer within [1, "),
        (["digits-teacher", "--run.images", "0"], "--run.images 0, expected an integer within [1, "),
        (["digits-teacher", "--seed", "-1"], "--run.seed -1, expected an integer within [0, "),
        (
            ["digits-teacher", "--run.optimizer.lr", "nan"],
            "error: --run.optimizer.lr nan, expected a number",
        ),
        (["digits-teacher", "--run.precision", "fp16"], "invalid choice 'fp16' for argument '--run.precision'"),
        (
            ["digits-teacher", "--run.network.num-heads", "5"],
            "expected a multiple of num_heads = 5",
        ),
        (["digits-teacher", "--run.objective.condition.classes", "3"], "data with 10 classes, condition = Labels"),
        (["digits-student", "--guidance-scale", "0.5"], "Guidance: scale = 0.5, expected a number within [1, 1e12]"),
        (["digits-student", "--teacher", "nowhere"], "nowhere is not a run folder: it has no run.json"),
        (["digits-student"], "runs/digits-teacher is not a run folder"),
        (["mine.py:moon"], "did you mean moons?"),
        (["mine.py:_private"], "with one of moons, broken, needs, pictures, nothing, clash"),
        (["mine.py"], "expected mine.py:FUNCTION, with one of moons"),
        (["yours.py:moons"], "there is no file yours.py"),
        (["folder.py:moons"], "folder.py is a folder, expected a regular file"),
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


def test_a_folder_of_another_process_is_not_taken_away(recipes, capsys):
    """One that is being made, which holds its lock alone, and one that has a run."""
    for words in (["--out", "a"], ["--out", "a", "--resume"]):
        Path("a").mkdir(exist_ok=True)
        with held_elsewhere(Path("a")):
            assert "a is in use by another process" in refused(capsys, "train", "mine.py:moons", *words)
        assert [path.name for path in Path("a").iterdir()] == [".lock"]
    command("train", "mine.py:moons", "--out", "a", "--quiet")
    before = contents(open_run(Path("a"))[0])
    with held_elsewhere(Path("a")):
        assert "a is in use" in refused(capsys, "train", "mine.py:moons", "--out", "a", "--resume")
        assert "a is in use" in refused(capsys, "resume", "a")
    assert contents(open_run(Path("a"))[0]) == before


def test_resuming_a_finished_run_says_that_it_is_done(runs, capsys):
    command("resume", runs / "teacher")
    assert "done: 64 images" in capsys.readouterr().out
