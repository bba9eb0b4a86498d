"""One thread for every test: results and times do not depend on how many cores there are."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory):
    """Which recipes are trusted is written down, and read, in a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield
