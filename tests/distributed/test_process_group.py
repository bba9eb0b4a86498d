"""Ranks that are lost, and environments that name none: each is an error that names it."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from facm.distributed import process_group as world
from facm.distributed.engine import Engine
from facm.distributed.process_group import opened
from tests.distributed.parallel_parts import finish, moons_run, start, train_in


def hangs_or_dies(how, seconds):
    """Rank 1 stops answering in the middle of the run. They begin together: ``seconds`` are few."""
    import facm.training.loop  # noqa: F401 (before the clock runs)
    from facm.data.stream import Stream

    run, world.ROLL_CALL_S = Path(os.environ["RUN"]), 1.0
    Path(f"{run}-{os.environ['RANK']}").touch()
    while not all(Path(f"{run}-{rank}").exists() for rank in range(2)):
        time.sleep(0.01)

    original = Stream.at

    def at(self, images):
        if images == 48 and self.rank == 1:
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "fails":
                raise ValueError("sample 7 is broken")
            time.sleep(600)
        return original(self, images)

    Stream.at = at
    with opened(Engine(timeout_s=seconds)) as here:
        train_in(run, moons_run(), Engine(), here)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "seconds", "expected"),
    [
        ("hangs", 20, r"LostRankError: rank 1 of 2 did not arrive.*engine.timeout_s = 20"),
        ("dies", 100, r"LostRankError: rank 1 of 2 did not arrive"),
        ("fails", 100, r"PeerError: rank 1 failed: ValueError: sample 7 is broken"),
    ],
)
def test_a_lost_rank_is_named(tmp_path, how, seconds, expected):
    import re

    processes = start(
        2, "tests.distributed.test_process_group", "hangs_or_dies", how, seconds, RUN=str(tmp_path / "run")
    )
    code, _, errors = finish(processes[:1], 200)[0]
    finish(processes[1:], 0)
    assert code == 1
    assert re.search(expected, errors), errors


@pytest.mark.parametrize(
    ("environment", "message"),
    [({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two'"), ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK = 2 of WORLD_SIZE = 2")],
)
def test_an_environment_that_torchrun_does_not_set_is_refused(monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        world.announced()


def test_one_process_opens_no_group():
    with opened(Engine()) as here:
        assert here is world.ALONE
        assert not torch.distributed.is_initialized()
