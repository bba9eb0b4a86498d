"""Precision is what the run says."""

import json

import pytest
import torch

from facm.runs import log as logs
from facm.runs.folder import create
from facm.training.loop import train
from facm.training.precision import resolved_precision
from tests.training.run_parts import Crash, before_step, contents, crash_at, facm_run, flow_run, trained, weights


def session(folder):
    (line,) = folder.sessions.read_text().splitlines()
    return json.loads(line)


def test_auto_is_fp32_on_a_cpu(tmp_path):
    folder, plain = (trained(tmp_path / p, flow_run(precision=p)) for p in ("auto", "fp32"))
    assert session(folder)["precision"] == "fp32"
    assert all(torch.equal(value, weights(plain)[name]) for name, value in weights(folder).items())


@pytest.mark.parametrize("objective", ["flow", "student"])
def test_bf16_runs_on_a_cpu_where_it_is_asked_for(tmp_path, objective):
    """The forward pass is bf16: the weights stay float32, and the losses differ a little."""
    runs = [flow_run(precision=precision) for precision in ("fp32", "bf16")]
    if objective == "student":
        teacher = trained(tmp_path / "teacher", flow_run())
        runs = [facm_run(teacher.path, precision=run.precision) for run in runs]
    full, half = (trained(tmp_path / run.precision, run) for run in runs)
    assert session(half)["precision"] == "bf16"
    assert {value.dtype for value in weights(half).values()} == {torch.float32}
    losses = [[record["loss"] for record in logs.read(folder.log)] for folder in (full, half)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_resuming_in_bf16_changes_nothing(tmp_path):
    run = flow_run(precision="bf16")
    expected = contents(trained(tmp_path / "whole", run))
    folder = create(tmp_path / "run", run)
    with pytest.raises(Crash), before_step(crash_at(128)):
        train(run, folder)
    train(run, folder)
    assert contents(folder) == expected


def test_precision_resolves_by_device():
    assert resolved_precision(flow_run(), torch.device("cpu")) == "fp32"
    for precision in ("fp32", "bf16"):
        assert resolved_precision(flow_run(precision=precision), torch.device("cpu")) == precision
