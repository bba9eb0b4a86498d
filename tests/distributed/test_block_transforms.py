"""Checkpointing of blocks."""

import pytest
import torch
from torch import nn


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4)])
        self.kept = []

    def forward(self, x):
        return self.layers[0](x)


def test_checkpointing_keeps_names_and_recomputes():
    from facm.distributed.block_transforms import prepare

    network, calls = Own(), []
    network.layers[0].register_forward_hook(lambda *_: calls.append("hook"))
    names = list(network.state_dict())
    inner = network.layers[0].forward
    network.layers[0].forward = lambda x: calls.append("forward") or inner(x)
    prepare(list(network.layers), checkpointing=True, compiled=False)
    network(torch.ones(2, 4, requires_grad=True)).sum().backward()
    assert calls.count("forward") == 2
    with torch.no_grad():
        network(torch.ones(2, 4))
    assert calls.count("forward") == 3
    assert list(network.state_dict()) == names


def test_blocks_are_asked_for_where_there_are_none():
    from facm.distributed.block_transforms import prepare

    with pytest.raises(ValueError, match=r"engine.checkpointing acts on blocks.*engine.blocks"):
        prepare([], checkpointing=True, compiled=False)
