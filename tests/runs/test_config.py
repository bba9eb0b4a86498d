"""A run's configuration."""

from pathlib import Path

import pytest

import facm
from facm.runs.config import Intervals, Run
from tests.training.run_parts import flow_run


def test_an_impossible_run_names_what_is_wrong():
    for change, message in [
        ({"images": 0}, "images = 0"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"max_nonfinite": 0}, "max_nonfinite = 0"),
        ({"precision": "fp16"}, "precision = 'fp16'"),
    ]:
        with pytest.raises(ValueError, match=message):
            flow_run(**change)
    for name in ("log", "checkpoint", "keep", "ema_snapshots"):
        with pytest.raises(ValueError, match=rf"^Intervals: {name} = -1, expected an integer within"):
            Intervals(**{name: -1})
    for change in (
        {"network": "XL/1"},
        {"data": None},
        {"objective": 3},
        {"teacher": "runs/x"},
        {"initial": Path("x")},
    ):
        with pytest.raises(ValueError, match=f"^Run: {next(iter(change))} = .*, expected an? "):
            flow_run(**change)


def test_run_is_exported():
    assert facm.Run is Run
