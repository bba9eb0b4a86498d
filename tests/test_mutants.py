"""The hand-picked mutants fit the source, and their runner tells killed from survived."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import Mutant, collected, problems
from tests.paths import ROOT

TEST = "tests/test_mutants.py::test_every_mutant_fits_the_source"


def test_every_mutant_fits_the_source():
    assert problems(collected()) == []


def test_mutants_are_collected_from_the_folders_of_tests_and_none_is_there_twice():
    mutants = collected()
    assert {mutant.file.partition("/")[0] for mutant in mutants} >= {"flow", "objectives", "derivative", "training"}
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in mutants}) == len(mutants)


@pytest.mark.parametrize(
    ("mutant", "said"),
    [
        (Mutant("flow/paths.py", "no such text", "", (TEST,)), "occurs 0 times"),
        (Mutant("flow/paths.py", "x_1", "x_0", (TEST,)), "expected once"),
        (Mutant("flow/no_such_file.py", "x_1", "x_0", (TEST,)), "src/facm/flow/no_such_file.py"),
        (Mutant("flow/paths.py", "return x_1 - x_0", "return x_1 - x_0", (TEST,)), "changes nothing"),
        (Mutant("flow/paths.py", "return x_1 - x_0", "return x_0 - x_1", ()), "expected at least one"),
        (Mutant("flow/paths.py", "return x_1 - x_0", "return x_0 - x_1", (f"{TEST}_not",)), f"{TEST}_not does not"),
        (Mutant("flow/paths.py", "return x_1 - x_0", "return x_0 - x_1", ("tests/none.py::test",)), "does not exist"),
    ],
)
def test_a_mutant_that_went_stale_is_named(mutant, said):
    (problem,) = problems([mutant])
    assert problem.startswith(str(mutant))
    assert said in problem


ATTEMPT = """
import sys
from pathlib import Path
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
from mutants import Mutant, run_all
mutant = Mutant("sums.py", "a + b", sys.argv[3], ("test_sum.py::test_sum",))
tried = run_all([mutant], [Path(sys.argv[2])], timeout=int(sys.argv[4]))
[(_, outcome, _)] = tried
print(outcome.verdict, outcome.by)
"""


@pytest.mark.parametrize(
    ("new", "timeout", "said"),
    [
        ("a - b", 500, "killed test_sum.py::test_sum"),
        ("b + a", 500, "SURVIVED"),
        ("a +", 500, "BROKEN pytest exited with"),
        ("[a for _ in iter(int, 1)]", 1, "HANGS no answer within 1 s"),
    ],
)
def test_the_runner_tells_what_became_of_a_mutant(tmp_path: Path, new, timeout, said):
    source = tmp_path / "src" / "facm" / "sums.py"
    source.parent.mkdir(parents=True)
    source.write_text("def total(a, b):\n    return a + b\n")
    (tmp_path / "test_sum.py").write_text("import sums\n\n\ndef test_sum():\n    assert sums.total(2, 3) == 5\n")
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {source.parent}\n")
    command = [sys.executable, "-c", ATTEMPT, str(ROOT / "tools"), str(tmp_path), new, str(timeout)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(said), done.stderr
    assert "a + b" in source.read_text()
