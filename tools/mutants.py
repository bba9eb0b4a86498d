"""Tries the hand-picked mutants: the tests that a mutant names must notice it.

    python tools/mutants.py [--only TEXT ...] [--jobs N] [--timeout SECONDS] [--list]

Works on copies of the source and the tests in a temporary folder; the checkout is never edited. Exits with 1 unless a
test fails for every mutant, and if the tests fail without any mutation.
"""

from __future__ import annotations

import argparse
import compileall
import os
import py_compile
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.mutants import Mutant, collected, problems  # noqa: E402

KILLED, SURVIVED, HANGS, BROKEN = "killed", "SURVIVED", "HANGS", "BROKEN"


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    verdict: killed: a test failed; SURVIVED: all passed; HANGS: they took too long; BROKEN: pytest could not run them.
    by: the test that noticed it, or what pytest printed.
    seconds: time that it took.
    """

    verdict: str
    by: str
    seconds: float


def copied(root: Path) -> Path:
    """A copy of the source and the tests at ``root``, in which one mutant at a time is tried."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", "tests", "examples"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=ignore)
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    # Compiled code is checked by the source's hash: two mutants of one second and one size are told apart.
    compileall.compile_dir(root / "src", quiet=1, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    return root


def run_tests(root: Path, tests: Iterable[str], timeout: float) -> Outcome:
    """Run ``tests`` in the copy at ``root`` up to the first failure."""
    began = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "--tb=no",
        "-rfE",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    paths = {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}", "PYTHONDONTWRITEBYTECODE": "1"}
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(
        [*command, *tests],
        cwd=root,
        env={**os.environ, **paths, **threads},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        return Outcome(HANGS, f"no answer within {timeout:g} s", timeout)
    finally:
        if process.poll() is None:  # also after Ctrl-C, which a session of its own does not get
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.monotonic() - began
    failed = [line.partition(" ")[2] for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    if process.returncode == 0:
        return Outcome(SURVIVED, "", seconds)
    if process.returncode == 1 and failed:
        return Outcome(KILLED, failed[0].partition(" - ")[0], seconds)
    return Outcome(BROKEN, f"pytest exited with {process.returncode}: {output[-2000:]}", seconds)


def attempt(mutant: Mutant, root: Path, timeout: float) -> Outcome:
    """Run the tests of ``mutant`` on the mutated copy at ``root``, which is restored afterwards."""
    path = root / "src" / "facm" / mutant.file
    original = path.read_text(encoding="utf-8")
    path.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        return run_tests(root, mutant.tests, timeout)
    finally:
        path.write_text(original, encoding="utf-8")


def try_all(mutants: Sequence[Mutant], jobs: int, timeout: float) -> int:
    """Try all and print what becomes of each; the number of those that were not killed."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(jobs) as pool:
        free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for index in range(jobs):
            free.put(copied(Path(folder) / str(index)))
        root = free.get()
        before = run_tests(root, sorted({t for m in mutants for t in m.tests}), timeout * len(mutants))
        free.put(root)
        if before.verdict != SURVIVED:
            raise SystemExit(f"without any mutation the tests fail: {before.by}")
        print(f"without mutation: passed in {before.seconds:.0f} s", flush=True)

        def one(mutant: Mutant) -> bool:
            root = free.get()
            outcome = attempt(mutant, root, timeout)
            free.put(root)
            print(f"{outcome.verdict:8} {outcome.seconds:5.1f} s  {mutant}  {outcome.by}", flush=True)
            return outcome.verdict == KILLED

        try:
            return list(pool.map(one, mutants)).count(False)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="only mutants whose file or text contains one of these")
    parser.add_argument("--list", action="store_true", help="print the mutants and end")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at a time")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that the tests of a mutant may take")
    arguments = parser.parse_args()
    mutants = [m for m in collected() if any(text in str(m) for text in arguments.only)]
    if not mutants:
        raise SystemExit(f"--only {' '.join(arguments.only)}: no mutant contains it")
    if found := problems(mutants):
        raise SystemExit("\n".join(found))
    if arguments.list:
        print(*mutants, f"{len(mutants)} mutants", sep="\n")
        return
    left = try_all(mutants, arguments.jobs, arguments.timeout)
    print(f"{len(mutants) - left} of {len(mutants)} killed")
    raise SystemExit(1 if left else 0)


if __name__ == "__main__":
    main()
