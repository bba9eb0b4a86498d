"""A run in a process of its own equals one in this process, and ends when it is not waited for."""

from dataclasses import replace

import pytest
import torch

from facm.runs.checkpointer import reached
from facm.runs.config import Intervals
from facm.runs.folder import RunFolder, create
from facm.studies.beside import trained_beside
from facm.training.loop import train
from tests.training.run_parts import flow_run, weights

pytestmark = pytest.mark.slow


def a_run(images):
    return replace(flow_run(), images=images, every=Intervals(log=64, checkpoint=64, ema_snapshots=0))


def test_it_ends_with_the_same_bytes(tmp_path):
    run, threads = a_run(256), torch.get_num_threads()
    with trained_beside(tmp_path / "beside", run) as whole:
        assert whole()
    assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    here = create(tmp_path / "here", run)
    train(run, here)
    torch.set_num_threads(threads)
    ours, theirs = weights(here), weights(RunFolder(tmp_path / "beside"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    with trained_beside(tmp_path / "beside", run) as whole:
        assert whole()  # there is nothing left to do


def test_it_is_stopped_and_goes_on(tmp_path):
    run = a_run(10**8)
    with trained_beside(tmp_path / "run", run):
        pass
    assert reached(RunFolder(tmp_path / "run"), run) < run.images
