"""Help: short, quick, and with a line for every option."""

import contextlib
import dataclasses
import functools
import inspect
import io
import re
import subprocess
import sys

import pytest

from facm import cli
from facm.cli.lookup import find_recipe
from facm.cli.lookup import recipes as all_recipes
from facm.cli.main import COMMANDS, OLD_NAMES
from tests.cli.cli_parts import ended, help_of

LONGEST = 200
OF_RECIPES = [("train", name) for name in all_recipes()]
OF_COMMANDS = [tuple(name.split()) for name in COMMANDS]


@functools.cache
def printed(*words):
    """A help text as it is printed, 80 columns wide."""
    text = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patched,
        contextlib.redirect_stdout(text),
        contextlib.suppress(SystemExit),
    ):
        patched.setenv("COLUMNS", "80")
        cli.main(list(words))
    return text.getvalue()


def options_in(text):
    """The help of every option in a help text, without its default."""
    found, last = {}, None
    for line in text.splitlines():
        content = line.strip("│").rstrip().removeprefix("  ")
        if content.startswith("---"):
            last = None
        elif content.startswith("-"):
            invocation, _, help_ = content.partition("  ")
            last = re.split(r"[ ,]", invocation)[0]
            found[last] = help_.strip()
        elif last is not None and content.startswith("  "):
            found[last] += " " + content.strip()
    hint = re.compile(r"\s*\((default|required|fixed to)\b.*\)$")
    return {name: hint.sub("", help_).strip() for name, help_ in found.items()}


def faults(*words):
    """Options without a help text, or with one that is too long."""
    found = options_in(printed(*words, "--help-all"))
    assert "-h" in found
    return [f"{name}: {help_ or 'no help text'}" for name, help_ in found.items() if not help_ or len(help_) > LONGEST]


def of_component(name):
    """Whether an option belongs to a component of a run, such as its network."""
    return re.match(r"--run\.(?!every)[a-z]+\.", name) is not None


@pytest.mark.parametrize("words", OF_COMMANDS, ids=" ".join)
def test_every_option_of_every_command_has_a_help_text(words):
    assert faults(*words) == []


@pytest.mark.parametrize("words", [*OF_RECIPES, ("plan", "digits-student")], ids=" ".join)
def test_every_option_of_every_recipe_of_the_run_and_of_the_engine_has_a_help_text(words):
    found = options_in(printed(*words, "--help-all"))
    assert {"--out", "--gpus"} & found.keys()
    assert {"--run.batch-size", "--batch-size"} & found.keys()
    assert {"--run.every.log", "--engine.parallel"} <= found.keys()
    assert [fault for fault in faults(*words) if not of_component(fault)] == []


def test_every_option_of_every_component_has_a_help_text():
    missing = {fault for words in OF_RECIPES for fault in faults(*words) if of_component(fault)}
    assert not missing, "\n".join(sorted(missing))


def test_comments_in_the_source_are_no_help(recipes):
    text = (recipes / "mine.py").read_text()
    (recipes / "mine.py").write_text(
        text.replace(
            "condition: Labels = Labels(2)", "condition: Labels = Labels(2)  # Table 5\n    p: float = 1.0  # d_1"
        )
    )
    said = printed("train", "mine.py:broken", "--help-all")
    assert "--run.objective.p" in said
    assert "d_1" not in said
    assert "Table 5" not in said


@pytest.mark.parametrize("words", OF_RECIPES, ids=" ".join)
def test_each_number_of_a_recipe_has_one_option(words):
    """What a recipe passes on to its run as it is, has no second option in the help."""
    function = find_recipe(words[1]).function
    found = options_in(printed(*words, "--help-all"))
    assert {"--images", "--seed", "--precision"} <= found.keys()
    assert not {"--run.images", "--run.seed", "--run.precision"} & found.keys()
    for name in ("latents", "path"):
        if name in function.__code__.co_varnames[: function.__code__.co_argcount]:
            assert f"--{name}" in found
            assert "--run.data.path" not in found
    scale = inspect.signature(function).parameters.get("guidance_scale")
    if scale is not None and scale.default != 0:  # which stands for another number
        assert "--run.objective.velocity.guidance.scale" not in found


def test_what_the_help_hides_is_still_parsed(recipes, capsys):
    hidden = ["--run.images", "32", "--run.seed", "3", "--run.precision", "bf16"]
    cli.main(["train", "mine.py:moons", *hidden, "--print-config"])
    said = capsys.readouterr().out
    assert all(part in said for part in ('"images": 32', '"seed": 3', '"precision": "bf16"'))


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], *([*words, "-h"] for words in OF_COMMANDS)], ids=" ".join)
def test_help_is_exit_status_0(capsys, words):
    assert "usage: facm" in help_of(capsys, *words)


def test_the_first_help_has_a_line_for_each_command_and_two_examples(capsys):
    text = printed("-h")
    for name, command in COMMANDS.items():
        assert len(re.findall(rf"^  {name} +{re.escape(command.summary)}$", text, re.MULTILINE)) == 1
    assert len(re.findall(r"^  facm ", text, re.MULTILINE)) == 2
    assert not any(re.search(rf"^ +{name}\b", text, re.MULTILINE) for name in OLD_NAMES.keys() - COMMANDS)


def test_the_help_of_a_recipe_has_its_options_and_the_commands(recipes, capsys):
    said = help_of(capsys, "train", "mine.py:moons", "--help")
    for part in ("Two moons.", "--width INT", "of the network. (default: 8)", "--out", "--quiet"):
        assert part in said
    assert "--run." not in said
    assert "--engine." not in said
    assert "All options: facm train mine.py:moons --help-all" in said
    said = help_of(capsys, "train", "mine.py:moons", "--help-all")
    for part in ("--width INT", "--run.optimizer.lr FLOAT", "--engine.parallel"):
        assert part in said


@pytest.mark.parametrize("what", ["sample", "evaluate"])
def test_options_of_files_and_emas_are_behind_help_all(capsys, what):
    short, whole = (help_of(capsys, what, size) for size in ("-h", "--help-all"))
    for part in ("--num-steps", "--num-samples", "--batch-size", "--guidance-scale", "--device", "--precision"):
        assert part in short
    for part in ("--ema", "--raw", "--family", "--latent-stats", "--guidance-low"):
        assert part not in short
        assert part in whole
    for old in ("--nfe", "--n ", "--batch ", "--from"):
        assert old not in whole


def test_a_group_of_commands_has_help_of_its_own(capsys):
    for words in (["latents"], ["latents", "-h"]):
        said = help_of(capsys, *words)
        assert "latents encode" in said
        assert "weights export" not in said


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("trian", "unknown command 'trian': did you mean train?"),
        ("--verison", "unknown option '--verison': did you mean --version?"),
        ("xyz", "unknown command 'xyz': expected one of demo, list, show, train, resume"),
        ("latents encdoe", "unknown command 'latents encdoe': did you mean latents encode"),
        ("weights xyz", "unknown command 'weights xyz': did you mean weights export or weights import?"),
        ("sample --num-stpes 3 x", "unknown option '--num-stpes': did you mean --num-steps?"),
        ("sample x --num-stpes=3", "unknown option '--num-stpes': did you mean --num-steps?"),
        ("resume x --engine.accumluate 3", "unknown option '--engine.accumluate': did you mean --engine.accumulate?"),
        ("demo --sede 3", "unknown option '--sede': did you mean --seed?"),
        ("demo --zzz", "unknown option '--zzz': facm demo --help-all lists the options"),
        ("list all", "Unrecognized options: all"),
        ("sample", "RUN|FILE"),
    ],
)
def test_a_misspelling_is_answered_with_a_suggestion(capsys, words, answer):
    code, said = ended(capsys, *words.split())
    assert code == 2
    assert answer in said
    assert "Traceback" not in said


def test_every_field_of_a_run_and_of_the_engine_is_an_option_or_a_component():
    """The walk above sees what it is to see."""
    from facm.distributed.engine import Engine
    from facm.runs.config import Intervals

    found = options_in(printed("train", "digits-teacher", "--help-all"))
    for prefix, owner in (("run.every", Intervals), ("engine", Engine)):
        for field in dataclasses.fields(owner):
            assert f"--{prefix}.{field.name.replace('_', '-')}" in found


HELP = """
import sys
from facm.cli import main
try:
    main(["--help"])
except SystemExit as done:
    heavy = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "numpy", "sklearn", "matplotlib", "PIL"})
    print(done.code, heavy, sep="|")
"""


def test_help_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    code, heavy = done.stdout.splitlines()[-1].split("|")
    assert (code, heavy) == ("0", "[]")
