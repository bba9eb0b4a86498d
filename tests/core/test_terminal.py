"""What is printed cannot act on the terminal, whatever text it quotes, and is printed in one place."""

import ast
import io
import os
import sys

import pytest
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from facm.core import terminal
from facm.core.terminal import console, is_terminal, plain, say, say_text, warn, warn_of_exception, warn_text
from tests.paths import ROOT

HARMFUL = {
    "escape": "\x1b[31m",
    "title": "\x1b]0;title\x07",
    "C1 introducer": "\x9b2J",
    "delete": "\x7f",
    "carriage return": "\rdone",
    "backspace": "\x08",
    "new line": "\nerror: spoofed",
    "next line": "\x85",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "form feed": "\x0c",
    "nothing": "\x00",
    "right to left": "\u202etxt.exe",
    "isolate": "\u2067",
    "Arabic mark": "\u061c",
    "space without width": "\u200b",
    "joiner": "\u200d",
    "byte order mark": "\ufeff",
    "soft hyphen": "\u00ad",
    "tag": "\U000e0041",
    "a byte that is no UTF-8": b"\xff".decode("utf-8", "surrogateescape"),
    "half a pair": "\ud83d",
}
hostile = pytest.mark.parametrize("harm", HARMFUL.values(), ids=HARMFUL)


@hostile
def test_what_could_act_on_a_terminal_becomes_a_question_mark(harm):
    made = plain(f"a{harm}b")
    assert made == f"a?{harm[1:]}b".replace("\x07", "?")
    assert len(made) == len(harm) + 2


@pytest.mark.parametrize("text", ["Fréchet ± 1", "[/bold]", ":smile:", "日本語", "→ x_1", "é́", "🙂", ""])
def test_other_text_stays_as_it_is(text):
    assert plain(text) == text


def test_characters_that_are_to_stay():
    assert plain("a\nb\tc\x1b", keep="\n\t") == "a\nb\tc?"


@hostile
def test_a_line_stays_one_line(harm, capfd):
    say(f"a{harm}b", "c\td")
    assert capfd.readouterr().out == f"{plain(f'a{harm}b')}\nc\td\n"


@hostile
def test_a_message_has_no_line_that_could_pass_for_another(harm, capfd):
    warn(f"error: a{harm}b")
    said = capfd.readouterr()
    first, *others = said.err.splitlines()
    assert first.startswith("error: a")
    assert said.err.isascii()
    assert "\x1b" not in said.err
    assert all(line.startswith("  ") for line in others)
    assert said.out == ""


def test_text_that_is_laid_out_keeps_its_lines(capfd):
    say_text("a\n\tb\x1b[1m\n")
    warn_text("c\n  d\r\n")
    assert capfd.readouterr() == ("a\n\tb?[1m\n", "c\n  d?\n")


def test_a_traceback_is_plain(capfd):
    try:
        raise ValueError("\x1b[31mred\u202e")
    except ValueError as error:
        warn_of_exception(type(error), error, error.__traceback__)
    said = capfd.readouterr().err
    assert said.startswith("Traceback (most recent call last):\n  File ")
    assert said.endswith("ValueError: ?[31mred?\n")


def table_of(text):
    table = Table("name")
    table.add_row(text)
    return table


def tree_of(text):
    tree = Tree(text)
    tree.add(text, highlight=True)
    return tree


@pytest.mark.parametrize("markup", ["[/bold]", "[red]a[/red]", "[link=x]a", ":smile:", "[", "\\[a]", "[a b=c]"])
@pytest.mark.parametrize("renderable", [str, Text, table_of, tree_of])
def test_markup_is_printed_as_it_is(markup, renderable, capsys):
    console().print(renderable(markup))
    assert markup in capsys.readouterr().out


@pytest.mark.parametrize("renderable", [str, Text, table_of, tree_of])
def test_rich_prints_plain_text_and_its_own_colours(renderable, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    console().print(renderable("a\x1b[8mb\x9bc\u202ed"), style="bold")
    said = capsys.readouterr().out
    assert "a?[8mb?c?d" in said
    assert "\x1b[1m" in said


def test_what_others_print_beside_a_bar_is_plain(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Progress(TextColumn("bar"), console=console()):
        print("a\x1b]0;title\x07\u202eb")
    said = capsys.readouterr().out
    assert "title\x07" not in said
    assert "\u202e" not in said


@pytest.mark.parametrize(
    ("isatty", "term", "expected"),
    [(True, "xterm", True), (True, "dumb", False), (True, "", False), (True, None, False), (False, "xterm", False)],
)
def test_a_terminal_whose_cursor_moves(isatty, term, expected, monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: isatty
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")  # which asks for colours, even in a file
    monkeypatch.delenv("TERM", raising=False)
    if term is not None:
        monkeypatch.setenv("TERM", term)
    assert is_terminal() is (expected or (term is None and isatty and os.name != "posix"))


@pytest.mark.parametrize(
    "file", [pytest.param(file, id=file.name) for file in sorted((ROOT / "src" / "facm").rglob("*.py"))]
)
def test_one_file_prints(file):
    if file == ROOT / "src" / "facm" / "core" / "terminal.py":
        assert printing(file) != []  # else this test looks for nothing
    else:
        assert printing(file) == []


def printing(file):
    """The lines of a source file that print by themselves."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            wrong = called == "print" or called.endswith(("Console", "stdout.write", "stderr.write", "os.write"))
        else:
            wrong = isinstance(node, ast.Import | ast.ImportFrom) and "logging" in [name.name for name in node.names]
        if wrong:
            found.append(f"{file.name}:{node.lineno}: {ast.unparse(node)}")
    return found


def test_counting_says_nothing_where_lines_cannot_be_overwritten(capsys, monkeypatch):
    report = terminal.counting("samples")
    report(1, 2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    report(1, 2)
    report(2, 2)
    assert capsys.readouterr().err == "1 of 2 samples\r2 of 2 samples\r\x1b[K"
