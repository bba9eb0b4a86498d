"""The warning of a tangent that runs away: after two lines of the log, once a run, in the log and in the terminal."""

import pytest

import facm
from facm.runs import log
from facm.training import loop
from facm.training.runaway import Runaway
from tests.training.run_parts import flow_run


@pytest.mark.parametrize(
    ("before", "now", "warns"), [(0.5, 0.51, True), (0.1, 0.9, False), (0.9, 0.1, False), (0.15, 0.15, False)]
)
def test_two_lines_in_a_row(before, now, warns):
    found = Runaway([{"clamped": before}]).warning({"clamped": now, "tangent_rms": 131.0, "images": 640})
    assert (found is not None) == warns
    if found is not None:
        assert f"clamped {now:.2f}, tangent_rms 131 at 640 images" in found
        assert "time embedding" in found


@pytest.mark.parametrize(
    ("sizes", "warns"),
    [((1.0, 12.0, 13.0), True), ((1.0, 12.0, 9.0), False), ((5.0, 12.0, 13.0), False), ((0.01, 0.9, 0.9), False)],
)
def test_a_tangent_that_grows_is_warned_of_without_a_clamp(sizes, warns):
    *before, now = ({"tangent_rms": size, "images": 1} for size in sizes)
    found = Runaway(before).warning(now)
    assert (found is not None) == warns
    if found is not None:
        assert "tangent_rms 13 at 1 images, ten times the smallest" in found


def test_an_objective_without_a_tangent_is_not_warned_of_and_a_run_once():
    assert Runaway([{}]).warning({"clamped": 0.9}) is None
    assert Runaway([{"loss": 1.0}]).warning({"loss": 1.0}) is None
    assert Runaway([{"clamped": 0.9}, {"clamped": 0.9, "warning": "x"}]).warning({"clamped": 0.9}) is None


def test_it_is_in_the_log_and_in_the_terminal(tmp_path, monkeypatch, capsys):
    class After(Runaway):
        def warning(self, record):
            return "runs away" if record["images"] == 224 else None

    monkeypatch.setattr(loop, "Runaway", After)
    facm.train(flow_run(), tmp_path / "run", quiet=True)
    assert capsys.readouterr().err == "runs away\n"
    records = log.read(tmp_path / "run" / "log.jsonl")
    assert [(r["images"], r["warning"]) for r in records if "warning" in r] == [(224, "runs away")]
