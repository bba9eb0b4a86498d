"""Checkpoint files: what is damaged, foreign or cannot be written is a clear error, and nothing else is lost by it."""

import errno
import os
import resource
import shutil

import pytest
import torch
from safetensors.torch import save_file

from facm.core.hashing import digest
from facm.core.state_dict import CheckpointError
from facm.pretrained.trained import load_trained
from facm.runs.checkpoint import PICKLED, load, save
from facm.runs.config import Intervals
from facm.runs.folder import RunFolderError, create
from facm.training.loop import train
from tests.core.core_parts import TENSORS
from tests.training.run_parts import flow_run, in_child, trained


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("finished") / "run", flow_run())


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of a finished run, to be spoilt."""
    return type(finished)(shutil.copytree(finished.path, tmp_path / "copy"))


def test_what_is_loaded_is_what_was_saved(tmp_path):
    meta = {"images": 3, "list": [1.5, None, "ü"]}
    save(tmp_path / "new" / "x.safetensors", TENSORS, meta)
    loaded = load(tmp_path / "new" / "x.safetensors")
    assert loaded.meta == meta
    assert loaded.sha256 == digest(TENSORS)
    assert loaded.tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert loaded.tensors[name].dtype == value.dtype
        assert torch.equal(loaded.tensors[name], value)
    assert loaded.part("a").keys() == {"weight", "count"}


def test_tied_and_strided_weights_are_saved(tmp_path):
    shared = torch.arange(6.0)
    tensors = {"a": shared, "b": shared, "c": shared[2:], "d": shared.reshape(2, 3).t(), "e": torch.ones(1).expand(4)}
    save(tmp_path / "x.safetensors", tensors, {})
    for name, value in load(tmp_path / "x.safetensors").tensors.items():
        assert torch.equal(value, tensors[name])


@pytest.mark.parametrize("share", [0, 1e-9, 0.001, 0.1, 0.5, 0.999])
def test_a_truncated_checkpoint_is_named_with_the_one_before(folder, share):
    before, newest = folder.checkpoints()
    content = newest.read_bytes()
    newest.write_bytes(content[: max(int(share > 0), int(share * len(content)))])
    for attempt in (lambda: train(flow_run(), folder), lambda: load_trained(folder.path)):
        with pytest.raises(CheckpointError, match="truncated or damaged") as error:
            attempt()
        assert str(newest) in str(error.value)
        assert f"the one before is {before}" in str(error.value)


def test_a_damaged_checkpoint_without_one_before_says_so(folder):
    before, newest = folder.checkpoints()
    before.unlink()
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="there is none before it"):
        load_trained(folder.path)


def test_every_flipped_byte_is_noticed(tmp_path):
    """In the header, in its metadata and in the tensors: at every place of a small file."""
    file = tmp_path / "x.safetensors"
    save(file, TENSORS, {"images": 12, "skipped": 0})
    content = file.read_bytes()
    whole = load(file)
    noticed = 0
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            loaded = load(file)
        except CheckpointError:
            noticed += 1
            continue
        assert (loaded.sha256, loaded.meta) == (whole.sha256, whole.meta), place  # padding, or a key nobody reads
        assert digest(loaded.tensors) == whole.sha256
    assert noticed > 0.9 * len(content)


def test_a_pickle_is_refused_and_never_executed(folder, tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    newest = folder.checkpoints()[-1]
    for legacy in (False, True):
        torch.save({"network": Payload()}, newest, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError, match="pickled file") as error:
            load_trained(folder.path)
        assert str(newest) in str(error.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("start", PICKLED)
def test_a_checkpoint_that_starts_like_a_pickle_is_read(tmp_path, start):
    """The first bytes are the length of the header, which may be any multiple of 8."""
    file, length = tmp_path / "x.safetensors", int.from_bytes(start, "little")
    save(file, TENSORS, {"padding": ""})
    missing = length - int.from_bytes(file.read_bytes()[:8], "little")
    save(file, TENSORS, {"padding": "x" * missing})
    assert file.read_bytes()[:2] == start
    assert load(file).sha256 == digest(TENSORS)


def test_a_foreign_safetensors_file_is_refused(folder):
    newest = folder.checkpoints()[-1]
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.ones(2)}, newest, metadata=metadata)
        with pytest.raises(CheckpointError, match="not a checkpoint of this package"):
            load_trained(folder.path)


def test_a_folder_or_a_missing_file_is_named(tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    for name, said in (
        ("x.safetensors", "x.safetensors is a folder"),
        ("y.safetensors", "cannot read .*y.safetensors"),
    ):
        with pytest.raises(CheckpointError, match=said):
            load(tmp_path / name)


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "where", ["safetensors.torch.save_file", "facm.core.files.os.fsync", "facm.core.files.os.replace"]
)
def test_a_full_disk_is_named_and_the_older_checkpoints_stay(folder, monkeypatch, where):
    before, newest = folder.checkpoints()
    newest.unlink()
    kept = before.read_bytes()
    (folder.path / "log.jsonl").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(where, full_disk)
        with pytest.raises(CheckpointError, match="No space left on device") as error:
            train(flow_run(), folder)
    for part in ("could not save", "MB needed", "MB free", "make room and resume"):
        assert part in str(error.value)
    assert folder.checkpoints() == [before]
    assert before.read_bytes() == kept
    assert not list(folder.path.rglob("*.partial"))


def test_a_limit_on_the_size_of_files_leaves_no_damaged_checkpoint(folder):
    """The disk says no in the middle of the file."""
    before, newest = folder.checkpoints()
    size = newest.stat().st_size
    newest.unlink()

    def child():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
        with pytest.raises(CheckpointError, match=r"could not save .*make room and resume"):
            train(flow_run(), folder)

    assert in_child(child) == 0
    assert folder.checkpoints() == [before]
    assert not list(folder.path.rglob("*.partial"))
    assert train(flow_run(), folder).finished


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    run = flow_run()
    folder = create(tmp_path / "run", run)
    (folder.path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(RunFolderError, match=f"{folder.path}/checkpoints is not a folder"):
        train(run, folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_read_only_folder_is_named(tmp_path):
    run = flow_run(every=Intervals(log=100_000, checkpoint=80, ema_snapshots=0))
    folder = create(tmp_path / "run", run)
    (folder.path / "checkpoints").mkdir()
    (folder.path / ".lock").touch()
    (folder.path / "sessions.jsonl").touch()
    for shared in (".lock", "sessions.jsonl"):
        (folder.path / shared).chmod(0o666)
    for above in (folder.path, *folder.path.parents):
        if above.stat().st_mode & 0o005 != 0o005 and "pytest" in str(above):
            above.chmod(0o755)

    def child():
        os.setuid(65534)
        with pytest.raises(CheckpointError, match=r"could not save .*Permission denied"):
            train(run, folder)

    assert in_child(child) == 0
    assert folder.checkpoints() == []
