"""docs/architecture.md: its tree is that of the source, and its examples do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import torch

from facm import Labels, Run, load_trained
from facm.data import Moons
from facm.networks import MLP
from facm.runs.folder import create
from facm.sampling.generate import balanced_labels, sample
from facm.training.loop import train
from tests.paths import ROOT

PAGE = ROOT / "docs" / "architecture.md"


def examples() -> dict[str, Any]:
    """What the page's Python blocks define."""
    names: dict[str, Any] = {"__name__": __name__}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    return names


AbsoluteFlow, Midpoint = (examples()[name] for name in ("AbsoluteFlow", "Midpoint"))


def test_the_tree_is_that_of_the_source() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "tree.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_file_begins_with_what_it_is_for() -> None:
    block = PAGE.read_text(encoding="utf-8").partition("<!-- tree -->")[2].partition("<!-- end of tree -->")[0]
    lines = [line for line in block.splitlines() if line and not line.startswith("```")]
    assert len(lines) > 150
    assert not [line for line in lines if len(line.split()) < 3], "a file without a docstring"


def test_an_objective_and_a_sampler_of_ones_own(tmp_path) -> None:  # type: ignore[no-untyped-def]
    network = MLP(width=32, depth=2, num_classes=2)
    run = Run(network, Moons(n=400), AbsoluteFlow(Labels(2)), images=12_800, batch_size=64)
    folder = create(tmp_path / "run", run)
    assert train(run, folder).finished
    trained = load_trained(folder.path)
    Midpoint().check(trained.interface)
    source = trained.source(torch.device("cpu"))
    x = sample(source, Midpoint(), range(256), balanced_labels(source.condition, range(256)))
    assert x.shape == (256, 2)
    assert abs(float(x.std()) - 1) < 0.5  # the data have unit variance, and so has the noise: it did not diverge
