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
schedule.json      moves and times of the sampler for each number of evaluations, where they were searched
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from facm.core import public_names
from facm.core.claims import LOCK, HeldError, contents, held
from facm.core.component import shown
from facm.core.files import PARTIAL, atomically, write_text
from facm.core.serialize import fingerprint, from_json, is_fingerprint_of, to_json, types_in
from facm.core.untrusted.door import read_json
from facm.runs.config import Run
from facm.runs.environment import environment
from facm.runs.recipe_file import Recipe, RecipeSource, read_recipe, source_of
from facm.runs.trust import is_trusted, remember

REMOVED = ".removed"
"""How the names of checkpoints' directories end that are being deleted."""


class RunFolderError(RuntimeError):
    """A run folder that is in use, incomplete or changed."""


class LockedError(RunFolderError):
    """Another process is training in the run folder."""


class UntrustedRecipeError(RunFolderError):
    """A run folder whose recipe file the user has neither run nor vouched for."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run's folder. The folder may be reached through links; what is in it must be its own.

    path: the folder.
    claimed: whether this process holds its lock already.

    All paths raise RunFolderError for a link, and for what is of another kind, such as a pipe in place of a file.
    """

    path: Path
    claimed: bool = False

    @property
    def run_json(self) -> Path:
        return self._file("run.json")

    @property
    def recipe(self) -> Path:
        return self._file("recipe.py")

    @property
    def environment_json(self) -> Path:
        return self._file("environment.json")

    @property
    def log(self) -> Path:
        return self._file("log.jsonl")

    @property
    def sessions(self) -> Path:
        return self._file("sessions.jsonl")

    @property
    def evaluations(self) -> Path:
        return self._file("evaluations.jsonl")

    @property
    def schedule(self) -> Path:
        return self._file("schedule.json")

    @property
    def samples(self) -> Path:
        return self.inside("samples")

    def checkpoint(self, images: int) -> Path:
        return self.inside("checkpoints") / f"{images:012d}.safetensors"

    def checkpoints(self) -> list[Path]:
        """All checkpoints, oldest first: files, and directories of sharded ones."""
        found = _stored(self.inside("checkpoints"), _CHECKPOINT)
        return [path for _, path in sorted((int(images), path) for (images,), path in found)]

    def ema_snapshot(self, images: int, sigma_rel: float) -> Path:
        return self.inside("ema") / f"{images:012d}-{sigma_rel}.safetensors"

    def ema_snapshots(self) -> list[tuple[int, float, Path]]:
        """(images seen, sigma_rel, file) of every kept EMA snapshot, oldest first."""
        found = _stored(self.inside("ema"), _SNAPSHOT)
        return sorted((int(images), float(sigma_rel), path) for (images, sigma_rel), path in found)

    def _file(self, name: str) -> Path:
        return _own(self.path / name, stat.S_ISREG, "a regular file")

    def inside(self, name: str) -> Path:
        """A folder of the run's. Raises RunFolderError where something else, such as a link, has its name."""
        return _own(self.path / name, stat.S_ISDIR, "a folder")


_CHECKPOINT = re.compile(r"([0-9]{12,})(?:\.safetensors)?")
_PREVIEW = re.compile(r"\.[0-9]{12,}\.png\.")
_SNAPSHOT = re.compile(r"([0-9]{12,})-([0-9]+(?:\.[0-9]+)?(?:e-[0-9]+)?)(?:\.safetensors)?")


def _stored(folder: Path, name: re.Pattern[str]) -> Iterator[tuple[tuple[str, ...], Path]]:
    """What is stored under names such as ``name``: its groups, and the path of a file, or of a sharded directory."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if found := name.fullmatch(path.name):
            is_file = path.suffix == ".safetensors"
            kind = (stat.S_ISREG, "a regular file") if is_file else (stat.S_ISDIR, "a folder")
            yield found.groups(), _own(path, *kind)


def _own(path: Path, is_kind: Callable[[int], bool], kind: str) -> Path:
    """``path``, where it is of the run folder itself and of that kind, or not there. Raises RunFolderError."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return path
    if stat.S_ISLNK(mode):
        raise RunFolderError(
            f"{path} is a symbolic link, expected {kind}: nothing outside a run's folder is read or written in its "
            "place; a link to the whole folder is followed"
        )
    if not is_kind(mode):
        raise RunFolderError(f"{path} is not {kind}, as expected of a run's folder")
    return path


def check_unused(path: Path, recipe_file: Path | RecipeSource | None = None, resume: bool = False) -> None:
    """Raise RunFolderError if a run's folder cannot be made at ``path``, for something is there.

    resume: what a kill left of a folder that was being made does not count, for it is tidied up; recipe_file: a copy of
    which may be among it.
    """
    if not path.exists():
        return
    left = contents(path) if path.is_dir() else [path]
    if left and not (resume and _left_by_a_kill(left, recipe_file)):
        raise RunFolderError(
            f"out = {path} is in use and is never overwritten: choose another folder, continue it with "
            f"'facm resume {path}', or delete it yourself"
        )


@contextlib.contextmanager
def begun(
    path: Path,
    run: Run,
    recipe: str | None = None,
    recipe_file: Path | RecipeSource | None = None,
    resume: bool = False,
) -> Iterator[tuple[RunFolder, Run]]:
    """The run's folder with all that it needs before step 1, held from before anything is written in it until the
    context ends.

    resume: the folder may hold this very run already. One that is made here is taken away where an error ends the
    context before there is any result, so that the next try finds the name free.
    Raises RunFolderError if the folder is in use or holds something else, LockedError if another process holds it.
    """
    if not (resume and RunFolder(path).run_json.exists()):
        check_unused(path, recipe_file, resume)  # no lock is left in somebody else's folder
    with _held(path, make=True):
        folder = RunFolder(path, claimed=True)
        if resume and folder.run_json.exists():
            yield folder, _same(path, run)
            return
        check_unused(path, recipe_file, resume)
        for file in contents(path):
            file.unlink()
        try:
            _write(folder, run, recipe, recipe_file)
            yield folder, run
        except Exception:
            _discard(folder)
            raise


def create(
    path: Path, run: Run, recipe: str | None = None, recipe_file: Path | RecipeSource | None = None
) -> RunFolder:
    """Make a run's folder and write what it needs before step 1; see :func:`begun`."""
    with begun(path, run, recipe, recipe_file):
        return RunFolder(path)


def create_or_continue(
    path: Path, run: Run, recipe: str | None = None, recipe_file: Path | RecipeSource | None = None
) -> tuple[RunFolder, Run]:
    """The run's folder, which may hold this very run already; see :func:`begun`."""
    if RunFolder(path).run_json.exists():  # perhaps one that cannot be written, or that is being trained in
        return RunFolder(path), _same(path, run)
    with begun(path, run, recipe, recipe_file, resume=True) as (_, begun_run):
        return RunFolder(path), begun_run


def _write(folder: RunFolder, run: Run, recipe: str | None, recipe_file: Path | RecipeSource | None) -> None:
    found = None if recipe_file is None else source_of(recipe_file)
    source = found and {"name": found.name, "folder": str(found.home.resolve())}
    record = {"run": to_json(run), "fingerprint": fingerprint(run), "recipe": recipe, "source": source}
    if found is not None:
        remember(found.content, found.home)
        with atomically(folder.recipe) as partial:  # byte for byte: its hash is part of its classes' names
            partial.write_bytes(found.content)
    write_text(folder.environment_json, json.dumps(environment(), indent=2))
    write_text(folder.run_json, json.dumps(record, indent=2))  # last: its presence says the folder is complete


def _same(path: Path, run: Run) -> Run:
    """The run in the folder. Raises RunFolderError unless it is ``run``."""
    begun = open_run(path)[1]
    if fingerprint(begun) != fingerprint(run):
        changed = [f.name for f in dataclasses.fields(Run) if getattr(begun, f.name) != getattr(run, f.name)]
        raise RunFolderError(
            f"out = {path} holds another run than this command's ({', '.join(changed)} differ): choose another folder, "
            f"or continue it as it is with 'facm resume {path}'"
        )
    return begun


def _left_by_a_kill(files: list[Path], recipe_file: Path | RecipeSource | None) -> bool:
    """Whether these are what a kill leaves of a folder that is being made, and nothing else."""
    written = ("recipe.py", "environment.json", "run.json")

    def of_a_kill(file: Path) -> bool:
        if not stat.S_ISREG(file.lstat().st_mode):
            return False
        if file.name == "recipe.py":
            return recipe_file is not None and read_recipe(file) == source_of(recipe_file).content
        partial = file.name.endswith(PARTIAL) and file.name.startswith(tuple(f".{name}." for name in written))
        return partial or file.name == "environment.json"

    return all(map(of_a_kill, files))


def _discard(folder: RunFolder) -> None:
    """Take away a folder without any result. Its lock is held."""
    files = list(folder.path.iterdir())
    if {file.name for file in files} <= {"run.json", "recipe.py", "environment.json", "sessions.jsonl", LOCK}:
        for file in files:
            file.unlink()
        folder.path.rmdir()


def open_run(path: Path | str, trust_recipe: bool = False) -> tuple[RunFolder, Run]:
    """An existing run's folder and its run.

    trust_recipe: execute the folder's recipe file, where the run has components of it, whoever wrote it, and remember
    that. Raises UntrustedRecipeError without it, unless this person has run that file; RunFolderError where there is no
    run, or it was changed by hand.
    """
    folder = RunFolder(Path(path))
    if not folder.run_json.exists():
        raise RunFolderError(f"{path} is not a run folder: it has no run.json")
    try:
        record = _record(read_json(folder.run_json, links=False))
        run = from_json(record["run"], _recipe_of(folder, record, trust_recipe))
    except OSError as error:
        raise RunFolderError(f"cannot read {error.filename or folder.run_json}: {error.strerror or error}") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise RunFolderError(f"{folder.run_json} does not describe a run: {error}") from error
    if not isinstance(run, Run) or not is_fingerprint_of(record.get("fingerprint"), run):
        raise RunFolderError(
            f"{folder.run_json}, or a default in this version, was changed since the run started: resuming with "
            "another recipe would be another run; restore the file, or start a new run with 'facm train'"
        )
    return folder, run


def _record(content: Any) -> dict[str, Any]:
    """The content of run.json. Raises ValueError for another one than :func:`_write` writes."""
    for what in ("run", "source"):
        if not isinstance(content, dict) or what not in content:
            raise ValueError(f"it has no {what!r}, expected an object with 'run', 'fingerprint' and 'source'")
    source = content["source"]
    is_source = isinstance(source, dict) and all(isinstance(source.get(part), str) for part in ("name", "folder"))
    if source is not None and not is_source:
        raise ValueError(f"source = {shown(source)}, expected null, or the name and the folder of a recipe file")
    return content


def _recipe_of(folder: RunFolder, record: dict[str, Any], trust: bool) -> ModuleType | None:
    """The module of the folder's recipe file, where there is one that may be executed; None where the run needs none.

    Raises UntrustedRecipeError.
    """
    if record["source"] is None:
        return None
    home = Path(record["source"]["folder"])
    needed = types_in(record["run"]) - {*public_names.PUBLIC.values(), *public_names.REMOVED}
    if not (needed or folder.recipe.exists()):
        return None
    recipe = Recipe(folder.recipe, str(record["source"]["name"]), read_recipe(folder.recipe, links=False))
    if recipe.loaded is not None:  # by this very process
        return recipe.loaded
    if trust:
        remember(recipe.content, home)
    elif not is_trusted(recipe.content, home):
        if not needed:
            return None
        where = f", and those in {home} that it imports," if home.is_dir() else ""
        raise UntrustedRecipeError(
            f"{recipe.file} is program code that came with the run, and you have not run it before: opening the run "
            f"would execute it{where} for {min(needed)}; read it, and if you trust it, say --trust-recipe, or once "
            f"for all commands 'facm show {folder.path} --trust-recipe'"
        )
    return recipe.load(home)


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Hold the run folder, tidied of what kills left half written; the lock ends with the process, however it ends.

    Raises LockedError if it is held.
    """
    with contextlib.nullcontext() if folder.claimed else _held(folder.path):
        _tidy(folder)
        yield


@contextlib.contextmanager
def _held(path: Path, make: bool = False) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held(path, make))
        except HeldError as error:
            raise LockedError(f"{path} is in use by another process that is training in it") from error
        except ValueError as error:
            raise RunFolderError(str(error)) from error
        except FileExistsError as error:
            raise RunFolderError(f"out = {path} is not a folder") from error
        yield


def _tidy(folder: RunFolder) -> None:
    """Remove what was being written or deleted when a process was killed. The lock is held: whoever else writes in the
    folder meanwhile, such as ``facm sample``, uses other names."""
    left = [*folder.path.glob(f".*{PARTIAL}")]
    left += [path for path in folder.samples.glob(f".*{PARTIAL}") if _PREVIEW.match(path.name)]
    for parts in (folder.inside("checkpoints"), folder.inside("ema")):
        left += [*parts.glob(f".*{PARTIAL}"), *parts.glob(f".*{REMOVED}")]
    for path in left:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
