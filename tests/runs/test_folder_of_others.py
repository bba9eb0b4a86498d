"""A run folder that somebody else packed: nothing outside it is read, written or removed, and nothing is waited for."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from facm.core.state_dict import CheckpointError
from facm.pretrained.trained import load_trained
from facm.runs import log as logs
from facm.runs.checkpoint import load
from facm.runs.folder import RunFolder, RunFolderError, create, locked, open_run
from facm.sampling.images import save_grid
from facm.training.loop import train
from tests.cli.cli_parts import command, refused
from tests.training.run_parts import IMAGES, contents, flow_run, in_child, interrupt, trained

CLOCK = 160


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = create(tmp_path_factory.mktemp("interrupted") / "run", flow_run())
    interrupt(flow_run(), folder, CLOCK)
    logs.append(folder.evaluations, {"nfe": 1})
    folder.samples.mkdir()
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained(tmp_path_factory.mktemp("finished") / "run", flow_run())


@pytest.fixture
def outside(finished: RunFolder, tmp_path: Path) -> Path:
    """What belongs to the user: files, and folders that look like a run's."""
    shutil.copytree(finished.path, tmp_path / "outside")
    (tmp_path / "outside" / "empty").mkdir()
    return tmp_path / "outside"


@pytest.fixture
def folder(interrupted: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(interrupted.path, tmp_path / "run"))


def everything(place: Path) -> dict[str, bytes | str]:
    """All files, links and folders below ``place``."""
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        for path in place.rglob("*")
    }


def put(path: Path, make: Callable[[Path], object]) -> None:
    """``make`` something in place of what is at ``path``."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    make(path)


def try_all(path: Path) -> list[str]:
    """What the uses of a run folder say that refuse; nothing else comes out of them."""
    tries: dict[str, Callable[[], object]] = {
        "resume": lambda: train(open_run(path)[1], RunFolder(path)),
        "sample": lambda: save_grid(load_trained(path).samples / "new.png", torch.zeros(1, 1, 8, 8)),
        "evaluate": lambda: logs.append(load_trained(path).evaluations, {"nfe": 2}),
        "synthesise": lambda: load_trained(path, 0.1),
        "show": lambda: command("show", path),
    }
    said = []
    for use in tries.values():
        try:
            use()
        except (RunFolderError, CheckpointError, ValueError) as error:
            said.append(str(error))
        except SystemExit:
            continue  # ``facm show`` has printed it
    return said


FILES = ["run.json", "log.jsonl", "sessions.jsonl", "evaluations.jsonl", ".lock"]
CHECKPOINT, SNAPSHOT = f"checkpoints/{CLOCK:012d}.safetensors", f"ema/{128:012d}-0.05.safetensors"
LINKS = [
    *((file, target) for file in (*FILES, CHECKPOINT, SNAPSHOT) for target in (file, "nothing")),
    *((name, target) for name in ("checkpoints", "ema", "samples") for target in (name, "empty", "nothing")),
    *((name, "run.json") for name in ("checkpoints", "ema", "samples")),
    ("checkpoints/000000000000", "checkpoints"),  # the oldest: what is kept least
    ("checkpoints/000000000016.safetensors", "log.jsonl"),
    ("checkpoints/000000009999.safetensors", f"checkpoints/{IMAGES:012d}.safetensors"),
    ("checkpoints/000000009999", "checkpoints"),
    ("ema/000000009999-0.05.safetensors", "log.jsonl"),
]


@pytest.mark.parametrize(("name", "target"), LINKS, ids=str)
def test_a_link_is_refused_by_name_and_what_it_leads_to_is_left_alone(
    name: str, target: str, folder: RunFolder, outside: Path
) -> None:
    put(folder.path / name, lambda path: path.symlink_to(outside / target))
    before = everything(outside)
    said = try_all(folder.path)
    assert any(f"{folder.path / name} is a symbolic link" in words for words in said), said
    assert everything(outside) == before
    assert (folder.path / name).is_symlink()


LEFTOVERS = [
    *("checkpoints/.000000000240.safetensors.partial", "checkpoints/.000000000240.partial"),
    *("checkpoints/.000000000016.removed", "ema/.000000000192-0.05.safetensors.partial", ".log.jsonl.partial"),
    *(".run.json.a1b2c3.partial", "samples/.000000000240.png.partial"),
]


@pytest.mark.parametrize("name", LEFTOVERS)
@pytest.mark.parametrize("target", ["checkpoints", "log.jsonl", "nothing"])
def test_a_link_in_the_place_of_a_leftover_goes_alone(
    name: str, target: str, folder: RunFolder, outside: Path, finished: RunFolder
) -> None:
    put(folder.path / name, lambda path: path.symlink_to(outside / target))
    before = everything(outside)
    assert train(flow_run(), folder).finished
    assert everything(outside) == before
    assert contents(folder) == contents(finished)


@pytest.mark.parametrize("name", ["log.jsonl", "sessions.jsonl", "evaluations.jsonl", ".lock", CHECKPOINT])
def test_a_hard_link_is_not_written_through(name: str, folder: RunFolder, outside: Path, finished: RunFolder) -> None:
    kept = outside / "kept"
    shutil.copy(folder.path / name, kept) if name != ".lock" else kept.write_text("mine")
    put(folder.path / name, lambda path: os.link(kept, path))
    before = everything(outside)
    assert try_all(folder.path) == []
    assert everything(outside) == before
    assert contents(folder) == contents(finished)


def test_the_folder_itself_may_be_reached_through_a_link(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder.path)
    assert try_all(tmp_path / "link") == []
    assert load_trained(folder.path).images_seen == IMAGES


def test_old_checkpoints_are_told_by_their_whole_names(folder: RunFolder, finished: RunFolder) -> None:
    """What a user puts beside them is neither read nor deleted."""
    others = [folder.path / "checkpoints" / name for name in ("1.safetensors", "12 copy.safetensors", "0_notes")]
    others += [folder.path / "ema" / name for name in ("1.safetensors", "000000000064-x.safetensors")]
    for path in others:
        path.write_text("mine")
    assert train(flow_run(), folder).finished
    assert load_trained(folder.path, 0.1).images_seen == IMAGES
    assert all(path.read_text() == "mine" for path in others)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # the path to a socket is short
        server.bind(path.name)
        os.chdir(here)


STRANGE: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": _socket,
    "folder": os.mkdir,
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", [*FILES, CHECKPOINT, SNAPSHOT, "checkpoints", "ema", "samples"])
def test_what_is_no_regular_file_is_refused_by_name_and_not_waited_for(name: str, kind: str, folder: RunFolder) -> None:
    if kind == "folder" and "." not in name:
        pytest.skip("as it should be")
    put(folder.path / name, STRANGE[kind])
    said = try_all(folder.path)
    assert any(str(folder.path / name) in words for words in said), said


HOSTILE = {
    "nested": b"[" * 100_000,
    "nested objects": b'{"run":' * 100_000,
    "not UTF-8": b'{"run": "\xff"}',
    "BOM": b"\xef\xbb\xbf{}",
    "empty": b"",
    "zeros": b"\0" * 1000,
    "a list": b"[]",
    "digits": b"9" * 10_000,
    "other values": b'{"run": 1, "source": 2, "fingerprint": 3, "images": "x", "nfe": []}',
}


@pytest.mark.parametrize("content", HOSTILE)
def test_a_run_json_that_is_no_json_is_refused_by_name(content: str, folder: RunFolder) -> None:
    folder.run_json.write_bytes(HOSTILE[content])
    with pytest.raises(RunFolderError, match=f"{folder.run_json}"):
        open_run(folder.path)


@pytest.mark.parametrize("content", HOSTILE)
@pytest.mark.parametrize("name", ["log.jsonl", "evaluations.jsonl"])
def test_show_refuses_records_that_are_none_by_name_or_leaves_them_out(
    name: str, content: str, folder: RunFolder, capsys
) -> None:
    folder.evaluations.unlink()
    (folder.path / name).write_bytes(HOSTILE[content] + b"\n")
    try:
        command("show", folder.path)
    except SystemExit:
        assert f"error: {folder.path / name}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["run.json", "log.jsonl", "evaluations.jsonl"])
def test_a_file_that_is_too_large_is_refused_unread(name: str, folder: RunFolder, capsys) -> None:
    with (folder.path / name).open("r+b") as file:
        file.truncate(2**40)
    assert f"{folder.path / name} has more than" in refused(capsys, "show", folder.path)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("name", ["run.json", "log.jsonl", "evaluations.jsonl", CHECKPOINT, "checkpoints"])
def test_what_may_not_be_read_is_named(name: str, folder: RunFolder) -> None:
    (folder.path / name).chmod(0)
    for above in folder.path.parents:
        if "pytest" in str(above):
            above.chmod(0o755)

    def child() -> None:
        os.setuid(65534)
        with pytest.raises((RunFolderError, CheckpointError, OSError), match=f"{folder.path / name}"):
            (open_run(folder.path), logs.read(folder.log), logs.read(folder.evaluations), load_trained(folder.path))

    assert in_child(child) == 0


# --- name and content ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained(tmp_path_factory.mktemp("other") / "run", flow_run(seed=1))


@pytest.fixture
def spoilt(finished: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(finished.path, tmp_path / "run"))


def test_a_checkpoint_of_another_clock_is_refused_naming_both(spoilt: RunFolder) -> None:
    before, newest = spoilt.checkpoints()
    shutil.copy(before, newest)
    for use in (lambda: load_trained(spoilt.path), lambda: train(flow_run(), spoilt)):
        with pytest.raises(CheckpointError, match=rf"{newest} holds images = 240, and its name says {IMAGES}"):
            use()


def test_a_checkpoint_or_a_run_json_of_another_run_is_refused(spoilt: RunFolder, other: RunFolder, capsys) -> None:
    newest = spoilt.checkpoints()[-1]
    shutil.copy(other.run_json, spoilt.run_json)
    for use in (lambda: load_trained(spoilt.path), lambda: train(flow_run(seed=1), spoilt)):
        with pytest.raises(CheckpointError, match=rf"{newest} belongs to another recipe .* in {spoilt.run_json}"):
            use()
    assert f"{newest} belongs to another recipe" in refused(capsys, "show", spoilt.path)


@pytest.mark.parametrize(
    ("taken_from", "said"),
    [
        ("spoilt 256 0.05", rf"holds images = 256, and its name says {IMAGES}"),
        ("spoilt 320 0.2", r"holds sigma_rel = 0\.2, and its name says 0\.05"),
        ("other 320 0.05", r"belongs to another recipe than this run's"),
        ("checkpoint", r"holds sigma_rel = None, and its name says 0\.05"),
    ],
)
def test_a_snapshot_of_another_clock_length_or_run_is_refused(
    taken_from: str, said: str, spoilt: RunFolder, other: RunFolder
) -> None:
    place = spoilt.ema_snapshot(IMAGES, 0.05)
    source = spoilt.checkpoints()[-1]
    if taken_from != "checkpoint":
        whose, images, sigma_rel = taken_from.split()
        source = (spoilt if whose == "spoilt" else other).ema_snapshot(int(images), float(sigma_rel))
    shutil.copy(source, place)
    for use in (lambda: load_trained(spoilt.path, images=IMAGES), lambda: load_trained(spoilt.path, 0.1)):
        with pytest.raises(CheckpointError, match=f"{place} {said}"):
            use()


def test_snapshots_say_which_run_they_are_of_and_old_ones_need_not(spoilt: RunFolder) -> None:
    from facm.runs.checkpoint import save

    place = spoilt.ema_snapshot(IMAGES, 0.05)
    saved = load(place)
    assert saved.meta["run"] == json.loads(spoilt.run_json.read_text())["fingerprint"]
    save(place, saved.tensors, {name: value for name, value in saved.meta.items() if name != "run"})
    assert load_trained(spoilt.path, images=IMAGES).images_seen == IMAGES


def test_leftovers_of_kills_are_tidied_by_who_holds_the_folder(folder: RunFolder) -> None:
    """Of its own names: ``facm sample`` may be writing a picture meanwhile."""
    mine = [folder.path / name for name in LEFTOVERS]
    for path in mine:
        path.mkdir() if path.name.endswith(("240.partial", "removed")) else path.touch()
    theirs = folder.samples / ".000000000160-euler1-seed0.png.x1y2z3.partial"
    theirs.touch()
    with locked(folder):
        assert [path for path in mine if path.exists()] == []
    assert theirs.exists()
