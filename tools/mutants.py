"""Tries the hand-picked mutants: the tests that a mutant names must notice it.

    python tools/mutants.py [--only TEXT ...] [--jobs N] [--timeout SECONDS] [--list]

Works on copies of the source and the tests in a temporary folder; the checkout is never edited. Exits with 1 unless a
test fails for every mutant, and if the tests fail without any mutation.
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import os
import py_compile
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.mutants import Mutant, collected, problems  # noqa: E402

KILLED, SURVIVED, HANGS, BROKEN = "killed", "SURVIVED", "HANGS", "BROKEN"
OUTPUT = "pytest.out"
OPTIONS = ("-x", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", "-p", "no:xdist")


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    verdict: killed: a test failed; SURVIVED: all passed; HANGS: they took too long; BROKEN: pytest could not run them.
    by: the test that noticed it, or what pytest printed.
    """

    verdict: str
    by: str = ""


def copied(root: Path) -> Path:
    """A copy of the source and the tests at ``root``, in which one mutant at a time is tried."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", "tests", "examples"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=ignore)
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    # Compiled code is checked by the source's hash: two mutants of one second and one size are told apart.
    compileall.compile_dir(root / "src", quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    return root


@dataclass
class Attempt:
    """A forked process that runs tests in a copy; the imports of this process, torch's above all, are its own already.

    root: the copy.
    mutant: the mutant that the copy has.
    pid: the process.
    began: when it began, in seconds of the monotonic clock.
    original: the text of the mutated file before.
    """

    root: Path
    mutant: Mutant
    pid: int
    began: float
    original: str

    @classmethod
    def start(cls, root: Path, mutant: Mutant) -> Attempt:
        original = _file(root, mutant).read_text(encoding="utf-8")
        _file(root, mutant).write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
        sys.stdout.flush()
        pid = os.fork() or _child(root, mutant.tests)
        return cls(root, mutant, pid, time.monotonic(), original)

    def outcome(self, timeout: float) -> Outcome | None:
        """None while the tests run; afterwards the copy is as it was before."""
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        if not ended and time.monotonic() - self.began <= timeout:
            return None
        if not ended:
            self.stop()
        _file(self.root, self.mutant).write_text(self.original, encoding="utf-8")
        if not ended:
            return Outcome(HANGS, f"no answer within {timeout:g} s")
        output = (self.root / OUTPUT).read_text(encoding="utf-8", errors="replace")
        failed = [line.partition(" ")[2] for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        match os.waitstatus_to_exitcode(status):
            case 0:
                return Outcome(SURVIVED)
            case 1 if failed:
                return Outcome(KILLED, failed[0].partition(" - ")[0])
            case code:
                return Outcome(BROKEN, f"pytest exited with {code}: {output[-2000:]}")

    def stop(self) -> None:
        """End the process and all that it started."""
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _file(root: Path, mutant: Mutant) -> Path:
    return root / "src" / "facm" / mutant.file


def _child(root: Path, tests: Iterable[str]) -> NoReturn:
    """Run ``tests`` in the copy at ``root`` and exit with pytest's code."""
    code = 70
    try:
        os.setsid()
        os.chdir(root)
        with (root / OUTPUT).open("w", encoding="utf-8") as output:
            sys.stdout = sys.stderr = output
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os.environ["PYTHONPATH"] = f"{root / 'src'}{os.pathsep}{root}"
            sys.path[:0] = [str(root / "src"), str(root)]
            for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
                del sys.modules[name]  # the checkout's
            try:
                code = int(pytest.main([*OPTIONS, "--rootdir", str(root), *tests]))
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)


def run_all(
    mutants: Sequence[Mutant], roots: Sequence[Path], timeout: float
) -> Iterator[tuple[Mutant, Outcome, float]]:
    """Each mutant with its outcome and its seconds, as they end; one at a time in each of ``roots``."""
    waiting, free, running = list(reversed(mutants)), list(roots), list[Attempt]()
    try:
        while waiting or running:
            while waiting and free:
                mutant = waiting.pop()
                running.append(Attempt.start(free.pop(), mutant))
            time.sleep(0.02)
            for attempt in list(running):
                if (outcome := attempt.outcome(timeout)) is not None:
                    running.remove(attempt)
                    free.append(attempt.root)
                    yield attempt.mutant, outcome, time.monotonic() - attempt.began
    finally:
        for attempt in running:
            attempt.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="only mutants whose file or text contains one of these")
    parser.add_argument("--list", action="store_true", help="print the mutants and end")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at a time")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that the tests of a mutant may take")
    arguments = parser.parse_args()
    mutants = [mutant for mutant in collected() if any(text in str(mutant) for text in arguments.only)]
    if not mutants:
        raise SystemExit(f"--only {' '.join(arguments.only)}: no mutant contains it")
    if found := problems(mutants):
        raise SystemExit("\n".join(found))
    if arguments.list:
        print(*mutants, f"{len(mutants)} mutants", sep="\n")
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    for name in ("torch.func", "torch.testing", "torch.utils.checkpoint", "safetensors.torch"):
        importlib.import_module(name)  # once, for all children; the package is imported by each from its copy
    left = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        roots = [copied(Path(folder) / str(index)) for index in range(arguments.jobs)]
        all_tests = tuple(sorted({test for mutant in mutants for test in mutant.tests}))
        nothing = replace(mutants[0], new=mutants[0].old, tests=all_tests)
        [(_, before, seconds)] = run_all([nothing], roots, float("inf"))
        if before.verdict != SURVIVED:
            raise SystemExit(f"without any mutation the tests fail: {before.by}")
        print(f"without mutation: passed in {seconds:.0f} s", flush=True)
        for mutant, outcome, seconds in run_all(mutants, roots, arguments.timeout):
            left += outcome.verdict != KILLED
            print(f"{outcome.verdict:8} {seconds:5.1f} s  {mutant}  {outcome.by}", flush=True)
    print(f"{len(mutants) - left} of {len(mutants)} killed")
    raise SystemExit(1 if left else 0)


if __name__ == "__main__":
    main()
