"""A recipe file that came with a run folder is executed only for the person who ran it, or who vouches for it."""

from __future__ import annotations

import json
import os
import py_compile
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from facm.cli.lookup import find_recipe
from facm.pretrained.trained import FromRun, load_trained
from facm.runs import trust
from facm.runs.folder import RunFolder, RunFolderError, UntrustedRecipeError, create, open_run
from tests.cli.cli_parts import command, ended, refused
from tests.training.run_parts import facm_run, flow_run, in_child, trained

RECIPE = """
from dataclasses import dataclass
from pathlib import Path
import helper_of_the_recipe
from facm import FlowMatching, Labels, Run
from facm.data import Moons
from facm.networks.mlp import MLP
Path("executed").touch()

@dataclass(frozen=True)
class Mine(FlowMatching):
    pass

def run() -> Run:
    return Run(MLP(width=8, num_classes=2), Moons(n=50), Mine(Labels(2)), 32, 16)

def plain() -> Run:
    return Run(MLP(width=8, num_classes=2), Moons(n=50), FlowMatching(Labels(2)), 32, 16)
"""
HELPER = "helper_of_the_recipe"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: a project with a recipe and a module that it imports; nothing is trusted yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "mine.py").write_text(RECIPE)
    (tmp_path / "project" / f"{HELPER}.py").touch()
    yield tmp_path
    forget()


def forget() -> None:
    """As in a new process that has not executed the recipe."""
    for name in [name for name in sys.modules if name.startswith("facm_recipe_mine") or name == HELPER]:
        del sys.modules[name]
    Path("executed").unlink(missing_ok=True)


@pytest.fixture
def run(here: Path) -> Path:
    """A run folder of that recipe, made by this person, in a new process."""
    command("train", "project/mine.py:run", "--quiet", "--out", "run")
    forget()
    return Path("run")


@pytest.fixture
def theirs(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, made by somebody else."""
    monkeypatch.setenv("XDG_STATE_HOME", str(Path("another state").resolve()))
    return run


COMMANDS = {
    "show": ["show", "run"],
    "resume": ["resume", "run", "--quiet"],
    "sample": ["sample", "run", "--out", "x.png"],
    "evaluate": ["evaluate", "run", "--num-samples", 8],
    "export": ["weights", "export", "run", "--out", "x.safetensors"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_by_name_and_executes_nothing(name: str, theirs: Path, capsys) -> None:
    words = refused(capsys, *COMMANDS[name])
    assert "run/recipe.py is program code that came with the run, and you have not run it before" in words
    assert "--trust-recipe" in words
    assert not Path("executed").exists()
    assert not Path("x.safetensors").exists()


@pytest.mark.parametrize("name", ["show", "resume", "export"])
def test_it_is_executed_for_who_vouches_for_it_and_then_for_all_commands(name: str, theirs: Path) -> None:
    command(*COMMANDS[name], "--trust-recipe")
    assert Path("executed").exists()
    forget()
    open_run(theirs)
    assert Path("executed").exists()


def test_who_trained_it_is_not_asked_wherever_the_folder_goes(run: Path) -> None:
    shutil.move(run, "elsewhere")
    assert load_trained(Path("elsewhere")).images_seen == 32
    assert Path("executed").exists()


def test_a_changed_recipe_is_another_one(run: Path) -> None:
    recipe = run / "recipe.py"
    recipe.write_text(recipe.read_text() + "\n# more\n")
    with pytest.raises(UntrustedRecipeError, match=r"run/recipe.py is program code"):
        open_run(run)
    assert not Path("executed").exists()


def test_a_known_recipe_with_other_modules_to_import_is_another_one(run: Path, capsys) -> None:
    """Nobody can send a recipe that the user has run, and a module of its own for it."""
    (Path("evil")).mkdir()
    (Path("evil") / f"{HELPER}.py").write_text("open('executed', 'w')")
    record = json.loads((run / "run.json").read_text())
    record["source"]["folder"] = str(Path("evil").resolve())
    (run / "run.json").write_text(json.dumps(record))
    assert f"and those in {Path('evil').resolve()} that it imports" in refused(capsys, "show", run)
    assert not Path("executed").exists()
    assert str(Path("evil").resolve()) not in sys.path


def test_modules_in_the_run_folder_are_not_found(run: Path) -> None:
    (run / f"{HELPER}.py").write_text("open('executed by the folder', 'w')")
    open_run(run)
    assert not Path("executed by the folder").exists()


def test_byte_code_beside_the_recipe_is_not_executed(run: Path) -> None:
    """A cache of another source that says it is of this one."""
    recipe, poisoned = run / "recipe.py", Path("poisoned.py")
    source = "open('poison', 'w')\n"
    poisoned.write_text(source + "#" * (len(recipe.read_text()) - len(source)))
    os.utime(poisoned, (recipe.stat().st_atime, recipe.stat().st_mtime))
    cache = run / "__pycache__" / f"recipe.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(str(poisoned), cfile=str(cache))
    open_run(run)
    assert not Path("poison").exists()


def test_a_run_of_public_components_needs_no_recipe(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command("train", "project/mine.py:plain", "--quiet", "--out", "run")
    forget()
    monkeypatch.setenv("XDG_STATE_HOME", "/nowhere")
    assert load_trained(Path("run")).images_seen == 32
    assert not Path("executed").exists()


def test_a_teacher_is_a_run_folder_too(theirs: Path, capsys) -> None:
    source = FromRun(str(theirs))
    with pytest.raises(UntrustedRecipeError):
        source.load()
    with pytest.raises(UntrustedRecipeError):
        source.label_dropout()
    create(Path("student"), facm_run(theirs))
    assert "run/recipe.py is program code" in refused(capsys, "resume", "student")
    student = ["train", "digits-student", "--teacher", theirs, "--out", "other", "--dry-run"]
    assert "run/recipe.py is program code" in refused(capsys, *student)
    assert "run/recipe.py is program code" in refused(capsys, "plan", "digits-student", "--teacher", theirs)
    assert not Path("executed").exists()
    code, words = ended(capsys, *student, "--trust-recipe")
    assert (code, "does not fit" in words) == (2, True)  # it is no teacher of digits
    assert Path("executed").exists()


def test_what_this_process_has_executed_is_trusted(theirs: Path) -> None:
    """Without a second time."""
    find_recipe("project/mine.py:run")
    Path("executed").unlink()
    assert open_run(theirs)[1].images == 32
    assert not Path("executed").exists()


def test_the_python_interface_takes_the_same_word(theirs: Path) -> None:
    with pytest.raises(UntrustedRecipeError):
        load_trained(theirs)
    assert load_trained(theirs, trust_recipe=True).images_seen == 32


def test_a_file_that_others_could_have_written_vouches_for_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path("state/facm/trusted-recipes.jsonl")
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o622)
    with pytest.raises(UntrustedRecipeError):
        open_run(run)
    file.chmod(0o600)
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: 4711)
        with pytest.raises(UntrustedRecipeError):
            open_run(run)
    assert open_run(run)[1].images == 32


@pytest.mark.parametrize("state", ["file", "pipe", "link", "list"])
def test_without_a_place_to_write_it_down_it_is_said_and_goes_on(
    here: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if state == "file":
        Path("state").write_text("a file in place of the folder")
    else:
        file = Path("state/facm/trusted-recipes.jsonl")
        file.parent.mkdir(parents=True)
        make = {
            "pipe": lambda: os.mkfifo(file),
            "link": lambda: file.symlink_to("nowhere"),
            "list": lambda: file.write_text("[[[\n3\n"),
        }
        make[state]()
    if state == "list":
        command("train", "project/mine.py:run", "--quiet", "--out", "run")
        forget()
        assert open_run(Path("run"))[1].images == 32
        return
    with pytest.warns(RuntimeWarning, match="will need --trust-recipe"):
        command("train", "project/mine.py:run", "--quiet", "--out", "run")
    forget()
    with pytest.raises(UntrustedRecipeError):
        open_run(Path("run"))
    with pytest.warns(RuntimeWarning, match="cannot write down that you trust this recipe"):
        open_run(Path("run"), trust_recipe=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_home_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/state")

    def child() -> None:
        os.setuid(65534)
        with pytest.warns(RuntimeWarning, match="cannot write down"):
            trust.remember(b"", Path("/"))
        assert not trust.is_trusted(b"", Path("/"))

    assert in_child(child) == 0


NAMES = [
    *("os:system", "subprocess:Popen", "builtins:exec", "facm.cli:main", "facm.cli.main:main", "planted:Mine"),
    *("planted", "", ":", "facm:", "facm:FACM.__class__", "facm:FACM.__init__", "facm:__dict__", "enum:Enum"),
    *("facm.data:Digits.open", "..planted:Mine", "facm.planted:Mine", "dataclasses:make_dataclass", "facm:FACM "),
    *("Facm:FACM", "facm.networks:FACM", "facm.recipes.digits:digits_teacher", "facm.training.loop:Outcome"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_run_json_runs_and_imports_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from the current folder, nor from the run's, nor from the one where its recipe says that it was."""
    folder = create(tmp_path / "run", flow_run())
    for place in (tmp_path, folder.path):
        (place / "planted.py").write_text("raise SystemExit('planted code ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    record = json.loads(folder.run_json.read_text())
    for source in (None, {"name": "mine", "folder": str(folder.path)}):
        for part in ("objective", "network", "data"):
            changed = record | {"source": source, "run": record["run"] | {part: {"type": name, "condition": "id"}}}
            folder.run_json.write_text(json.dumps(changed))
            with pytest.raises(RunFolderError, match=r"run\.json does not describe|cannot read the recipe file"):
                open_run(folder.path)
    assert not [new for new in set(sys.modules) - before if not new.startswith("facm")]


@pytest.mark.parametrize(
    "source", [3, [], {}, {"name": 3, "folder": "x"}, {"name": "x"}, {"name": "x", "folder": 3}, {"folder": "\0"}, "x"]
)
def test_a_source_that_is_none_is_said(source: object, tmp_path: Path) -> None:
    folder = create(tmp_path / "run", flow_run())
    record = json.loads(folder.run_json.read_text())
    record["run"]["objective"]["type"] = "mine:Mine"
    folder.run_json.write_text(json.dumps(record | {"source": source}))
    folder.recipe.touch()
    with pytest.raises(RunFolderError, match=r"run"):
        open_run(folder.path)


def test_a_recipe_that_is_a_link_is_refused_even_where_it_is_not_needed(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", flow_run(images=16))
    record = json.loads(folder.run_json.read_text())
    folder.run_json.write_text(json.dumps(record | {"source": {"name": "mine", "folder": "/nowhere"}}))
    assert load_trained(folder.path).images_seen == 16
    (folder.path / "recipe.py").symlink_to("/etc/passwd")
    with pytest.raises(RunFolderError, match=r"run/recipe.py is a symbolic link, expected a regular file"):
        load_trained(RunFolder(folder.path).path)
