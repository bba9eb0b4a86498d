"""No strategy loses a tangent without an error, whatever the network does with its numbers."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from facm.derivative import (
    Chain,
    FiniteDifference,
    ForwardModeError,
    NoGraph,
    OpLevel,
    Prediction,
    WholeNetwork,
)

STRATEGIES = [WholeNetwork(), NoGraph(), OpLevel(), Chain(("blocks",)), Chain(("blocks",), op_level=True)]


pytestmark = pytest.mark.usefixtures("double")


class Net(nn.Module):
    """Two blocks, and ``middle(self, h (5, 8), t (5,))`` behind them."""

    def __init__(self, middle, changed=None):
        super().__init__()
        torch.manual_seed(0)
        self.inward, self.outward, self.part = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(8, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2))
        self.middle = middle
        if changed is not None:
            changed(self)

    def forward(self, x, t, cond=None):
        h = self.inward(x) * (1 + t[:, None])
        for block in self.blocks:
            h = h + block(h)
        return self.outward(self.middle(self, h, t))


def inputs():
    rng = torch.Generator().manual_seed(1)
    x, v = (torch.randn(5, 4, generator=rng) for _ in range(2))
    return (x, torch.linspace(0.1, 0.9, 5)), (v, torch.ones(5))


def asked(strategy, network):
    return strategy(Prediction(network, lambda t: {"t": t}), *inputs())


def check_right(strategy, make, make_plain=None):
    """Value, tangent and gradients; the tangent against central differences, which follow the value alone."""
    network, plain = make(), (make_plain or make)()
    F, dF = asked(strategy, network)
    _, expected = asked(FiniteDifference(1e-5), plain)
    torch.testing.assert_close(dF, expected, rtol=1e-7, atol=1e-7)
    assert expected.norm() > 0.1
    value = plain(*inputs()[0])
    torch.testing.assert_close(F, value)
    for loss in (F, value):
        loss.square().sum().backward()
    for a, b in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


# The value stays in PyTorch: the tangent is carried along


def no_grad(n, h, t):
    with torch.no_grad():
        scale = h.sin() * t[:, None]
    return h * scale


def data_written(n, h, t):
    h = h.clone()
    h.data.mul_(2 * t[:, None])
    return h


def group_norm(n, h, t):
    h = h.reshape(5, 2, 2, 2).to(memory_format=torch.channels_last)
    return torch.group_norm(nn.functional.group_norm(h.sin(), 1, torch.ones(2)), 2).reshape(5, 8)


CARRIED = {
    "detach": lambda n, h, t: h / (1 + h.detach().square()),
    "torch.detach": lambda n, h, t: h * torch.detach(t)[:, None],
    "data": lambda n, h, t: h * h.data.sin(),
    "data written": data_written,
    "no_grad": no_grad,
    "condition": lambda n, h, t: h * (2 if bool(t.max() < 1) and int(t[0]) == 0 else 3),
    "whole numbers": lambda n, h, t: (
        h * torch.arange(9.0)[(t * 7).to(torch.int64)][:, None] * (t * 5).type(torch.int32)[:, None] + h
    ),
    "message": lambda n, h, t: h * len(f"{t.mean():.1f}"),
    "shape of another": lambda n, h, t: h + torch.ones(8).expand_as(h) + h.new_tensor([1.0] * 8).type_as(h),
    "filled": lambda n, h, t: h * torch.full_like(h, 0.5) + h.new_full((8,), 2.0),
    "group norm of channels_last": group_norm,
}


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("name", CARRIED)
def test_tangents_are_carried_along(name, strategy):
    check_right(strategy, lambda: Net(CARRIED[name]))


# It leaves PyTorch, or passes something without forward mode: the module is named


def inference(n, h, t):
    with torch.inference_mode():
        scale = h.sin()
    return h * scale.clone()


@torch.library.custom_op("facm_test::twice_sine", mutates_args=())
def twice_sine(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x) * 2


REFUSED = {
    "item": lambda n, h, t: h * t.mean().item(),
    "float": lambda n, h, t: h * float(t.mean()),
    "math": lambda n, h, t: h * math.sin(t.mean()),
    "tolist": lambda n, h, t: torch.stack([a * s for a, s in zip(h, t.tolist(), strict=True)]),
    "numpy": lambda n, h, t: h * torch.from_numpy(np.sin(h.detach().numpy())),
    "numpy function": lambda n, h, t: h * torch.as_tensor(np.sin(t))[:, None],
    "tensor": lambda n, h, t: h * torch.tensor([t[0], t[1]]).sum(),
    "new_tensor": lambda n, h, t: h * h.new_tensor(t)[:, None],
    "full": lambda n, h, t: h * torch.full((8,), t.mean()),
    "full_like": lambda n, h, t: h * torch.full_like(h, t.mean()),
    "alpha": lambda n, h, t: torch.add(h, h.sin(), alpha=t.mean()),
    "apply_": lambda n, h, t: h * t.clone().apply_(lambda a: a * a)[:, None],
    "detach_": lambda n, h, t: h * (2 * t).detach_()[:, None],
    "inference_mode": inference,
    "custom op": lambda n, h, t: h + twice_sine(h),
}


@pytest.mark.filterwarnings("ignore")  # PyTorch and numpy warn of some of these
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_lose_a_tangent_is_refused(name, strategy):
    with pytest.raises(ForwardModeError, match=r"cannot differentiate Net \(.*test_lost_tangents.*What helps: "):
        asked(strategy, Net(REFUSED[name]))
    asked(FiniteDifference(), Net(REFUSED[name]))


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("kind", ["module", "traced", "function"])
def test_scripted_code_is_refused(kind, strategy):
    """It drops tangents from its second call on, and always under torch.func.jvp."""
    part = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    scripted = {
        "module": lambda: torch.jit.script(part),
        "traced": lambda: torch.jit.trace(part, torch.zeros(5, 8)),
        "function": lambda: torch.jit.script(tripled),
    }[kind]()
    network = Net(lambda n, h, t: scripted(h))
    with pytest.raises(ForwardModeError, match=r"torch\.jit's .* may drop tangents"):
        asked(strategy, network)
    assert asked(FiniteDifference(), network)[1].norm() > 0.1  # and calls work again afterwards


def tripled(h: torch.Tensor) -> torch.Tensor:
    return h * 3


# Transforms inside


def energy(n, h, t):
    with torch.enable_grad():
        h = h if h.requires_grad else h.requires_grad_()
        return torch.autograd.grad(n.part(h).tanh().sum(), h, create_graph=True)[0] * t[:, None]


def pushed(n, h, t):
    return torch.func.jvp(lambda a: n.part(a).tanh(), (h,), (h.sin(),))[1]


TRANSFORMS = {
    "vmap": lambda n, h, t: torch.vmap(lambda a, s: torch.tanh(n.part(a) * s))(h, t),
    "grad": lambda n, h, t: torch.func.grad(lambda a: n.part(a).tanh().sum())(h),
    "vmap of grad": lambda n, h, t: torch.vmap(torch.func.grad(lambda a: n.part(a).tanh().sum()))(h),
    "autograd": energy,
    "jvp": pushed,
}
FAIL = {  # and the strategy that is named
    ("autograd", "WholeNetwork"): "NoGraph",
    ("autograd", "OpLevel"): "NoGraph",
    ("jvp", "NoGraph"): "WholeNetwork",
    ("jvp", "OpLevel"): "WholeNetwork",
}


@pytest.mark.parametrize("strategy", STRATEGIES[:3], ids=str)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_inside_work_or_name_the_strategy_that_does(name, strategy):
    if better := FAIL.get((name, type(strategy).__name__)):
        with pytest.raises(ForwardModeError, match=rf"module|Net.*What helps: derivative = {better}\(\)"):
            asked(strategy, Net(TRANSFORMS[name]))
    else:
        check_right(strategy, lambda: Net(TRANSFORMS[name]))


# Compiled code


def scaled(h, t):
    return (h * (1 + t[:, None].sin())).tanh().exp()


def compiled(function):
    return torch.compile(function, backend="aot_eager")


def compile_blocks(n):
    n.blocks = nn.ModuleList(compiled(block) for block in n.blocks)


def compile_forwards(n):
    for block in n.blocks:
        block.forward = compiled(block.forward)


def compile_in_place(n):
    for block in n.blocks:
        block.compile(backend="aot_eager")


FAST = compiled(scaled)
COMPILED = {
    "function": lambda: Net(lambda n, h, t: FAST(h, t)),
    "blocks": lambda: Net(lambda n, h, t: h, compile_blocks),
    "forwards": lambda: Net(lambda n, h, t: h, compile_forwards),
    "in place": lambda: Net(lambda n, h, t: h, compile_in_place),
    "network": lambda: compiled(Net(lambda n, h, t: h.sin())),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_code_keeps_its_tangent(name):
    middle = {"function": lambda n, h, t: scaled(h, t), "network": lambda n, h, t: h.sin()}
    for strategy in STRATEGIES:
        check_right(strategy, COMPILED[name], lambda: Net(middle.get(name, lambda n, h, t: h)))


@pytest.mark.parametrize("strategy", [NoGraph(), OpLevel(), Chain(("blocks",), op_level=True)], ids=str)
def test_compiled_code_under_checkpointing(strategy):
    """The second forward pass saves what the first one did."""
    again = lambda n, h, t: checkpoint(FAST, h, t, use_reentrant=False)  # noqa: E731
    check_right(strategy, lambda: Net(again), lambda: Net(lambda n, h, t: scaled(h, t)))


# Inputs


@pytest.mark.parametrize("strategy", [WholeNetwork(), NoGraph(), OpLevel()], ids=str)
def test_a_network_that_writes_into_its_inputs_does_not_write_into_tangents(strategy):
    class Writes(Net):
        def forward(self, x, t, cond=None):
            x *= 2
            t *= 0.5
            return super().forward(x, t)

    primals, tangents = inputs()
    F, dF = strategy(Prediction(Writes(lambda n, h, t: h), lambda t: {"t": t}), primals, tangents)
    expected = asked(FiniteDifference(1e-5), Writes(lambda n, h, t: h))
    torch.testing.assert_close((F, dF), expected, rtol=1e-7, atol=1e-7)
    assert all(torch.equal(a, b) for a, b in zip(tangents, inputs()[1], strict=True))
