"""What reaches the terminal: no control characters from names, and nothing where the reader is gone."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from facm.cli.terminal import READER_GONE, marked, plain
from tests.cli.cli_parts import command, refused

ESCAPES = "\x1b[31mred\x1b]0;title\x07\x9b2J\x7f\r"


def test_control_characters_become_question_marks():
    assert plain(ESCAPES) == "?[31mred?]0;title??2J??"
    assert plain("Fréchet ± 1\n") == "Fréchet ± 1?"
    assert plain("a\nb\x1b", keep="\n") == "a\nb?"


def test_markup_is_printed_as_it_is():
    text = io.StringIO()
    Console(file=text, force_terminal=True, highlight=False).print(marked("[red]a[/red] \x1b[1m"), end="")
    assert text.getvalue() == "[red]a[/red] ?[1m"


@pytest.mark.parametrize("name", ["a\x1b[31mb", "[red]a[/red]", "a[/bold]"])
def test_names_of_runs_reach_the_terminal_harmlessly(recipes, capsys, name):
    command("train", "mine.py:moons", "--out", name)
    command("show", name)
    command("resume", name)
    command("evaluate", name, "--num-steps", 1, "--num-samples", 4)
    refused(capsys, "train", "mine.py:moons", "--out", name)
    refused(capsys, "sample", name)
    command("weights", "export", name, "--out", f"{name}.safetensors")
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert plain(name) in said.out
    log = Path(name) / "log.jsonl"
    record = json.loads(log.read_text().splitlines()[-1])
    log.write_text(json.dumps(record | {"\x1b[1m[red]loss[/red]": 1.0}) + "\n")
    command("show", name)
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "?[1m[red]loss[/red] 1" in said


def test_an_error_that_quotes_a_name_has_no_control_characters(capsys):
    assert "\x1b" not in refused(capsys, "show", "\x1b[31mnothing")
    assert "?[31mnothing is not a run folder" in refused(capsys, "sample", "\x1b[31mnothing")


def without_reader(*arguments, cwd):
    """Exit status and errors of a command whose reader closes the pipe at once."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "facm", *arguments], cwd=cwd, stdout=closed, stderr=subprocess.PIPE, check=False
        )
    return done.returncode, done.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", ["-h", "train -h", "list", "show digits-teacher", "train digits-teacher --print-config", "--version"]
)
def test_a_reader_that_goes_away_ends_a_command_quietly(tmp_path, words):
    assert without_reader(*words.split(), cwd=tmp_path) == (READER_GONE, "")


@pytest.mark.slow
def test_head_ends_a_command_quietly(tmp_path):
    facm = f"{sys.executable} -m facm"
    done = subprocess.run(f"{facm} -h | head -1", shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("usage: facm COMMAND [OPTIONS]\n", "")
