"""One thread for every test: results and times do not depend on how many cores there are."""

import gc
import os
import tempfile

import pytest
import torch

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Which recipes are trusted is written down, and read, in a folder of the tests' own, also by the processes that
    tests start: some of their modules copy the environment when they are imported."""
    state = tempfile.TemporaryDirectory()
    config.add_cleanup(state.cleanup)
    os.environ["XDG_STATE_HOME"] = state.name


@pytest.fixture(scope="module", autouse=True)
def kept() -> None:
    """What was imported before a file's tests stays: the collector, which else looks through all of it again and again,
    takes an eighth of the time."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # or extension modules complain of leaks when the process ends
