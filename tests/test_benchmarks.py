"""The benchmarks are not run here, for speed is nothing that a test can hold; but they fit the package."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_every_name_that_a_benchmark_imports_exists(path: Path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)  # as where it is run: one may take its arms from another
    name = f"benchmark_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)


def test_there_are_benchmarks():
    assert len(BENCHMARKS) >= 6
