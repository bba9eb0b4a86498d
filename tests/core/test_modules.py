"""A network's blocks, by name."""

import os
import subprocess
import sys

import pytest
import torch

from facm.core.modules import blocks_of


class Nested(torch.nn.Module):
    """Two lists of blocks, one of which holds lists itself; one entry without parameters."""

    def __init__(self):
        super().__init__()
        entry = lambda: torch.nn.Linear(2, 2)  # noqa: E731
        inner = torch.nn.Sequential(torch.nn.ModuleList([entry(), entry()]), entry())
        self.first, self.down = entry(), torch.nn.ModuleList([inner, torch.nn.SiLU(), entry()])
        self.part = torch.nn.Module()
        self.part.up = torch.nn.ModuleList([entry(), entry()])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), ["down.0", "down.2", "part.up.0", "part.up.1"]),
        (("part.up",), ["part.up.0", "part.up.1"]),
        (("part.up.1", "first"), ["part.up.1", "first"]),
        (("down.0.0", "down.2", "down.1"), ["down.0.0.0", "down.0.0.1", "down.2"]),
        (("first", "part.up"), ["first", "part.up.0", "part.up.1"]),
    ],
)
def test_blocks_are_the_entries_of_the_outermost_lists_or_what_is_named(names, expected):
    network = Nested()
    found = blocks_of(network, names)
    assert list(found) == expected
    assert all(module is network.get_submodule(name) for name, module in found.items())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("up",), "Nested has no module 'up'; it has down, down.0.0, part.up"),
        (("first", "first"), "'first' and 'first' overlap"),
        (("down.0", "down.0.1"), "'down.0.1' and 'down.0' overlap"),
        (("down.0.1", "down.0"), "'down.0' and 'down.0.1' overlap"),
    ],
)
def test_blocks_that_are_none_or_overlap_are_an_error_that_names_them(names, message):
    with pytest.raises(ValueError, match=message):
        blocks_of(Nested(), names)


def test_names_that_only_begin_alike_do_not_overlap():
    network = torch.nn.ModuleDict({"up": torch.nn.Linear(2, 2), "up_2": torch.nn.Linear(2, 2)})
    assert list(blocks_of(network, ("up", "up_2"))) == ["up", "up_2"]
    assert list(blocks_of(network, ("up_2", "up"))) == ["up_2", "up"]
    assert blocks_of(network) == {}


@pytest.mark.slow
def test_a_network_that_is_only_looked_at_loads_no_compiler():
    """What ``facm show`` waits for: PyTorch loads its compiler for draws and ranges on the meta device."""
    code = (
        "import sys, torch; from facm.core.modules import without_memory\n"
        "from facm.networks import DDPMpp, MLP, LightningDiT\n"
        "small = dict(input_size=8, patch_size=2, in_channels=4, hidden_size=32, depth=1, num_heads=2, num_classes=3)\n"
        "unet = DDPMpp(size=8, channels=8, multipliers=(1, 2), blocks=1, attention=(4,))\n"
        "for config in (LightningDiT(**small), unet, MLP()):\n"
        "    made, empty = config.build(), without_memory(config.build)\n"
        "    assert [p.shape for p in empty.parameters()] == [p.shape for p in made.parameters()]\n"
        "    assert [b.dtype for b in empty.buffers()] == [b.dtype for b in made.buffers()]\n"
        "    assert all(p.is_meta for p in (*empty.parameters(), *empty.buffers()))\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": "src"})
