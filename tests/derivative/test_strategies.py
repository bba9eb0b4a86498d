"""The total derivative: every strategy gives the same value, tangent and parameter gradient, on every kind of layer."""

import pytest
import torch
import torch.autograd.forward_ad as fwd
import torch.nn.functional as nnf
from torch import nn

from facm.derivative import (
    Chain,
    FiniteDifference,
    NoGraph,
    OpLevel,
    Prediction,
    WholeNetwork,
    plain_attention,
    same_dropout,
)
from facm.derivative.attention.dispatch import chosen, forget
from facm.derivative.inside_forward import redirected
from facm.flow.time_conditioning import AuxiliaryTime, ExpandedInterval
from facm.networks.lightning_dit import LightningDiT
from facm.networks.mlp import MLP

pytestmark = pytest.mark.usefixtures("double")


def refilled(network, seed=0):
    """Nothing is left at its zero initialisation, so that no path is silent."""
    rng = torch.Generator().manual_seed(seed)
    for p in network.double().parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=rng) / max(p.shape[-1], 1) ** 0.5
    return network


# Networks of every kind of layer, as functions of (x (3, 4, 6, 6) or (3, 8, 4), t (3,))


class Embedded(nn.Module):
    """Base: a time embedding that every layer is modulated with."""

    def __init__(self, channels=4):
        super().__init__()
        self.time = nn.Linear(2, channels)

    def at(self, t):
        return self.time(torch.stack([t.sin(), (2 * t).cos()], dim=1))


class Convolutions(Embedded):
    """Strides, padding, groups, dilation, named padding, no bias, and keyword calls."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.dilated = nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False)
        self.same = nn.Conv2d(8, 8, 3, padding="same", groups=8)
        self.circular = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.row = nn.Conv1d(8, 8, 3, stride=1, padding=1, groups=4)
        self.volume = nn.Conv3d(8, 8, (1, 3, 3), padding=(0, 1, 1))
        self.up = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)
        self.keyword = nn.Parameter(torch.zeros(4, 2, 3, 3))
        self.keyword_bias = nn.Parameter(torch.zeros(4))

    def forward(self, x, t):
        h = self.down(x * (1 + self.at(t)[:, :, None, None])).tanh()
        h = self.circular(self.same(self.dilated(h)).tanh())
        h = self.row(h.flatten(2)).unflatten(2, (3, 3))
        h = self.volume(h[:, :, None])[:, :, 0]
        h = self.up(h.tanh())
        return nnf.conv2d(h, weight=self.keyword, bias=self.keyword_bias, padding=1, groups=2)


class Functional(nn.Module):
    """Calls the plain functions positionally, mixed and by keyword, with every number of arguments."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4))
        self.kernel = nn.Parameter(torch.zeros(8, 8, 3))

    def forward(self, x, t):
        h = nnf.linear(x, self.weight) + nnf.linear(x * t[:, None, None], self.weight, self.bias).tanh()
        h = h + nnf.linear(h, weight=self.weight) + nnf.linear(input=h, weight=self.weight, bias=self.bias)
        h = nnf.conv1d(h.sin(), self.kernel, self.bias.repeat(2), 1, 1) + nnf.conv1d(h, self.kernel, None, padding=1)
        return h + torch.conv1d(h.cos(), self.kernel, None, 1, "same", 1, 1)


class HyperNetwork(nn.Module):
    """Weights and biases that depend on the time themselves, or on both the time and the state."""

    def __init__(self):
        super().__init__()
        self.weight, self.slope = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4, 4))
        self.bias = nn.Parameter(torch.zeros(4))
        self.kernel = nn.Parameter(torch.zeros(8, 8, 1))

    def forward(self, x, t):
        s = t.mean()
        h = nnf.linear(x, self.weight + s * self.slope, self.bias).tanh()
        h = nnf.linear(torch.ones_like(h), self.weight * s) + h  # a constant input with a moving weight
        h = nnf.linear(h, self.weight, self.bias * s.sin())  # a constant weight with a moving bias
        h = nnf.conv1d(h, self.kernel, self.bias.repeat(2) * s)
        h = nnf.conv1d(h, self.kernel * s, self.bias.repeat(2) * x.mean())
        return h + nnf.linear(nnf.linear(torch.ones_like(h), self.weight), self.slope)  # nothing moves


class FusedAttention(Embedded):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12, bias=False), nn.Linear(4, 4)

    def forward(self, x, t):
        q, k, v = self.qkv(x + self.at(t)[:, None]).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        h = nnf.scaled_dot_product_attention(q, k, v) + nnf.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(h.transpose(1, 2).flatten(2))


class Mixed(Embedded):
    """Norms, embeddings, bilinear forms and matrix products that no special rule covers."""

    def __init__(self):
        super().__init__()
        self.norm, self.group = nn.LayerNorm(4), nn.GroupNorm(2, 8)
        self.both, self.matrix = nn.Bilinear(4, 4, 4), nn.Parameter(torch.zeros(4, 4))

    def forward(self, x, t):
        h = self.group(self.norm(x) * self.at(t)[:, None])
        h = torch.true_divide(h, self.matrix[0, 0]) + torch.true_divide(h, 2 + t[:, None, None])
        return self.both(h, x) + h @ self.matrix + torch.einsum("btc,cd->btd", x, self.matrix) * t[:, None, None] ** 2


class Encoder(Embedded):
    """PyTorch's own transformer layer in eval mode, where it has a fused path without any derivative."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, activation="gelu")

    def forward(self, x, t):
        return self.layer.eval()(x + self.at(t)[:, None])


LAYERS = {
    "encoder": (Encoder, (3, 8, 4)),
    "convolutions": (Convolutions, (3, 4, 6, 6)),
    "functional": (Functional, (3, 8, 4)),
    "hypernetwork": (HyperNetwork, (3, 8, 4)),
    "fused attention": (FusedAttention, (3, 8, 4)),
    "mixed": (Mixed, (3, 8, 4)),
}
TIME = [0.1, 0.45, 0.9]


def inputs(shape):
    rng = torch.Generator().manual_seed(3)
    t = torch.tensor(TIME)
    return (torch.randn(shape, generator=rng), t), (torch.randn(shape, generator=rng), torch.ones_like(t))


def everything(derivative, network, function, shape):
    """Value, tangent and the gradient of a loss of the value, through one strategy."""
    F, dF = derivative(function, *inputs(shape))
    assert F.requires_grad
    assert not dF.requires_grad
    weights = torch.randn(F.shape, generator=torch.Generator().manual_seed(4))
    parameters = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad((F * weights).sum() + F.square().sum(), parameters, allow_unused=True)
    return F.detach(), dF, gradients


def check_all_strategies(network, function, shape, others=()):
    F, dF, gradients = everything(NoGraph(), network, function, shape)
    assert dF.norm() > 1e-2
    for strategy in (WholeNetwork(), OpLevel(), *others):
        found = everything(strategy, network, function, shape)
        torch.testing.assert_close((F, dF, gradients), found, rtol=1e-10, atol=1e-10)
    differences = [everything(FiniteDifference(h), network, function, shape) for h in (2e-2, 1e-2, 1e-4)]
    for other in differences:
        torch.testing.assert_close((F, gradients), (other[0], other[2]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(differences[2][1], dF, rtol=1e-4, atol=1e-5 * dF.abs().max().item())
    coarse, fine, _ = ((other[1] - dF).norm().item() for other in differences)
    assert coarse / fine == pytest.approx(4, rel=0.1)  # second order


@pytest.mark.parametrize("name", LAYERS)
def test_strategies_agree_on_every_kind_of_layer(name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    network = refilled(make())
    check_all_strategies(network, network, shape)


FLAGS = ("qk_norm", "swiglu", "rope", "rmsnorm", "shift")
COMBINATIONS = [
    *({flag: False} for flag in FLAGS),
    {},
    dict.fromkeys(FLAGS, False),
    {"learn_sigma": True, "patch_size": 2},
    {"num_classes": 0},
]
ALL_OR_NONE = ({}, dict.fromkeys(FLAGS, False))
SOME_FAST = [pytest.param(each, marks=() if each in ALL_OR_NONE else pytest.mark.slow) for each in COMBINATIONS]


@pytest.mark.parametrize("auxiliary_time", [False, True])
@pytest.mark.parametrize("flags", SOME_FAST, ids=str)
def test_strategies_agree_on_the_transformer(flags, auxiliary_time):
    config = {"input_size": 4, "patch_size": 1, "in_channels": 3, "hidden_size": 16, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    network = LightningDiT(**{**config, "num_classes": 5, "auxiliary_time": auxiliary_time, **flags}).build()
    network, task = refilled(network), AuxiliaryTime() if auxiliary_time else ExpandedInterval()
    cond = None if network.config.num_classes == 0 else torch.tensor([0, 3, 5])
    chains = [Chain(), Chain(op_level=True), Chain(checkpoint=True), Chain(op_level=True, checkpoint=True)]
    chains += [Chain(blocks=("blocks",)), Chain(blocks=("blocks.0", "blocks.1"), op_level=True)]
    check_all_strategies(network, Prediction(network, task.shortcut, cond), (3, 3, 4, 4), chains)


@pytest.mark.parametrize("derivative", [NoGraph(), WholeNetwork(), OpLevel(), FiniteDifference(1e-3)])
def test_derivative_of_a_known_function(derivative):
    """F = x^2 sin t along (v, 1): dF = 2 x v sin t + x^2 cos t; a tangent of t other than 1 scales the second term."""
    (x, t), (v, one) = inputs((3, 2))
    F, dF = derivative(lambda x, t: x**2 * t.sin()[:, None], (x, t), (v, one))
    sin, cos = t.sin()[:, None], t.cos()[:, None]
    torch.testing.assert_close(F, x**2 * sin)
    torch.testing.assert_close(dF, 2 * x * v * sin + x**2 * cos, rtol=1e-5, atol=1e-5)
    _, dF = derivative(lambda x, t: x**2 * t.sin()[:, None], (x, t), (v, 3 * one))
    torch.testing.assert_close(dF, 2 * x * v * sin + 3 * x**2 * cos, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("derivative", [NoGraph(), WholeNetwork(), OpLevel(), FiniteDifference()])
def test_a_constant_function_has_a_zero_derivative(derivative):
    F, dF = derivative(lambda x, t: torch.ones(3, 2), *inputs((3, 2)))
    assert torch.equal(F, torch.ones(3, 2))
    assert torch.equal(dF, torch.zeros(3, 2))


@pytest.mark.parametrize("h", [1e-3, 0.25])
def test_finite_difference_asks_one_step_to_either_side(h):
    asked = []

    def function(x, t):
        asked.append((x.clone(), t.clone(), torch.is_grad_enabled()))
        return x

    (x, t), (v, one) = inputs((3, 2))
    FiniteDifference(h)(function, (x, t), (v, one))
    torch.testing.assert_close([a[:2] for a in asked], [(x + h * v, t + h), (x - h * v, t - h), (x, t)])
    assert [a[2] for a in asked] == [False, False, True]
    assert FiniteDifference().h == 5e-3


@pytest.mark.parametrize("h", [0.0, -1e-3])
def test_finite_difference_needs_a_positive_step(h):
    with pytest.raises(ValueError, match=f"FiniteDifference: h = {h}"):
        FiniteDifference(h)


def test_the_tangent_leaves_no_graph_and_costs_one_pass():
    graphs = []

    def function(x, t):
        graphs.append(torch.is_grad_enabled())
        return network(x, t)

    network = refilled(MLP(4, 8, 1).build())
    NoGraph()(function, *inputs((3, 4)))
    assert graphs == [False, True]


def test_the_choice_of_the_attention_kernel_is_handed_on():
    network = refilled(FusedAttention())
    for attention, expected in (("plain", "plain: asked for"), ("auto", "plain: on cpu")):
        forget()
        OpLevel(attention)(network, *inputs((3, 8, 4)))
        assert set(chosen().values()) == {expected}
    with pytest.raises(ValueError, match='kernel = "kernel", expected "auto" or "plain" here'):
        OpLevel("kernel")(network, *inputs((3, 8, 4)))


def test_fused_attention_is_back_after_the_derivative():
    """Nothing leaks out of the tangent's pass: neither the plain attention kernel nor the rule for linear maps."""
    network = refilled(FusedAttention())
    enabled = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    for derivative in (NoGraph(), WholeNetwork()):
        derivative(network, *inputs((3, 8, 4)))
        assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()) == enabled
    with plain_attention():
        assert not torch.backends.cuda.flash_sdp_enabled()


def test_the_rule_for_linear_maps_holds_in_half_precision_and_under_autocast():
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    network = MLP(4, 32, 2).build()
    primals, tangents = (tuple(a.float() for a in pair) for pair in inputs((3, 4)))
    _, exact = NoGraph()(network, primals, tangents)
    with torch.autocast("cpu", torch.bfloat16):
        _, dF = NoGraph()(network, primals, tangents)
    assert (dF.float() - exact).norm() < 0.03 * exact.norm()


# Dropout


def test_strategies_agree_under_dropout_with_one_mask():
    torch.manual_seed(0)
    network = refilled(MLP(4, 32, 3, dropout=0.3).build()).train()
    torch.manual_seed(7)
    masked = same_dropout(network)
    check_all_strategies(network, masked, (3, 4))
    F, dF, _ = everything(NoGraph(), network, masked, (3, 4))
    evaluated, undropped, _ = everything(NoGraph(), network.eval(), network, (3, 4))
    assert not torch.allclose(F, evaluated)
    assert not torch.allclose(dF, undropped)


def test_one_mask_within_a_step_and_another_in_the_next():
    network, ((x, t), _) = refilled(MLP(4, 32, 3, dropout=0.3).build()).train(), inputs((3, 4))
    masked = same_dropout(network)
    first = masked(x, t)
    assert torch.equal(first, masked(x, t=t))
    again = same_dropout(network)
    assert not torch.allclose(first, again(x, t))
    assert torch.equal(again(x, t), again(x, t))
    assert torch.equal(first, masked(x, t))


@pytest.mark.parametrize("derivative", [NoGraph(), WholeNetwork(), OpLevel(), Chain(), Chain(op_level=True)], ids=str)
def test_value_and_tangent_of_a_network_in_half_precision_are_in_single(derivative):
    """Under autocast; a target at bf16's precision would be a coarse one."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    network = LightningDiT(4, 2, 4, 16, 1, 2, num_classes=3).build()
    x, v, t = torch.randn(3, 4, 4, 4), torch.randn(3, 4, 4, 4), torch.rand(3)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x, t, torch.arange(3)).dtype == torch.bfloat16
        prediction = Prediction(network, ExpandedInterval().shortcut, torch.arange(3))
        F, dF = derivative(prediction, (x, t), (v, torch.ones(3)))
    assert F.dtype == dF.dtype == torch.float32


def test_in_eval_mode_the_network_is_returned_as_it_is():
    network = MLP(4, 8, 1, dropout=0.3).build()
    assert same_dropout(network.eval()) is network
    assert same_dropout(network.train()) is not network
    plain = lambda x, t: x  # noqa: E731
    assert same_dropout(plain) is plain


def test_a_prediction_asks_at_the_times_of_t_and_lifts_half_precision():
    asked = []

    def network(x, t, r, cond):
        asked.append((t, r, cond))
        return (x * (t + r)[:, None]).bfloat16()

    (x, t), (v, one) = inputs((3, 4))
    prediction = Prediction(network, lambda t: {"t": 2 - t, "r": 3 * t}, torch.tensor([0, 2, 1]))
    F = prediction(x, t)
    assert F.dtype == torch.float32
    torch.testing.assert_close(asked[0], (2 - t, 3 * t, prediction.cond))
    _, dF = WholeNetwork()(prediction, (x, t), (v, one))
    expected = v * (2 + 2 * t)[:, None] + 2 * x
    torch.testing.assert_close(dF.double(), expected, rtol=0.02, atol=0.02)


# Networks that offer their chain


class Link(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.drop = nn.Linear(8, 8), nn.Dropout(0.3)

    def forward(self, h, c, scale, shift):
        return h + scale * self.drop((self.linear(h) * c).sin() + shift)


class Linked(nn.Module):
    """A chain with dropout before, inside and after its blocks, each of which has constants."""

    def __init__(self):
        super().__init__()
        self.inward, self.time, self.labels = nn.Linear(4, 8), nn.Linear(2, 8), nn.Embedding(3, 8)
        self.blocks = nn.ModuleList(Link() for _ in range(3))
        self.outward, self.drop = nn.Linear(8, 4), nn.Dropout(0.3)

    def forward(self, x, t, cond=None):
        h, c = self.enter(x, t, cond)
        for block, constants in self.links():
            h = block(h, c, *constants)
        return self.leave(h, c)

    def enter(self, x, t, cond=None):
        c = self.time(torch.stack([t.sin(), (2 * t).cos()], dim=1))
        return self.drop(self.inward(x)), c if cond is None else c + self.labels(cond)

    def links(self):
        return [(block, (0.5 + k, 1.0 - k)) for k, block in enumerate(self.blocks)]

    def leave(self, h, c):
        return self.outward(self.drop(h * c))


def linked(training=True):
    torch.manual_seed(0)
    network = refilled(Linked()).train(training)
    torch.manual_seed(7)
    return network


CHAINS = [Chain(op_level=op_level, checkpoint=checkpoint) for op_level in (False, True) for checkpoint in (False, True)]
CHAINS += [Chain(("blocks",)), Chain(("blocks",), op_level=True)]


@pytest.mark.parametrize("times", [ExpandedInterval().shortcut, ExpandedInterval().anchor])
@pytest.mark.parametrize("cond", [None, torch.tensor([0, 2, 1])])
@pytest.mark.parametrize("training", [False, True])
def test_a_chain_is_the_whole_network_with_its_dropout(training, cond, times):
    network = linked(training)
    masked = same_dropout(network)
    check_all_strategies(network, Prediction(masked, times, cond), (3, 4), CHAINS)
    assert not training or not torch.allclose(masked(*inputs((3, 4))[0]), network.eval()(*inputs((3, 4))[0]))


@pytest.mark.parametrize("chain", CHAINS[:5], ids=str)
def test_the_tangents_graph_ends_at_the_end_of_its_block(chain):
    network, arrived = linked(False), []

    def record(module, args):
        if chain.blocks:
            arrived.append([torch._C._functorch.get_unwrapped(a) for a in fwd.unpack_dual(args[0])])
        else:
            (h, _), tangents, _ = args
            assert not any(tangent.requires_grad for tangent in tangents)
            arrived.append((h, tangents[0]))

    for block in network.blocks[1:]:
        block.register_forward_pre_hook(record)
    chain(Prediction(network, ExpandedInterval().shortcut), *inputs((3, 4)))
    assert len(arrived) == 2
    assert all(h.requires_grad for h, _ in arrived)
    assert not any(tangent.requires_grad for _, tangent in arrived)


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_a_checkpointed_chain_asks_its_blocks_again_in_the_backward_pass(chain):
    network, asked = linked(False), []
    network.blocks[1].linear.register_forward_pre_hook(lambda *_: asked.append(torch.is_grad_enabled()))
    F, _ = chain(Prediction(network, ExpandedInterval().shortcut), *inputs((3, 4)))
    assert len(asked) == 1
    F.sum().backward()
    assert len(asked) == (2 if chain.checkpoint else 1)


def test_a_chain_looks_up_the_names_it_is_given():
    with pytest.raises(ValueError, match="Linked has no module 'layers'"):
        Chain(("layers",))(Prediction(linked(), ExpandedInterval().shortcut), *inputs((3, 4)))


# Wrappers


class Wrapper(nn.Module):
    """As data parallelism wraps a network."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        assert all(fwd._current_level < 0 or fwd.unpack_dual(a).tangent is None for a in args)
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("strategy", [WholeNetwork(), NoGraph(), OpLevel(), FiniteDifference(1e-4), *CHAINS], ids=str)
def test_a_wrapper_is_entered_once_and_with_plain_tensors(strategy):
    times, cond = ExpandedInterval().anchor, torch.tensor([0, 2, 1])
    network = linked()
    expected = everything(strategy, network, Prediction(same_dropout(network), times, cond), (3, 4))
    wrapper = Wrapper(linked())
    found = everything(strategy, wrapper, Prediction(same_dropout(wrapper), times, cond), (3, 4))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert wrapper.calls == 1
    assert "forward" not in vars(wrapper.module)


@pytest.mark.parametrize("own", [False, True])
def test_a_module_is_itself_again_inside_and_after_a_redirection(own):
    """Also where its forward was put on the instance, where it was compiled, and where an error ends the call."""
    module, code = nn.Linear(2, 2), object()
    if own:
        module.forward = lambda x: 7 * x
    forward, x = module.forward, torch.ones(3, 2)
    ordinary = module(x)
    hooked = []
    module.register_forward_pre_hook(lambda *_: hooked.append(1))
    module._compiled_call_impl = code

    def is_itself():
        return vars(module).get("forward") == (forward if own else None) and module._compiled_call_impl is code

    def method(given, *args):
        assert given == forward
        assert is_itself()
        return given(args[0]) + args[1]

    assert torch.equal(redirected(module, method, x, 2.0), ordinary + 2)
    assert hooked == [1]
    assert is_itself()

    class Refuses(nn.Module):
        def forward(self, *args):
            raise RuntimeError("before the module is reached")

    with pytest.raises(RuntimeError, match="before the module"):
        redirected(module, method, x, through=Refuses())
    assert is_itself()


@pytest.mark.parametrize(("auxiliary_time", "training"), [(False, False), (False, True), (True, False), (True, True)])
def test_the_wrapper_still_says_whether_there_is_a_second_time(auxiliary_time, training):
    network = MLP(4, 8, 1, auxiliary_time=auxiliary_time).build().train(training)
    assert same_dropout(network).auxiliary_time is auxiliary_time
