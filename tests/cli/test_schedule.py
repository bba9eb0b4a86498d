"""facm schedule: searched once, used by its name, exported with the student, refused where it does not belong."""

import json
import shutil

import pytest
import torch

from facm.flow.conditions import Labels
from facm.pretrained.trained import load_trained
from facm.sampling.generate import balanced_labels, sample
from tests.cli.cli_parts import OVERRIDES, command, refused

SMALL = ("--num-steps", 2, 3, "--num-samples", 16, "--trials", 1, "--quiet")
SEARCHED = ("--sampler", "searched", "--num-samples", 20, "--num-steps")


@pytest.fixture(scope="module")
def searched(runs, tmp_path_factory):
    """A student's run with a schedule."""
    run = shutil.copytree(runs / "student", tmp_path_factory.mktemp("searched") / "student")
    command("schedule", run, *SMALL)
    return run


def test_a_schedule_is_searched_once_used_and_recorded(searched, capsys, tmp_path):
    found = json.loads((searched / "schedule.json").read_text())
    assert [each["nfe"] for each in found["found"]] == [2, 3]
    assert found["search"]["samples"] == 16
    for each in found["found"]:
        assert each["distance"] <= min(each["defaults"].values())
        assert set(each["defaults"]) == {"consistency", "flow-jump"}
    run = shutil.copytree(searched, tmp_path / "student")
    command("evaluate", run, *SEARCHED, 3, "--quiet")
    row = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    assert row["method"] == found["found"][1]["method"]
    assert (row["sampler"], row["nfe"]) == ("moves", 3)
    command("sample", run, *SEARCHED, 2)
    assert "20 samples, Moves with 2 evaluations" in capsys.readouterr().out
    assert "schedule.json exists and is not overwritten" in refused(capsys, "schedule", run, *SMALL)


def test_it_is_exported_with_its_weights_and_only_with_them(searched, capsys, tmp_path):
    file, other, reference = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "c.pt"
    command("weights", "export", searched, "--out", file)
    assert "schedule" not in capsys.readouterr().err
    command("sample", file, *SEARCHED, 3, "--npz", "--out", tmp_path / "x.png")
    trained = load_trained(searched)
    method = trained.schedule().method(3, trained.identity)
    want = sample(trained.source(torch.device("cpu")), method, range(20), balanced_labels(Labels(10), range(20)))
    import numpy as np

    from facm.sampling.clips import clip_to_uint8

    assert np.array_equal(np.load(tmp_path / "x.npz")["images"], clip_to_uint8(want))
    command("weights", "export", searched, "--raw", "--out", other)
    assert "without the searched schedule" in capsys.readouterr().err
    assert "b.safetensors has no searched schedule" in refused(capsys, "sample", other, *SEARCHED, 3)
    command("weights", "export", searched, "--out", reference)
    assert "which the authors' layout cannot hold" in capsys.readouterr().err


def test_a_schedule_of_other_weights_or_numbers_is_refused(searched, runs, capsys, tmp_path):
    assert "--num-steps 4, but the schedule of" in refused(capsys, "sample", searched, *SEARCHED, 4)
    assert "was searched for EMA 0.05 with the sha256" in refused(capsys, "sample", searched, "--raw", *SEARCHED, 3)
    assert "--sampler searched, whose schedule says all" in refused(
        capsys, "sample", searched, *SEARCHED, 3, "--shift", 2
    )
    assert "has no schedule.json, expected one that 'facm sch" in refused(
        capsys, "sample", runs / "student", *SEARCHED, 3
    )
    run = shutil.copytree(searched, tmp_path / "run")
    content = json.loads((run / "schedule.json").read_text())
    content["found"][1]["method"]["times"][-1] = 0.0
    (run / "schedule.json").write_text(json.dumps(content))
    assert "times that start at 0 and increase strictly below 1" in refused(capsys, "sample", run, *SEARCHED, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--num-steps", 0), "--num-steps 0, expected 1 to 16"),
        (("--num-steps", 17), "--num-steps 17, expected 1 to 16"),
        (("--num-steps", 2, 2), "has a number twice"),
        (("--num-samples", 1), "--num-samples 1, expected at least 2"),
        (("--trials", -1), "--trials -1, expected 0 or more"),
        (("--batch-size", 0), "--batch-size 0, expected at least 1"),
    ],
)
def test_what_cannot_be_searched_is_named(runs, capsys, options, said):
    assert said in refused(capsys, "schedule", runs / "student", *options)


def test_a_teacher_has_nothing_to_search(runs, capsys):
    said = refused(capsys, "schedule", runs / "teacher", *SMALL)
    assert "teacher: expected a student, whose schedule is searched" in said
    assert "average velocities from any time to the end, which" in said


def test_a_student_without_an_anchor_is_searched_among_jumps_and_exported_as_one(runs, capsys, tmp_path):
    run, teacher = tmp_path / "plain", ("--teacher", runs / "teacher")
    command("train", "digits-plain-cm", *teacher, "--images", 32, "--out", run, "--quiet", *OVERRIDES)
    command("schedule", run, *SMALL)
    for each in json.loads((run / "schedule.json").read_text())["found"]:
        assert set(each["method"]["moves"]) == {"jump"}
        assert set(each["defaults"]) == {"consistency"}
    for name, network in (("plain", run), ("student", runs / "student")):
        command("weights", "export", network, "--out", tmp_path / f"{name}.safetensors")
    flow = ("--sampler", "flow-jump", "--num-steps", 3, "--num-samples", 4)
    command("sample", tmp_path / "student.safetensors", *flow)
    for network in (run, tmp_path / "plain.safetensors"):
        assert "needs a flow and average velocities to its end" in refused(capsys, "sample", network, *flow)
