"""The warning of a tangent that runs away: after two lines of the log, and once a session."""

import pytest

import facm
from facm.training import session
from facm.training.runaway import running_away
from tests.training.run_parts import flow_run


@pytest.mark.parametrize(
    ("before", "now", "warns"), [(0.5, 0.51, True), (0.1, 0.9, False), (0.9, 0.1, False), (0.15, 0.15, False)]
)
def test_two_lines_in_a_row(before, now, warns):
    found = running_away({"clamped": before}, {"clamped": now, "tangent_rms": 131.0, "images": 640})
    assert (found is not None) == warns
    if found is not None:
        assert f"clamped {now:.2f}, tangent_rms 131 at 640 images" in found
        assert "time embedding" in found


def test_an_objective_without_a_clamp_is_not_warned_of():
    assert running_away({}, {"clamped": 0.9}) is None
    assert running_away({"loss": 1.0}, {"loss": 1.0}) is None


def test_a_session_warns_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "running_away", lambda before, now: "runs away" if before else None)
    facm.train(flow_run(), tmp_path / "run", quiet=True)
    assert capsys.readouterr().err == "runs away\n"
