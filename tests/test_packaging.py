"""The package as it is distributed: built without a network, and used where only its dependencies are installed."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.cli.cli_parts import RECIPES
from tests.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = sorted(str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py"))
OF_AN_EXTRA = {f"facm.foundation.export.{name}" for name in ("scheduler", "phased_scheduler", "flow_jump_scheduler")}
"""Classes of diffusers' own kind: whoever uses them has diffusers."""
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2]))"
BOUGHT = f"""
import importlib, pkgutil, facm
names = {{module.name for module in pkgutil.walk_packages(facm.__path__, "facm.") if "__main__" not in module.name}}
for name in sorted(names - {OF_AN_EXTRA}):
    importlib.import_module(name)
print(len(names), facm.__file__)
"""


def built(what, source, out):
    """The file that the build backend makes of the tree at ``source``, as ``python -m build --no-isolation`` does."""
    out.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, what, out], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution of this tree, built in a copy of what git would have of it."""
    home = tmp_path_factory.mktemp("sdist")
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a clone: what belongs to the tree is not known")
    for name in map(os.fsdecode, listed.stdout.split(b"\0")):
        if name and (ROOT / name).is_file():
            (home / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (home / "tree" / name).write_bytes((ROOT / name).read_bytes())
    return built("sdist", home / "tree", home / "dist")


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel that is built from the source distribution alone."""
    home = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(home, filter="data")
        (top,) = {name.partition("/")[0] for name in archive.getnames()}
    return built("wheel", home / top, home / "dist")


@pytest.mark.slow
def test_the_source_distribution_holds_what_it_must_and_nothing_else(sdist):
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    files = {member.name.partition("/")[2] for member in members if member.isfile()}
    metadata = {"PKG-INFO", "setup.cfg"} | {name for name in files if name.startswith("src/facm.egg-info/")}
    expected = {f"src/{name}" for name in SOURCES} | {"src/facm/py.typed"}
    expected |= {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "MANIFEST.in",
        "constraints.txt",
        "pyproject.toml",
    }
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".png")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*.py")}
    assert files - metadata == expected
    assert not any(member.issym() or member.islnk() for member in members)


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_licence_and_its_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(archive.read(name).decode() for name in names if name.endswith("/METADATA"))
        scripts = next(archive.read(name).decode() for name in names if name.endswith("/entry_points.txt"))
    assert {name for name in names if ".dist-info/" not in name} == {*SOURCES, "facm/py.typed"}
    assert {name.partition(".dist-info/")[2] for name in names} >= {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "Description-Content-Type: text/markdown\n" in metadata
    assert scripts == "[console_scripts]\nfacm = facm.cli:main\n"


def test_the_page_of_the_package_index_needs_no_repository():
    text = (ROOT / PROJECT["readme"]).read_text(encoding="utf-8")
    assert re.findall(r"!\[|<img", text) == []
    assert [to for to in re.findall(r"\]\(([^)]*)\)", text) if not to.startswith("https://")] == []
    assert re.findall(r"facm\[(\w+)\]", text) == ["demo"]
    extras = {("demo", ""), ("", "eval"), ("", "hf"), ("", "video")}
    assert set(re.findall(r"^Extras: `(\w+)`|[,;] `(\w+)` \(", text, re.M)) == extras
    assert {"demo", "eval", "hf", "video"} <= PROJECT["optional-dependencies"].keys()


def imported_with(source):
    """The packages that a module imports when it is imported itself."""
    of_types = [
        node for node in ast.walk(source) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    waiting = [source]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]
        elif node not in of_types and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Try):
            waiting += ast.iter_child_nodes(node)


def test_nothing_else_needs_an_extra_to_be_imported():
    extras = {Requirement(r).name.replace("-", "_") for each in PROJECT["optional-dependencies"].values() for r in each}
    extras -= {"facm", *(Requirement(r).name for r in PROJECT["dependencies"])}
    of_an_extra = set()
    for name in SOURCES:
        source = ast.parse((ROOT / "src" / name).read_text(encoding="utf-8"))
        if extras & set(imported_with(source)):
            of_an_extra.add(name.removesuffix(".py").replace("/", "."))
    assert of_an_extra == OF_AN_EXTRA


def needed(requirements, found):
    """The installed distributions that requirements lead to, without extras that nobody asks for."""
    for requirement in map(Requirement, requirements):
        extras = [{"extra": extra} for extra in (requirement.extras or {""})]
        if requirement.name in found or not (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            installed = distribution(requirement.name)
        except PackageNotFoundError:
            continue  # of another platform, or optional
        found[requirement.name] = installed
        of_extras = [r for r in installed.requires or () if applies(Requirement(r), extras)]
        needed(of_extras, found)
    return found


def applies(requirement, extras):
    return requirement.marker is None or any(requirement.marker.evaluate(extra) for extra in extras)


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """The bin folder of an environment with the wheel, and of all that is installed here only its dependencies."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False, symlinks=True)
    bin_ = home / Path(sysconfig.get_path("scripts")).name
    paths = sysconfig.get_paths(vars={"base": str(home), "platbase": str(home)}, scheme="venv")
    library = Path(paths["purelib"])
    for installed in needed(PROJECT["dependencies"], {}).values():
        for top in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            if not (library / top).exists():
                (library / top).symlink_to(installed.locate_file(top))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(library)
    script = bin_ / "facm"
    script.write_text(f"#!{bin_ / 'python'}\nfrom facm.cli import main\nmain()\n")  # as its entry point says
    script.chmod(0o755)
    return bin_


def run(clean, cwd, program, *words):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"OMP_NUM_THREADS": "1", "FACM_CACHE": str(cwd / "cache")}
    return subprocess.run(
        [clean / program, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_installed_package_trains_and_needs_nothing_of_the_development(clean, tmp_path):
    absent = "import importlib.util; print(*map(importlib.util.find_spec, ('pytest', 'sklearn', 'transformers')))"
    assert run(clean, tmp_path, "python", "-c", absent).stdout == "None None None\n"
    imported = run(clean, tmp_path, "python", "-c", BOUGHT)
    assert imported.returncode == 0, imported.stderr
    assert str(clean.parent) in imported.stdout
    for words in (["--help"], ["demo", "--help"]):
        done = run(clean, tmp_path, "facm", *words)
        assert (done.returncode, done.stderr) == (0, ""), words
    (tmp_path / "mine.py").write_text(RECIPES)
    for words in (["train", "mine.py:moons", "--out", "run"], ["show", "run"]):
        done = run(clean, tmp_path, "facm", *words)
        assert done.returncode == 0, done.stderr
    done = run(clean, tmp_path, "facm", "train", "digits-teacher", "--out", "digits")
    assert done.returncode == 2
    assert "facm[demo]" in done.stderr
    assert done.stderr.count("\n") == 1
