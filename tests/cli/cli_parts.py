"""What the tests of the command line share: commands in this process, what they print, recipes in a file."""

import re

import numpy as np
import pytest

from facm import cli

SMALL = {
    "network.hidden-size": 16,
    "network.depth": 1,
    "network.num-heads": 2,
    "batch-size": 16,
    "every.log": 16,
    "every.checkpoint": 32,
    "every.ema-snapshots": 16,
    "optimizer.lr": 0.03,  # so that a few steps make a difference
    "optimizer.warmup-images": 0,
}
OVERRIDES = [word for name, value in SMALL.items() for word in (f"--run.{name}", value)]

RECIPES = """
from dataclasses import dataclass
from facm import FlowMatching, Labels, Run
from facm.data import ImageFolder, Moons
from facm.networks.mlp import MLP

@dataclass(frozen=True)
class Broken:
    condition: Labels = Labels(2)
    def __call__(self, network, batch, rng, teacher=None):
        raise ValueError("broken at the first step")

def moons(images: int = 64, width: int = 8) -> Run:
    '''Two moons.

    Args:
        images: length of the run.
        width: of the network.
    '''
    return Run(MLP(width=width, num_classes=2), Moons(n=50), FlowMatching(Labels(2)), images, 16)

def broken() -> Run:
    return Run(MLP(width=8, num_classes=2), Moons(n=50), Broken(), 64, 16)

def needs(images: int) -> Run:
    return moons(images)

def pictures(path: str) -> Run:
    return Run(MLP(width=8, num_classes=2), ImageFolder(path, 8), FlowMatching(Labels(2)), 64, 16)

def nothing():
    return 3

def clash(out: str = "x"):
    return moons()

def _private():
    return moons()
"""


def command(*arguments):
    cli.main([str(a) for a in arguments])


def ended(capsys, *arguments):
    """The exit status of a command that ends with one, and all that it prints, without boxes and line breaks."""
    with pytest.raises(SystemExit) as exit_:
        command(*arguments)
    said = capsys.readouterr()
    return exit_.value.code, " ".join(re.sub("[─│╭╮╰╯]", " ", said.out + said.err).split())


def refused(capsys, *arguments):
    """The words of an error: exit status 2, no traceback."""
    code, words = ended(capsys, *arguments)
    assert code == 2, words
    assert "Traceback" not in words
    assert "unexpected" not in words
    return words


def help_of(capsys, *arguments):
    """The words of a help text: exit status 0."""
    code, words = ended(capsys, *arguments)
    assert code == 0, words
    return words


def arrays(path):
    with np.load(path) as file:
        return {name: file[name] for name in file}
