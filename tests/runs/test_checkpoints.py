"""Checkpoints: what is damaged, foreign or cannot be written is a clear error, and nothing else is lost by it."""

import errno
import os
import resource
import shutil
import signal

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from facm.core.files import atomically, write_text
from facm.core.hashing import digest
from facm.core.state_dict import CheckpointError, load_strictly
from facm.networks.lightning_dit import LightningDiT
from facm.networks.mlp import MLP
from facm.pretrained.trained import FromRun, load_trained
from facm.runs.checkpoint import PICKLED, Checkpoint, load, save
from facm.runs.config import Intervals
from facm.runs.folder import create
from facm.training.loop import train
from tests.training.run_parts import (
    EVERY,
    Crash,
    before_step,
    contents,
    crash_at,
    facm_run,
    flow_run,
    in_child,
    trained,
)

TENSORS = {"a/weight": torch.arange(12.0).reshape(3, 4), "a/count": torch.tensor(3), "b": torch.zeros(2).bfloat16()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("finished") / "run", flow_run())


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of a finished run, to be spoilt."""
    return type(finished)(shutil.copytree(finished.path, tmp_path / "copy"))


# --- writing and reading ---------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "b": torch.ones(2).bfloat16()},
        lambda t: {**t, "b": torch.zeros(2).half()},
        lambda t: {**t, "b": torch.zeros(1, 2).bfloat16()},
        lambda t: {("c" if name == "b" else name): value for name, value in t.items()},
        lambda t: {**t, "c": torch.zeros(0)},
    ],
    ids=["value", "type", "shape", "name", "one more"],
)
def test_the_digest_sees_every_change(change):
    assert digest(change(TENSORS)) != digest(TENSORS)


def test_the_digest_does_not_depend_on_order_or_layout():
    layout = {name: value.t().contiguous().t() if value.ndim == 2 else value for name, value in TENSORS.items()}
    assert digest(dict(reversed(layout.items()))) == digest(TENSORS)


def test_tied_and_strided_weights_are_saved(tmp_path):
    shared = torch.arange(6.0)
    tensors = {"a": shared, "b": shared, "c": shared[2:], "d": shared.reshape(2, 3).t(), "e": torch.ones(1).expand(4)}
    save(tmp_path / "x.safetensors", tensors, {})
    for name, value in load(tmp_path / "x.safetensors").tensors.items():
        assert torch.equal(value, tensors[name])


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path):
    file = tmp_path / "x.txt"
    write_text(file, "old")

    def fail(partial):
        partial.write_text("half")
        raise Crash

    with pytest.raises(Crash), atomically(file) as partial:
        fail(partial)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


# --- damaged or foreign files ----------------------------------------------------------------------------------------


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


def test_deleting_the_damaged_checkpoint_goes_on_from_the_one_before(finished, folder):
    folder.checkpoints()[-1].unlink()
    train(flow_run(), folder)
    assert contents(folder) == contents(finished)


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
    for name in ("x.safetensors", "y.safetensors"):
        with pytest.raises(CheckpointError, match=f"cannot read .*{name}"):
            load(tmp_path / name)


def test_an_ema_snapshot_in_place_of_a_checkpoint_is_refused(folder):
    shutil.copy(folder.ema_snapshots()[-1][2], folder.checkpoint(10_000))
    with pytest.raises(CheckpointError, match="another recipe"):
        train(flow_run(), folder)
    with pytest.raises(CheckpointError, match="missing"):
        load_trained(folder.path)


def test_the_checkpoint_of_another_recipe_is_refused(folder, tmp_path):
    other = flow_run(seed=1)
    target = create(tmp_path / "other", other)
    target.checkpoint(0).parent.mkdir()
    shutil.copy(folder.checkpoints()[-1], target.checkpoint(320))
    with pytest.raises(CheckpointError, match="belongs to another recipe") as error:
        train(other, target)
    assert str(target.checkpoint(320)) in str(error.value)


# --- strict loading --------------------------------------------------------------------------------------------------


def test_another_networks_weights_are_refused_with_their_names():
    with pytest.raises(CheckpointError, match=r"x.st does not fit MLPNetwork") as error:
        load_strictly(MLP(width=16).build(), MLP(width=8, depth=4, num_classes=2).build().state_dict(), "x.st")
    for part in ("unexpected: labels.weight, layers.3", "of another shape: inward.weight (8, 7) instead of (16, 7)"):
        assert part in str(error.value)
    with pytest.raises(CheckpointError, match=r"4 missing: layers\.2"):
        load_strictly(MLP().build(), MLP(depth=2).build().state_dict(), "x.st")


TINY = LightningDiT(input_size=8, patch_size=4, in_channels=1, hidden_size=16, depth=1, num_heads=2, num_classes=2)


def test_only_the_second_time_may_be_missing_where_weights_start_from():
    from dataclasses import replace

    state, student = TINY.build().state_dict(), replace(TINY, auxiliary_time=True).build()
    may_miss = student.zero_init_prefixes
    load_strictly(student, state, "teacher", may_miss)
    assert all(torch.equal(student.state_dict()[name], value) for name, value in state.items())
    with pytest.raises(CheckpointError, match="4 missing: r_embedder"):
        load_strictly(student, state, "teacher")
    state.pop("final_layer.linear.bias")
    with pytest.raises(CheckpointError, match=r"1 missing: final_layer\.linear\.bias"):
        load_strictly(student, state, "teacher", may_miss)


def test_a_buffer_is_loaded_too():
    source, target = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    source(torch.randn(8, 3))
    load_strictly(target, source.state_dict(), "x")
    assert torch.equal(target.running_mean, source.running_mean)


# --- teachers --------------------------------------------------------------------------------------------------------


def test_another_teacher_is_refused_halfway(finished, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(finished.path, teacher)
    run = facm_run(teacher)
    folder = create(tmp_path / "student", run)
    with pytest.raises(Crash), before_step(crash_at(160)):
        train(run, folder)
    expected = load(folder.checkpoints()[-1]).meta["teacher"]["sha256"]
    shutil.rmtree(teacher)
    trained(teacher, flow_run(seed=3))
    with pytest.raises(CheckpointError, match="cannot change its teacher halfway") as error:
        train(run, folder)
    assert expected in str(error.value)
    shutil.rmtree(teacher)
    shutil.copytree(finished.path, teacher)
    assert train(run, folder).finished


def test_a_student_without_its_teachers_folder_is_refused(finished, tmp_path):
    run = facm_run(tmp_path / "gone")
    folder = create(tmp_path / "student", run)
    with pytest.raises(RuntimeError, match="gone is not a run folder"):
        train(run, folder)


# --- a disk that does not take it ------------------------------------------------------------------------------------


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "where", ["safetensors.torch.save_file", "facm.runs.checkpoint.os.fsync", "facm.runs.checkpoint.os.replace"]
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
    with pytest.raises(CheckpointError, match=f"could not save {folder.path}/checkpoints/"):
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


# --- how many are kept -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_checkpoints_are_kept(tmp_path, keep):
    from dataclasses import replace

    folder = trained(tmp_path / "run", flow_run(every=replace(EVERY, keep=keep)))
    assert [int(file.stem) for file in folder.checkpoints()] == [80, 160, 240, 320][-keep:]


def test_old_checkpoints_go_only_after_the_new_one_is_safe(tmp_path, monkeypatch):
    from dataclasses import replace

    run = flow_run(every=replace(EVERY, keep=1))
    folder = create(tmp_path / "run", run)

    def child():
        real = os.replace
        saved = []

        def then_die(source, target):
            saved.append(target)
            if "checkpoints" in str(target) and len(saved) > 6:
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)

        monkeypatch.setattr("facm.runs.checkpoint.os.replace", then_die)
        train(run, folder)

    assert in_child(child) == -signal.SIGKILL
    assert len(folder.checkpoints()) == 1
    assert isinstance(load(folder.checkpoints()[0]), Checkpoint)


def test_a_teacher_is_recorded_by_its_weights(finished, tmp_path):
    folder = trained(tmp_path / "student", facm_run(finished.path))
    record = load(folder.checkpoints()[-1]).meta["teacher"]
    assert record["sha256"] == digest(load_trained(finished.path).network.state_dict())
    assert record["identity"] == repr(FromRun(str(finished.path)))
