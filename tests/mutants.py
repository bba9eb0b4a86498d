"""Hand-picked mutants of the source: changes that every one must make some test fail.

Each folder of tests lists those of the code that it tests in its ``mutants.py``; ``tools/mutants.py`` tries them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutant:
    """``old``, which occurs exactly once in src/facm/``file``, replaced by ``new``.

    file: path below src/facm.
    old: text of the source.
    new: the text that replaces it.
    tests: what must notice it, as pytest takes it: tests/FOLDER/FILE.py::TEST.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.old.split())} -> {' '.join(self.new.split()) or 'nothing'}"


def collected() -> tuple[Mutant, ...]:
    """The mutants of all folders of tests."""
    files = sorted((ROOT / "tests").glob("*/**/mutants.py"))
    modules = [importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts)) for file in files]
    return tuple(mutant for module in modules for mutant in module.MUTANTS)


def problems(mutants: Iterable[Mutant]) -> list[str]:
    """What is wrong with mutants whose text is not in the source exactly once, or whose tests do not exist."""
    found = []
    for mutant in mutants:
        times = _read(f"src/facm/{mutant.file}").count(mutant.old)
        if times != 1:
            found.append(f"{mutant}: the text occurs {times} times in src/facm/{mutant.file}, expected once")
        if mutant.old == mutant.new:
            found.append(f"{mutant}: changes nothing")
        if not mutant.tests:
            found.append(f"{mutant}: tests = (), expected at least one")
        for test in mutant.tests:
            file, _, name = test.partition("::")
            if f"def {name.partition('[')[0]}(" not in _read(file):
                found.append(f"{mutant}: {test} does not exist")
    return found


def _read(path: str) -> str:
    file = ROOT / path
    return file.read_text(encoding="utf-8") if file.is_file() else ""
