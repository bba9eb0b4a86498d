"""Two commands that want the same folder or file: one of them has it, the other one says so, and nothing is mixed."""

from __future__ import annotations

import dataclasses
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from facm.core.state_dict import CheckpointError
from facm.pretrained.trained import load_trained
from facm.runs import checkpoint, folder
from facm.runs.checkpointer import reached
from facm.runs.folder import create, open_run
from facm.sampling import images
from facm.training.loop import train
from tests.cli.cli_parts import command, refused
from tests.core.core_parts import beside, held_elsewhere
from tests.training.run_parts import EVERY, IMAGES, before_step, flow_run, interrupt

TRAIN = ["train", "mine.py:moons", "--out", "a", "--quiet"]


def files_of(path: str) -> set[str]:
    return {file.name for file in Path(path).iterdir()}


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_of_two_that_make_a_folder_one_does(resume: list[str], recipes: Path, capsys) -> None:
    """The other one comes while nothing but the lock is there. After a kill at that moment the name is free for who
    resumes, also in a dry run."""

    def stop_while_making(ready: Callable[[], None]) -> None:
        def pause() -> dict[str, object]:
            ready()
            signal.pause()
            return {}

        folder.environment = pause  # type: ignore[assignment]
        command(*TRAIN, *resume)

    with beside(stop_while_making):
        for words in ([], ["--resume"], ["--run.seed", 1], ["--resume", "--run.seed", 1]):
            said = refused(capsys, *TRAIN, *words)
            assert "a is in use" in said
        assert files_of("a") == {".lock", "recipe.py"}
    assert "a is in use" in refused(capsys, *TRAIN)
    command(*TRAIN, "--resume", "--dry-run")
    assert "would write to a" in capsys.readouterr().out
    assert files_of("a") == {".lock", "recipe.py"}
    command(*TRAIN, "--resume", "--run.seed", 1)
    run = open_run(Path("a"))[1]
    assert (run.seed, load_trained(Path("a")).images_seen) == (1, run.images)


def test_who_comes_while_it_trains_changes_nothing(recipes: Path, capsys) -> None:
    def stop_while_training(ready: Callable[[], None]) -> None:
        def pause(at: int) -> None:
            if at == 32:
                ready()
                signal.pause()

        with before_step(pause):
            command(*TRAIN)

    with beside(stop_while_training):
        before = {path: path.read_bytes() for path in Path("a").rglob("*") if path.is_file()}
        for words in (TRAIN, [*TRAIN, "--resume"], [*TRAIN, "--resume", "--run.seed", 1], ["resume", "a"]):
            assert "a is in use" in refused(capsys, *words)
        assert {path: path.read_bytes() for path in Path("a").rglob("*") if path.is_file()} == before
    assert "holds another run than this command's (seed differ)" in refused(capsys, *TRAIN, "--resume", "--run.seed", 1)
    command(*TRAIN, "--resume")
    assert load_trained(Path("a")).images_seen == 64


@pytest.mark.parametrize("which", [{}, {"raw": True}, {"sigma_rel": 0.1}], ids=["EMA", "raw", "synthesised"])
def test_a_checkpoint_that_is_deleted_while_it_is_read_gives_way_to_the_newest(
    which: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = flow_run(every=dataclasses.replace(EVERY, keep=1))
    made = create(tmp_path / "run", run)
    interrupt(run, made, 160)
    real, read = checkpoint.read_header, list[Path]()

    def train_on_meanwhile(path: Path, links: bool = True) -> object:
        if path.parent.name == "checkpoints":
            read.append(path)
            if len(read) == 1:
                with monkeypatch.context() as patched:
                    patched.setattr(checkpoint, "read_header", real)
                    train(run, made)
        return real(path, links)

    monkeypatch.setattr(checkpoint, "read_header", train_on_meanwhile)
    assert load_trained(made.path, **which).images_seen == IMAGES  # type: ignore[arg-type]
    assert [int(path.stem) for path in read] == [160, IMAGES]


def test_show_tells_the_clock_of_the_newest_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = flow_run(every=dataclasses.replace(EVERY, keep=1))
    made = create(tmp_path / "run", run)
    interrupt(run, made, 160)
    real = checkpoint.load_meta

    def train_on_meanwhile(path: Path) -> dict[str, object]:
        if path.stem == f"{160:012d}":
            train(run, made)
        return real(path)

    monkeypatch.setattr(checkpoint, "load_meta", train_on_meanwhile)
    assert reached(made, run) == IMAGES


def test_a_damaged_checkpoint_is_not_read_again_and_again(tmp_path: Path) -> None:
    made = create(tmp_path / "run", flow_run(images=16))
    train(flow_run(images=16), made)
    newest = made.checkpoints()[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load_trained(made.path)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_of_two_exports_into_one_file_one_wins(
    suffix: str, runs: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / f"out.{suffix}"
    target = "safetensors.torch.save_file" if suffix == "safetensors" else "torch.save"
    monkeypatch.setattr(target, lambda content, file, **_: out.write_text("first"))
    words = refused(capsys, "weights", "export", runs / "teacher", "--out", out)
    assert f"{out} exists and is not overwritten" in words
    assert out.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_two_that_sample_at_once_draw_two_pictures(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real = shutil.copytree(runs / "teacher", tmp_path / "run"), images.grid_png
    name = f"{64:012d}-euler32-seed0"

    def draw_meanwhile(*arguments: object) -> bytes:
        with monkeypatch.context() as patched:
            patched.setattr(images, "grid_png", real)
            if not (run / "samples" / f"{name}.png").exists():
                command("sample", run, "--num-samples", 2, "--npz")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(images, "grid_png", draw_meanwhile)
    command("sample", run, "--num-samples", 4, "--npz")
    made = {path.name for path in (run / "samples").iterdir() if "euler" in path.name}
    assert made == {f"{name}{k}.{suffix}" for k in ("", "-2") for suffix in ("png", "npz")}
    assert (run / "samples" / f"{name}.png").stat().st_size < (run / "samples" / f"{name}-2.png").stat().st_size


def test_of_two_statistics_into_one_file_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    import torch

    from facm.data import Moons
    from facm.evaluation import Identity, build_reference, save_reference

    dataset, out, real = Moons(n=20).open(), tmp_path / "x.npz", np.savez
    reference = build_reference(dataset, Identity().build(dataset, torch.device("cpu")))
    monkeypatch.setattr(np, "savez", lambda *a, **k: real(*a, **k) or out.write_text("first"))
    with pytest.raises(ValueError, match=r"x.npz exists and is not overwritten"):
        save_reference(reference, out)
    assert out.read_text() == "first"


def test_a_demo_in_a_folder_that_another_one_makes_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "demo").mkdir()
    with held_elsewhere(tmp_path / "demo"):
        assert "demo is in use by another process" in refused(capsys, "demo", "--out", tmp_path / "demo")
    assert files_of(str(tmp_path / "demo")) == {".lock"}
