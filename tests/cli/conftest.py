"""Runs that the tests of several commands look at, and recipes in a file."""

import functools

import pytest

from facm.evaluation.classifier import SmallClassifier
from tests.cli.cli_parts import OVERRIDES, RECIPES, command


@pytest.fixture(scope="session", autouse=True)
def _caches(tmp_path_factory):
    """A classifier trained for a moment, kept out of the user's cache."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FACM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patched.setattr("facm.evaluation.evaluator.SmallClassifier", functools.partial(SmallClassifier, epochs=1))
        yield


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A teacher and a student of digits, trained by the command line for a few steps."""
    root = tmp_path_factory.mktemp("runs")
    command("train", "digits-teacher", "--images", 64, "--out", root / "teacher", "--quiet", *OVERRIDES)
    teacher = ("--teacher", root / "teacher")
    command("train", "digits-student", *teacher, "--images", 48, "--out", root / "student", "--quiet", *OVERRIDES)
    return root


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """The current folder, with mine.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(RECIPES)
    return tmp_path
