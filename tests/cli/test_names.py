"""Names of runs, files and terms that would act on the terminal, or on the library that draws on it."""

import contextlib
import json
import re
from pathlib import Path

import pytest

from facm.core.terminal import plain
from tests.cli.cli_parts import RECIPES, command, ended, refused

NAMES = ["a\x1b[31mb", "[red]a[/red]", "a[/bold]", "a\nerror: b", "a\u202eb", "a\udcffb", "Ünï→ø"]
NAMES += ['it\'s "q"', "%s{0}$x", "a.py:b"]
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def said_by(capsys):
    said = capsys.readouterr()
    assert UNSEEN.search(said.out + said.err) is None
    assert "error: b\n" not in (said.out + said.err).splitlines(keepends=True)
    return said.out + said.err


@pytest.mark.parametrize("name", NAMES)
def test_names_of_runs_reach_the_terminal_harmlessly(recipes, capsys, name):
    command("train", "mine.py:moons", "--out", name)
    command("show", name)
    command("resume", name)
    command("evaluate", name, "--num-steps", 1, "--num-samples", 4)
    command("weights", "export", name, "--out", f"{name}.safetensors")
    for words in (["train", "mine.py:moons", "--out", name], ["sample", f"no{name}"], ["show", f"{name}/no"]):
        with pytest.raises(SystemExit) as exit_:
            command(*words)
        assert exit_.value.code == 2
    assert plain(name) in said_by(capsys)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_recipe_files_reach_the_terminal_harmlessly(recipes, capsys, name):
    name = name.replace("/", "|")
    (recipes / f"{name}.py").write_text(RECIPES.replace("Two moons.", "Two \\x1b[31mmoons\\u202e."))
    spec = f"{name}.py:moons"
    with contextlib.suppress(SystemExit):
        command("train", spec, "--help")
    command("show", spec)
    command("train", spec, "--out", "new", "--dry-run")
    command("train", spec, "--out", "new")
    command("show", "new")
    with pytest.raises(SystemExit):
        command("train", f"{name}.py:none")
    assert "Two ?[31mmoons?" in said_by(capsys)


@pytest.mark.parametrize(
    "record",
    [
        {"\x1b[1m[red]loss[/red]": 1.0},
        {"[/bold]": 2},
        {"loss": "\x1b[31mtext"},
        {"loss": None},
        {"loss": [1, "\u202e"]},
    ],
)
def test_terms_of_a_log_are_shown_as_they_are(recipes, capsys, record):
    command("train", "mine.py:moons", "--out", "run", "--quiet")
    log = Path("run") / "log.jsonl"
    log.write_text(json.dumps({"images": 64} | record) + "\n")
    command("show", "run")
    ((name, value),) = record.items()
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    assert f"last log record: images 64, {plain(name)} {plain(shown)}\n" in said_by(capsys)


@pytest.mark.parametrize("word", ["\x1b[31mred", "\u202ered", "[/bold]", "\x9bred"])
def test_words_of_the_command_line_that_an_error_quotes(recipes, capsys, word):
    for words in (
        ["show", word],
        [word],
        ["train", word],
        ["train", "mine.py:moons", f"--{word}"],
        ["train", "mine.py:moons", "--images", word],
        ["train", f"mine.py:{word}"],
        ["sample", word, "--num-steps", word],
    ):
        code, _ = ended(capsys, *words) if word.startswith("[") else (None, None)
        if code is None:
            with pytest.raises(SystemExit) as exit_:
                command(*words)
            code = exit_.value.code
            said_by(capsys)
        assert code == 2


def test_an_error_names_what_it_quotes(capsys):
    assert "?[31mnothing is not a run folder" in refused(capsys, "sample", "\x1b[31mnothing")
