"""The run folder."""

import fcntl
import json
import shutil
import subprocess
import sys

import pytest

from facm import cli
from facm.runs.ema import PowerEMA
from facm.runs.folder import RunFolder, RunFolderError, create, locked, open_run
from facm.training.loop import train
from tests.training.run_parts import Crash, flow_run, trained


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("finished") / "run", flow_run())


@pytest.mark.parametrize("content", ["run.json", "anything.txt", ".hidden"])
def test_a_folder_in_use_is_refused_and_untouched(tmp_path, content):
    (tmp_path / content).write_text("mine")
    with pytest.raises(RunFolderError, match=f"out = {tmp_path} is in use and is never overwritten"):
        create(tmp_path, flow_run())
    assert [p.name for p in tmp_path.iterdir()] == [content]
    assert (tmp_path / content).read_text() == "mine"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunFolderError, match="is in use"):
        create(tmp_path / "run", flow_run())


def test_an_empty_folder_is_taken(tmp_path):
    assert open_run(create(tmp_path, flow_run()).path)[1] == flow_run()


def test_a_folder_that_is_no_run_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunFolderError, match=f"{path} is not a run folder"):
            open_run(path)


HOLD = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"


def test_a_folder_that_another_process_trains_in_is_refused(tmp_path):
    run = flow_run()
    folder = create(tmp_path / "run", run)
    command = [sys.executable, "-S", "-c", HOLD, folder.path / ".lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(RunFolderError, match=f"{folder.path} is in use by another process"):
            train(run, folder)
        assert not folder.checkpoints()
        other.kill()
    assert train(run, folder).finished  # the lock ended with its process


def test_the_lock_is_let_go_after_an_error(tmp_path):
    folder = create(tmp_path / "run", flow_run())
    with pytest.raises(Crash), locked(folder):
        raise Crash
    with (folder.path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record["run"].update(seed=5),
        lambda record: record["run"]["optimizer"].update(lr=1e-2),
        lambda record: record["run"]["network"].update(depth=2),
        lambda record: record["run"].update(images=640),
    ],
)
def test_an_edited_run_json_is_refused(finished, tmp_path, edit):
    path = tmp_path / "run"
    shutil.copytree(finished.path, path)
    record = json.loads((path / "run.json").read_text())
    edit(record)
    (path / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunFolderError, match="was changed since the run started: resuming"):
        open_run(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"run": 3, "source": null, "fingerprint": "x"}',
        '{"run": {"type": 3}, "source": null, "fingerprint": "x"}',
        '{"run": {"type": "os:system"}, "source": null, "fingerprint": "x"}',
        '{"run": {"type": "nowhere:Run"}, "source": null, "fingerprint": "x"}',
        '{"run": {"type": "facm.runs.config:Run", "images": -1}, "source": null, "fingerprint": "x"}',
        '{"run": {"type": "facm.runs.config:Every", "log": 5}, "source": null, "fingerprint": "x"}',
        '{"run": null, "source": 5, "fingerprint": "x"}',
        '{"run": null, "source": {}, "fingerprint": "x"}',
    ],
)
def test_a_run_json_that_is_no_run_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"run\.json"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("null", "it has no 'run', expected an object with 'run', 'fingerprint' and 'source'"),
        ('"run source"', "it has no 'run', expected an object"),
        ('{"run": null}', "it has no 'source', expected an object"),
        ('{"run": null, "source": [1]}', r"source = \[1\], expected null, or the name and the folder of a recipe file"),
        ('{"run": null, "source": {"name": "a"}}', "source = {'name': 'a'}, expected null, or the name and"),
        ('{"run": null, "source": {"name": 3, "folder": "x"}}', "source = {.*3.*}, expected null, or the name and"),
    ],
)
def test_what_a_run_json_lacks_is_named(tmp_path, text, message):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunFolderError, match=rf"run\.json does not describe a run: {message}"):
        open_run(tmp_path)


def test_ema_snapshots_of_close_lengths_are_kept_apart(tmp_path):
    folder = trained(tmp_path / "run", flow_run(ema=PowerEMA((0.1001, 0.1004, 0.0004))))
    assert {length for _, length, _ in folder.ema_snapshots()} == {0.1001, 0.1004, 0.0004}
    assert len(folder.ema_snapshots()) == 15


def test_any_folder_can_be_a_run_and_any_run_a_folder(tmp_path):
    """Names that glob, markup or a shell would take for something else."""
    folder = trained(tmp_path / "[bold] a*b?/[/x] ü", flow_run())
    assert len(folder.checkpoints()) == 2
    assert len(folder.ema_snapshots()) == 10
    cli.main(["show", str(folder.path)])


def test_a_folder_object_needs_no_files(tmp_path):
    folder = RunFolder(tmp_path / "nowhere")
    assert folder.checkpoints() == folder.ema_snapshots() == []


def test_leftovers_of_a_kill_are_never_taken_for_checkpoints(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "ema").mkdir()
    (folder.checkpoint(64).with_name(f".{folder.checkpoint(64).name}.partial")).touch()
    (folder.ema_snapshot(64, 0.05).with_name(f".{folder.ema_snapshot(64, 0.05).name}.partial")).touch()
    assert folder.checkpoints() == [] == folder.ema_snapshots()


def test_what_a_kill_leaves_is_never_taken_for_a_checkpoint(tmp_path):
    (tmp_path / "checkpoints" / ".000000000080.partial").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".000000000064.removed").mkdir()
    assert RunFolder(tmp_path).checkpoints() == []


def test_resume_tidies_only_what_making_a_folder_leaves(tmp_path):
    from facm.runs.folder import RunFolderError, create_or_continue

    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
        (folder / "environment.json").touch()
    (other / "recipe.py").write_text("mine")
    create_or_continue(own, flow_run())
    with pytest.raises(RunFolderError, match="in use"):
        create_or_continue(other, flow_run())
    assert (other / "recipe.py").read_text() == "mine"
