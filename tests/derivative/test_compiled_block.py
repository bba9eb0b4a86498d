"""One graph for blocks that are alike, and none that is shared by blocks that differ."""

import dataclasses

import pytest
import torch
from torch import nn

from facm.derivative import compiled_block
from facm.derivative.compiled_block import compiled_block_pair, structure
from facm.derivative.dual_mode import op_level_pair
from facm.derivative.whole_network import whole_pair


class Block(nn.Module):
    def __init__(self, factor=1.0, depth=2, activation=torch.tanh):
        super().__init__()
        self.factor, self.activation = factor, activation
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))
        self.register_buffer("shift", torch.randn(4))

    def forward(self, h, c, scale):
        for layer in self.layers:
            h = h + self.factor * self.activation(layer(h * c)) + self.shift
        return scale(h)


def other(forward):
    """A module of the same class and contents, except for what ``forward`` does to it."""
    block = Block()
    forward(block)
    return block


@dataclasses.dataclass(frozen=True)
class Settings:
    n: int


def test_modules_that_compute_the_same_have_one_key():
    assert structure(Block()) == structure(Block())
    assert hash(structure(Block())) == hash(structure(Block()))
    assert structure({"a": [Settings(1), torch.float32]}) == structure({"a": [Settings(1), torch.float32]})


@pytest.mark.parametrize(
    "changed",
    [
        lambda: Block(factor=2.0),
        lambda: Block(factor=1),
        lambda: Block(depth=3),
        lambda: Block(activation=torch.sin),
        lambda: Block().eval(),
        lambda: other(lambda b: setattr(b.layers[1], "bias", None)),
        lambda: other(lambda b: setattr(b, "layers", nn.ModuleList([b.layers[0], nn.Bilinear(4, 4, 4)]))),
        lambda: other(lambda b: setattr(b.layers[0], "settings", Settings(2))),
        lambda: other(lambda b: setattr(b, "shift", None)),
    ],
)
def test_modules_that_differ_have_another(changed):
    assert structure(changed()) != structure(Block())


@pytest.mark.parametrize(
    "value",
    [
        object(),
        torch.zeros(1),
        other(lambda b: setattr(b, "processor", object())),
        other(lambda b: b.layers[0].register_forward_hook(lambda *_: None)),
        other(lambda b: setattr(b.layers[0], "forward", b.layers[1].forward)),
    ],
)
def test_what_cannot_be_told_has_none(value):
    with pytest.raises(compiled_block._Unknown):
        structure(value)


def gradients(block, scale, made):
    tensors = [*block.parameters(), *scale.parameters()]
    return torch.autograd.grad(made[0].square().sum(), tensors)


@pytest.mark.slow
@pytest.mark.parametrize("pair", [op_level_pair, whole_pair])
def test_blocks_that_are_alike_share_a_graph_and_keep_their_own_parameters(pair, monkeypatch):
    """Also a third that differs gets its own; equal to the eager pair to 1e-6, in the gradients of constants, too."""
    torch.manual_seed(0)
    made = []

    def compiled(function):
        made.append(function)
        return torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)

    monkeypatch.setattr(compiled_block, "compiled", compiled)
    monkeypatch.setattr(compiled_block, "_GRAPHS", {})
    scale = nn.Linear(4, 4)
    state, d_state = tuple(torch.randn(2, 3, 4)), tuple(torch.randn(2, 3, 4))
    for block in (Block(), Block(), Block(factor=2.0)):
        found = compiled_block_pair(pair, block, block.forward, (scale,), state, d_state)
        expected = pair(lambda *s, block=block: block(*s, scale), state, d_state)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        for ours, theirs in zip(gradients(block, scale, found), gradients(block, scale, expected), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        assert not found[1].requires_grad
    assert len(made) == 2
    assert all(graph.parts is None for graph in compiled_block._GRAPHS.values())
