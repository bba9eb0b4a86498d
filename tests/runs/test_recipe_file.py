"""The user's recipe file."""

import sys

import pytest

from facm.cli.lookup import find_recipe
from facm.core.serialize import to_json
from facm.runs.folder import RunFolderError, UntrustedRecipeError, create, open_run
from facm.training.loop import train

RECIPE = """
from dataclasses import dataclass
from facm import FlowMatching, Labels, Run
from facm.data import Moons
from facm.networks.mlp import MLP
@dataclass(frozen=True)
class Mine:
    width: int = 8
    def build(self):
        return MLP(width=self.width, num_classes=2).build()
def run(images: int = 64) -> Run:
    return Run(Mine(), Moons(n=50), FlowMatching(Labels(2)), images, 16)
"""


@pytest.mark.parametrize(
    "content", [RECIPE, RECIPE.replace("\n", "\r\n"), "\ufeff" + RECIPE], ids=["lf", "crlf", "bom"]
)
def test_a_run_goes_on_without_its_recipe_file(tmp_path, content):
    """From the copy in the folder, which has the same classes."""
    file = tmp_path / "my-recipe.v2.py"
    file.write_bytes(content.encode())
    run = find_recipe(f"{file}:run").function()
    folder = create(tmp_path / "run", run, f"{file}:run", file)
    file.unlink()
    sys.modules.pop(type(run.network).__module__)  # as in a new process
    opened, again = open_run(folder.path)
    assert to_json(again) == to_json(run)
    assert train(again, opened).finished


def test_a_missing_or_changed_recipe_is_named(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(RECIPE)
    run = find_recipe(f"{file}:run").function()
    folder = create(tmp_path / "run", run, f"{file}:run", file)
    sys.modules.pop(type(run.network).__module__)
    (folder.path / "recipe.py").write_text(RECIPE.replace("= 8", "= 9"))
    with pytest.raises(UntrustedRecipeError, match=r"run/recipe\.py is program code"):
        open_run(folder.path)
    with pytest.raises(RunFolderError, match=r":Mine is no component of this package, and no recipe file"):
        open_run(folder.path, trust_recipe=True)
    (folder.path / "recipe.py").unlink()
    with pytest.raises(RunFolderError, match=r"cannot read the recipe file .*recipe\.py"):
        open_run(folder.path)
