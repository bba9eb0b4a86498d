"""Commands whose output is closed, full, left by its reader, without Unicode, or on a terminal of an odd width."""

import contextlib
import errno
import io
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from facm.cli import streams
from facm.cli.streams import NARROWEST, READER_GONE, WIDEST, Output, standard_streams
from tests.cli.cli_parts import command

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@contextlib.contextmanager
def stdout_is(descriptor, encoding="utf-8"):
    """Standard output is a file descriptor, which is closed afterwards."""
    before = sys.stdout
    sys.stdout = os.fdopen(descriptor, "w", encoding=encoding)
    try:
        yield sys.stdout
    finally:
        sys.stdout, ours = before, sys.stdout
        ours.close()


def without_reader():
    read, write = os.pipe()
    os.close(read)
    return write


def full():
    return os.open("/dev/full", os.O_WRONLY)


def not_for_writing():
    return os.open(os.devnull, os.O_RDONLY)


def printed(ending, only_prints):
    """A command that prints a line, and ends."""
    with standard_streams(only_prints):
        print("a line")
        ending()


LOST = [pytest.param(without_reader, id="reader gone"), pytest.param(full, id="full", marks=FULL), not_for_writing]


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("flush", [True, False])
def test_work_goes_on_where_its_output_is_lost(lost, flush, capfd):
    reached = []
    with stdout_is(lost()) as ours:
        with standard_streams():
            for part in range(3):
                print("x" * 10_000, flush=flush)
                reached.append(part)
            print("the last", end="")
        ours.write("what is printed later is lost, too")
        ours.flush()
    assert reached == [0, 1, 2]
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err == "" if lost is without_reader else said.err.startswith("warning: standard output could not be ")


@pytest.mark.parametrize("ending", [lambda: None, lambda: sys.exit(0)])
@pytest.mark.parametrize("lost", LOST)
def test_a_command_that_only_prints_has_failed(lost, ending, capfd):
    with pytest.raises(SystemExit) as exit_, stdout_is(lost()):
        printed(ending, only_prints=True)
    said = capfd.readouterr().err
    if lost is without_reader:
        assert (exit_.value.code, said) == (READER_GONE, "")
    else:
        assert exit_.value.code == 2
        assert said.startswith("error: standard output could not be written: ")
        assert said.count("\n") == 1


@pytest.mark.parametrize("only_prints", [True, False])
def test_another_failure_keeps_its_status(only_prints, capfd):
    for status in (1, 2, 130):
        with pytest.raises(SystemExit) as exit_, stdout_is(without_reader()):
            printed(lambda status=status: sys.exit(status), only_prints)
        assert exit_.value.code == status
    with pytest.raises(ZeroDivisionError), stdout_is(without_reader()):
        printed(lambda: 1 / 0, only_prints)
    assert capfd.readouterr() == ("", "")


def test_nothing_is_lost_and_the_streams_are_given_back(tmp_path, capfd):
    before = sys.stdout, sys.stderr, warnings.formatwarning
    with standard_streams(only_prints=True):
        print("one")
        print("two", file=sys.stderr)
    with pytest.raises(SystemExit) as exit_:
        printed(lambda: sys.exit(0), only_prints=True)
    assert exit_.value.code == 0
    assert (sys.stdout, sys.stderr, warnings.formatwarning) == before
    assert capfd.readouterr() == ("one\na line\n", "two\n")


def test_children_of_a_command_without_a_reader_have_no_broken_pipe_either():
    write = without_reader()
    with stdout_is(write), standard_streams():
        print("noticed", flush=True)
        assert os.path.sameopenfile(write, os.open(os.devnull, os.O_WRONLY)) or os.fstat(write).st_rdev
        os.write(write, b"as a child would")


def test_a_slow_reader_of_a_pipe_that_does_not_block_gets_everything():
    read, write = os.pipe()
    os.set_blocking(write, False)
    received = io.BytesIO()

    def reader():
        while data := os.read(read, 1 << 16):
            received.write(data)

    thread = threading.Thread(target=reader)
    with open(write, "wb", 0), Output(write) as output:
        with contextlib.suppress(BlockingIOError):  # which says that the pipe is full
            while True:
                os.write(write, b"x" * 512)
        thread.start()
        assert output.write(b"y" * 100) == 100
        assert output.error is None
    thread.join()
    os.close(read)
    assert received.getvalue().endswith(b"y" * 100)


@pytest.mark.parametrize(("encoding", "expected"), [("ascii", b"Fr\\xe9 \\u2192 \\udcff\n"), ("utf-8", None)])
def test_characters_that_the_encoding_lacks_are_written_as_escapes(tmp_path, encoding, expected):
    file = tmp_path / "out"
    with stdout_is(os.open(file, os.O_WRONLY | os.O_CREAT), encoding), standard_streams():
        print("Fré → \udcff")
    assert file.read_bytes() == (expected or "Fré → \\udcff\n".encode())


@pytest.mark.parametrize("only_prints", [True, False])
def test_a_closed_stream_is_the_null_device(only_prints, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(streams, "Output", lambda descriptor: Output(os.open(os.devnull, os.O_WRONLY)))
    with standard_streams(only_prints):
        print("nobody reads this")
        print("nor this", file=sys.stderr)
        assert sys.stdout.encoding == "utf-8"
    assert sys.stdout is None


def test_a_warning_is_plain():
    with standard_streams():
        said = warnings.formatwarning("\x1b[31mred\u202e is corrupt", RuntimeWarning, "a\x1b.py", 3, "")
    assert said == "a?.py:3: RuntimeWarning: ?[31mred? is corrupt\n"


@pytest.mark.parametrize(
    ("columns", "seen"),
    [("1", NARROWEST), ("99999999", WIDEST), ("100", 100), (None, 77)]
    + [(wrong, 77) for wrong in ("0", "-5", "abc", "²", "٣", "", "1.5", "9" * 30)],
)
def test_everybody_sees_a_usable_width(columns, seen, monkeypatch):
    import shutil

    from facm.core.terminal import console

    monkeypatch.setattr(os, "get_terminal_size", lambda *descriptor: os.terminal_size((77, 24)))
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    before = dict(os.environ)
    with standard_streams():
        assert shutil.get_terminal_size().columns == seen
        assert console().width == seen
    assert dict(os.environ) == before


@pytest.mark.parametrize(("columns", "seen"), [(0, 80), (1, NARROWEST), (7, NARROWEST), (65535, WIDEST)])
def test_a_terminal_of_an_odd_width_is_taken_for_a_usual_one(columns, seen, monkeypatch):
    from facm.core.terminal import console

    monkeypatch.setattr(os, "get_terminal_size", lambda *descriptor: os.terminal_size((columns, 24)))
    monkeypatch.delenv("COLUMNS", raising=False)
    with standard_streams():
        assert console().width == seen


@pytest.mark.parametrize("lines", ["0", "abc", "²"])
def test_a_number_of_lines_that_is_none(lines, monkeypatch):
    from facm.core.terminal import console

    monkeypatch.setenv("LINES", lines)
    with standard_streams():
        assert console().height > 0


@pytest.mark.parametrize("words", ["-h", "train -h", "list", "show digits-teacher", "--version"])
def test_a_command_that_only_prints_says_so_by_its_status(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_, stdout_is(without_reader()):
        command(*words.split())
    assert exit_.value.code == READER_GONE


@pytest.mark.parametrize("option", ["--print-config", "--dry-run", "--help-all"])
def test_training_only_prints_with_some_options(option, recipes):
    with pytest.raises(SystemExit) as exit_, stdout_is(without_reader()):
        command("train", "mine.py:moons", "--out", "new", option)
    assert exit_.value.code == READER_GONE
    assert not Path("new").exists()


def test_commands_that_work_end_as_they_would_with_a_reader(recipes, capfd):
    for words in (
        "train mine.py:moons --out new",
        "resume new",
        "evaluate new --num-steps 1 --num-samples 4",
        "weights export new --out new.safetensors",
    ):
        with stdout_is(without_reader()):
            command(*words.split())
    assert (recipes / "new" / "checkpoints" / "000000000064.safetensors").exists()
    assert (recipes / "new" / "evaluations.jsonl").read_text().count("\n") == 1
    assert (recipes / "new.safetensors").stat().st_size > 0
    said = capfd.readouterr()
    assert said.out == ""
    assert "rror" not in said.err


def run(words, redirected, cwd):
    facm = f"{sys.executable} -m facm {words} {redirected}"
    return subprocess.run(facm, shell=True, cwd=cwd, capture_output=True, text=True, check=False)


EVERYWHERE = [">&-", "2>&-", "<&-", "<&- >&- 2>&-", "| true", "| head -1", "2>&1 | head -1"]
TRAIN = "train digits-teacher --images 64 --run.batch-size 16 --out new"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "redirected"),
    [*(("-h", to) for to in EVERYWHERE), *((TRAIN, to) for to in ("<&- >&- 2>&-", "2>&1 | head -1"))],
)
def test_the_process_itself(words, redirected, tmp_path):
    done = run(words, redirected, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    if "train" in words:
        assert (tmp_path / "new" / "checkpoints" / "000000000064.safetensors").exists()
    if "head" in redirected:
        assert done.stdout.count("\n") == 1


@FULL
@pytest.mark.slow
def test_the_process_itself_on_a_full_disk(tmp_path):
    done = run("-h", "> /dev/full", tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: standard output could not be written: {os.strerror(errno.ENOSPC)}\n"
