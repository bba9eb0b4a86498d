"""The run folder: what is written before step 1, so that a result is reproducible from its row.

run.json           the run, and the recipe it came from
recipe.py          the user's recipe file, where there is one
environment.json   command, versions, git commit and diff, device, threads
log.jsonl          one record every so many images
sessions.jsonl     one line for each time training began or went on: clock, device, precision, threads
checkpoints/       NNN.safetensors, or directories NNN of a sharded run, the newest few
ema/               snapshots for post-hoc synthesis
samples/           grids
evaluations.jsonl  one row per evaluation, with its provenance
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from facm.core.files import atomically, write_text
from facm.core.serialize import fingerprint, from_json, is_fingerprint_of, to_json
from facm.runs.config import Run
from facm.runs.environment import environment
from facm.runs.recipe_file import load_module


class RunFolderError(RuntimeError):
    """A run folder that is in use, incomplete or changed."""


class LockedError(RunFolderError):
    """Another process is training in the run folder."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run's folder."""

    path: Path

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def sessions(self) -> Path:
        return self.path / "sessions.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def checkpoint(self, images: int) -> Path:
        return self.path / "checkpoints" / f"{images:012d}.safetensors"

    def checkpoints(self) -> list[Path]:
        """All checkpoints, oldest first: files, and directories of sharded ones."""
        return _stored(self.path / "checkpoints")

    def ema_snapshot(self, images: int, sigma_rel: float) -> Path:
        return self.path / "ema" / f"{images:012d}-{sigma_rel}.safetensors"

    def ema_snapshots(self) -> list[tuple[int, float, Path]]:
        """(images seen, sigma_rel, file) of every kept EMA snapshot, oldest first."""
        found = []
        for file in _stored(self.path / "ema"):
            images, _, sigma_rel = file.name.removesuffix(".safetensors").partition("-")
            found.append((int(images), float(sigma_rel), file))
        return found


def _stored(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*") if path.suffix == ".safetensors" or path.is_dir())


def check_unused(path: Path) -> None:
    """Raise RunFolderError if a run's folder cannot be made at ``path``, for something is there."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunFolderError(
            f"out = {path} is in use and is never overwritten: choose another folder, continue it with "
            f"'facm resume {path}', or delete it yourself"
        )


def create(path: Path, run: Run, recipe: str | None = None, recipe_file: Path | None = None) -> RunFolder:
    """Make a run's folder and write what it needs before step 1. Raises RunFolderError if the folder is in use."""
    check_unused(path)
    source = recipe_file and {"name": recipe_file.stem, "folder": str(recipe_file.parent.resolve())}
    record = {"run": to_json(run), "fingerprint": fingerprint(run), "recipe": recipe, "source": source}
    path.mkdir(parents=True, exist_ok=True)
    if recipe_file is not None:
        with atomically(path / "recipe.py") as partial:  # byte for byte: its hash is part of its classes' names
            partial.write_bytes(recipe_file.read_bytes())
    write_text(path / "environment.json", json.dumps(environment(), indent=2))
    write_text(path / "run.json", json.dumps(record, indent=2))  # last: its presence says the folder is complete
    return RunFolder(path)


def create_or_continue(
    path: Path, run: Run, recipe: str | None = None, recipe_file: Path | None = None
) -> tuple[RunFolder, Run]:
    """The run's folder, which may hold this very run already. Raises RunFolderError if it holds something else."""
    if not (path / "run.json").exists():
        _tidy(path, recipe_file)
        return create(path, run, recipe, recipe_file), run
    folder, begun = open_run(path)
    if fingerprint(begun) != fingerprint(run):
        changed = [f.name for f in dataclasses.fields(Run) if getattr(begun, f.name) != getattr(run, f.name)]
        raise RunFolderError(
            f"out = {path} holds another run than this command's ({', '.join(changed)} differ): choose another folder, "
            f"or continue it as it is with 'facm resume {path}'"
        )
    return folder, begun


def _tidy(path: Path, recipe_file: Path | None) -> None:
    """Remove what a kill left of a folder that was being made, and nothing else."""
    own = {".recipe.py.partial", ".environment.json.partial", ".run.json.partial", "environment.json"}
    recipe = path / "recipe.py"
    if recipe.exists() and recipe_file is not None and recipe.read_bytes() == recipe_file.read_bytes():
        own.add("recipe.py")
    left = list(path.iterdir()) if path.is_dir() else []
    if {file.name for file in left} <= own:
        for file in left:
            file.unlink()


def discard(folder: RunFolder) -> None:
    """Undo :func:`create` for a run that failed before it had any result, so that the next try finds the name free."""
    files = list(folder.path.iterdir())
    if {file.name for file in files} <= {"run.json", "recipe.py", "environment.json", "sessions.jsonl", ".lock"}:
        for file in files:
            file.unlink()
        folder.path.rmdir()


def open_run(path: Path) -> tuple[RunFolder, Run]:
    """An existing run's folder and its run. Raises RunFolderError where there is none, or it was changed by hand."""
    folder = RunFolder(path)
    if not folder.run_json.exists():
        raise RunFolderError(f"{path} is not a run folder: it has no run.json")
    try:
        record = json.loads(folder.run_json.read_text(encoding="utf-8"))
        recipe = None
        if record["source"] is not None:
            recipe = load_module(path / "recipe.py", record["source"]["name"], Path(record["source"]["folder"]))
        run = from_json(record["run"], recipe)
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{folder.run_json} does not describe a run: {error}") from error
    if not isinstance(run, Run) or not is_fingerprint_of(record["fingerprint"], run):
        raise RunFolderError(
            f"{folder.run_json}, or a default in this version, was changed since the run started: resuming with "
            "another recipe would be another run; restore the file, or start a new run with 'facm train'"
        )
    return folder, run


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Hold the run folder; the lock ends with the process, however it ends. Raises LockedError if it is held."""
    with (folder.path / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LockedError(f"{folder.path} is in use by another process that is training in it") from error
        yield
