"""What commit d57adea wrote still opens, goes on to the same weights, is evaluated and teaches, wherever modules are.

See tests/data/d57adea/README.md.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from facm import FACM, Labels, MeanFlow, ShortcutModel
from facm.core.public_names import ALIASES, EXPORTS, PUBLIC, REMOVED
from facm.core.serialize import find, fingerprint, from_json, is_fingerprint_of, name_of, to_json
from facm.evaluation import Identity
from facm.evaluation.evaluate import evaluate
from facm.evaluation.evaluator import build_evaluator
from facm.evaluation.samples import Sampling
from facm.pretrained.from_file import load_file
from facm.pretrained.trained import load_trained
from facm.runs.checkpoint import load
from facm.runs.folder import create, open_run
from facm.sampling.methods import Consistency, Euler
from facm.studies.study import Entry
from facm.studies.train_and_measure import finished, measured, wanted
from facm.training.loop import train
from tests.paths import ROOT

DATA = ROOT / "tests" / "data" / "d57adea"
OTHERS = sorted(path.name for path in (DATA / "other").iterdir())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, in the folder that its relative paths are relative to."""
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["teacher", "student", "own", *(f"other/{name}" for name in OTHERS)])
def test_run_folder_opens_and_is_recorded_by_public_names_now(home: Path, name: str) -> None:
    recorded = json.loads((home / name / "run.json").read_text())
    _, run = open_run(home / name, trust_recipe=name == "own")
    assert is_fingerprint_of(recorded["fingerprint"], run)
    assert is_fingerprint_of(fingerprint(run), run)
    assert fingerprint(run) != recorded["fingerprint"]  # by other names
    assert not is_fingerprint_of(recorded["fingerprint"], dataclasses.replace(run, seed=run.seed + 1))
    if name != "own":
        assert from_json(to_json(run)) == run


def test_renamed_fields_keep_their_values(home: Path) -> None:
    mean_flow, shortcut = (open_run(home / "other" / name)[1].objective for name in ("mean-flow", "shortcut"))
    assert isinstance(mean_flow, MeanFlow)
    assert isinstance(shortcut, ShortcutModel)


def test_interrupted_run_goes_on_to_the_weights_of_then(home: Path) -> None:
    folder, run = open_run(home / "student")
    assert isinstance(run.objective, FACM)
    assert [int(file.stem) for file in folder.checkpoints()] == [80, 160]
    assert train(run, folder).finished
    now, then = load(folder.checkpoints()[-1]), load(home / "student-at-its-end.safetensors")
    same = {"images", "steps", "skipped", "skipped_in_a_row", "window", "loader", "rng"}
    assert {name: now.meta[name] for name in same} == {name: then.meta[name] for name in same}
    assert now.meta["teacher"]["sha256"] == then.meta["teacher"]["sha256"]
    for name, value in then.tensors.items():
        if value.is_floating_point():  # processors sum in different orders, those with the same instructions, too
            torch.testing.assert_close(
                now.tensors[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_evaluations_of_then_are_found_and_not_made_again(home: Path) -> None:
    _, run = open_run(home / "teacher")
    entry = Entry("teacher", "teacher", run, nfe=(1, 2))
    assert finished(entry, home / "teacher", 64, "identity")
    rows = [measured(home / "teacher", want, run, 64, "identity") for want in wanted(entry)]
    assert [row and row["nfe"] for row in rows] == [1, 2]
    assert not finished(dataclasses.replace(entry, nfe=(1, 3)), home / "teacher", 64, "identity")


def test_evaluates_to_the_number_of_then(home: Path) -> None:
    trained = load_trained(home / "teacher")
    evaluator = build_evaluator(trained.dataset, torch.device("cpu"), Identity())
    then = json.loads((home / "teacher" / "evaluations.jsonl").read_text().splitlines()[1])
    row = evaluate(trained, Sampling(Euler(2), 64, seed=1), evaluator).to_json()
    assert row["frechet_distance"] == pytest.approx(then["frechet_distance"], rel=1e-4)
    assert row["checkpoint"] == then["checkpoint"]
    new = ("network_precision", "clip_score", "clip", "frames_per_clip")
    assert ["run", *(name for name in row if name not in new)] == list(then)


def test_teaches(home: Path) -> None:
    """A new student of the old teacher; and one that follows an EMA length synthesised from its snapshots."""
    _, run = open_run(home / "student")
    for sigma_rel in (None, 0.1):
        source = dataclasses.replace(run.teacher, sigma_rel=sigma_rel)
        new = dataclasses.replace(run, images=32, teacher=source, initial=source)
        assert train(new, create(home / f"new-{sigma_rel}", new)).finished


def test_exports_open(home: Path) -> None:
    for name, method in (("teacher", Euler(2)), ("student", Consistency(1))):
        with pytest.raises(ValueError, match="shape of a sample"):  # an MLP's file never told it
            load_file(home / f"{name}.safetensors")
        assert method.nfe


def test_public_names_are_what_the_packages_export() -> None:
    assert len(PUBLIC) == sum(map(len, EXPORTS.values()))  # a name stands for one component
    for name in PUBLIC.values():
        cls = find(name)
        assert dataclasses.is_dataclass(cls)
        assert name_of(cls) == name
    assert set(ALIASES.values()) <= set(PUBLIC.values())


def test_removed_components_say_what_is_there_instead() -> None:
    for name, instead in REMOVED.items():
        with pytest.raises(ValueError, match=r"version 0\.1") as caught:
            find(name)
        assert instead in str(caught.value)


def test_nothing_else_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in a run folder makes this package import nothing but itself, wherever the name could be found."""
    (tmp_path / "planted.py").write_text("raise SystemExit('planted code ran')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("planted:Run", "os:system", "facm.cli:main", "facm.core.files:Path", "dataclasses:Field", ""):
        with pytest.raises(ValueError, match=r"refused|no component"):
            from_json({"type": name})


def test_own_components_are_found_in_the_recipe_file_alone(home: Path) -> None:
    folder, run = open_run(home / "own", trust_recipe=True)
    assert run.objective.condition == Labels(2)  # type: ignore[attr-defined]
    assert load_trained(folder.path).images_seen == 64
    record = json.loads(folder.run_json.read_text())
    record["run"]["objective"]["type"] = record["run"]["objective"]["type"].replace("Mine", "Other")
    folder.run_json.write_text(json.dumps(record))
    with pytest.raises(RuntimeError, match="no component"):
        open_run(home / "own")
