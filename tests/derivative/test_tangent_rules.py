"""The derivative of networks that were not written for it: every awkward operation, and what is said where it fails."""

import re

import pytest
import torch
import torch.autograd.forward_ad as fwd
import torch.nn.functional as nnf
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from facm.derivative import (
    Chain,
    FiniteDifference,
    ForwardModeError,
    NoGraph,
    OpLevel,
    Prediction,
    WholeNetwork,
    same_dropout,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
# One computation done twice: where tensors lie in memory decides in which order sums are added up.
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}
SHAPE = (3, 8, 4)
WHOLE, TWO = WholeNetwork(), (OpLevel(), NoGraph())


pytestmark = pytest.mark.usefixtures("double")


class Awkward(nn.Module):
    """One awkward operation, or a few, on a state h (3, 8, 4) that moves and has parameters behind it and before it."""

    stochastic = False

    def __init__(self, operation, checkpointed=False):
        super().__init__()
        self.operation, self.checkpointed = operation, checkpointed
        rng = torch.Generator().manual_seed(5)
        draw = lambda *shape: nn.Parameter(torch.randn(*shape, generator=rng))  # noqa: E731
        self.inward, self.time = draw(4, 4), draw(4)
        self.w, self.b, self.W, self.image = draw(4), draw(4), draw(4, 4), draw(8, 8, 2, 2)
        self.register_buffer("index", torch.tensor([2, 0, 1, 3]))
        self.register_buffer("mask", torch.randn(8, 4, generator=rng) > 0)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))
        self.inside = None

    def forward(self, x, t, cond=None):
        h = x @ self.inward + t.sin()[:, None, None] * self.time
        run = lambda h, s: self.operation(self, h, s)  # noqa: E731
        s = t[:, None, None].cos()
        out = checkpoint(run, h, s, use_reentrant=False) if self.checkpointed else run(h, s)
        if self.inside is not None:
            self.inside()
        return out


def setitem(n, h, s):
    out = torch.zeros(3, 8, 4)
    out[:, 1:3] = h[:, :2]
    out[:, 4] += h[:, 0] * n.w
    out[0, :, n.index[:2]] = h[1, :, :2]
    out[..., 3][n.mask[None, :, 0].expand(3, 8)] = n.b[0]
    return out * h


def views(n, h, s):
    h = h * 1
    tail = h[:, 4:]
    tail *= n.w  # into a view: h changes
    h.transpose(1, 2)[:, 0].mul_(n.W[0, 0])
    h.view(3, 2, 4, 4)[:, 1] += s[:, :, 0, None] * n.b
    return h + h.detach() * n.w


def no_shared_tangents(n, h, s):
    """Sums with a constant and copies are written into: what they were made of must not change."""
    parts = [h + 0, 0 + h, h - n.b, h.clone(), h.flatten(1).repeat(1, 1).view(3, 8, 4), h.to(torch.float64, copy=True)]
    for part in parts:
        part.mul_(n.w).add_(h)
    same = h * 1
    unnamed = same.as_strided((3, 8, 4), (32, 4, 1)), same.hsplit(2)[0].adjoint().mT, same[0].real
    named = same.contiguous(), same.reshape(3, 8, 4), same.to(torch.float64), same[:], same.expand(3, 8, 4), same.mT.mT
    for view in (*named, *unnamed):
        view.mul_(n.w.sin()).add_(s[0] * n.w)  # these are the same memory: ``same`` changes
    return sum(parts) * h + same


def copies(n, h, s):
    out = torch.empty(3, 8, 4)
    out.copy_(h)
    out.masked_fill_(n.mask, 0.5).clamp_(-2, 2)
    out.index_add_(2, n.index, h).addcmul_(h, n.w).div_(1 + h.square()).sub_(h, alpha=2).pow_(2)
    out[:, 0].zero_()
    return out


def in_place_activations(n, h, s):
    a = nnf.silu(h * n.w, inplace=True) + nnf.relu(h + n.b, inplace=True) + (h * 1).tanh_() + (h * 1).exp_()
    return a + nnf.leaky_relu_(h * n.b) + nnf.elu(h * 2, inplace=True) + (h * n.w).pow_(2).mul_(n.w).sigmoid_()


def complex_rotary(n, h, s):
    pairs = torch.view_as_complex(h.reshape(3, 8, 2, 2))
    turn = torch.polar(torch.ones(8, 2), torch.arange(16.0).view(8, 2))
    moving_turn = torch.polar(torch.ones(3, 8, 2), s * n.w[:2].expand(8, 2))
    out = torch.view_as_real(pairs * turn * moving_turn).flatten(2)
    return out + (pairs * pairs.conj()).real.repeat(1, 1, 2) + torch.view_as_real(pairs * 2j).flatten(2) * n.w


def products(n, h, s):
    moving = n.W + s.mean() * n.W.mT
    out = torch.einsum("btc,cd->btd", h, n.W) + torch.einsum("btc,bsc,bsd->btd", h, h, h * n.w)
    out = out + h @ n.W + h @ moving + n.W.expand(3, 4, 4).bmm(h.mT).mT + torch.bmm(h, n.W.expand(3, 4, 4))
    out = (
        out
        + torch.matmul(h, h.mT) @ h
        + torch.mm(h[0], moving)
        + torch.outer(h[0, :, 0], n.w)
        + h[:, :1] * n.w.dot(h[0, 0])
    )
    out = out + torch.addmm(n.b, h[0], n.W) + torch.addmm(h[0], h[1], moving, beta=0.5, alpha=2)
    out = out + torch.baddbmm(h, h @ h.mT, h) + torch.addcmul(h, h, n.w, value=0.3) + torch.addcdiv(h, n.w, 2 + h.sin())
    return out + (n.W @ h[0, 0]) + torch.mv(moving, h[0, 1]) + torch.kron(h[0, 0, :2], n.w[:2]) + moving.__rmatmul__(h)


def linears(n, h, s):
    moving = s.mean() * n.W
    out = nnf.linear(h, n.W) + nnf.linear(h, n.W, n.b) + nnf.linear(weight=n.W, bias=n.b, input=h)
    out = (
        out
        + nnf.linear(weight=moving, input=torch.ones(8, 4))
        + nnf.linear(h, weight=n.W, bias=n.b * s.mean())
        + nnf.linear(h, n.W, bias=n.b)
    )
    out = (
        out
        + nnf.linear(input=torch.ones(8, 4), weight=n.W, bias=s.mean() * n.b)
        + nnf.bilinear(h, h, n.W[None], n.b[:1])
    )
    image = h.view(3, 8, 2, 2)
    up = nnf.conv_transpose2d(image, n.image, n.image[0, :, 0, 0], 1) + nnf.conv_transpose2d(
        image, bias=None, weight=n.image
    )
    down = nnf.conv2d(up, n.image, n.image[0, :, 0, 0]) + nnf.conv2d(up, n.image * s.mean())
    return out + down.flatten(2)


def sums(n, h, s):
    out = h + 1 + s + n.w + torch.add(n.w, h, alpha=3) + torch.add(h, n.w, alpha=2) + torch.sub(n.w, s, alpha=2)
    out = (
        out - n.b + (n.b - h) + (1 - h) + (h - s) + h.sub(s, alpha=0.5) + torch.rsub(h, n.w) + torch.rsub(h, 2, alpha=3)
    )
    wide = n.W[:, None, None, :] + s[None, :, :, 0, None].expand(1, 3, 1, 1)  # a small dual to a large constant
    return out + wide.sum(0) + (s + n.W).mean(1, keepdim=True) + (s[:, :, 0] + torch.zeros(3, 8)).unsqueeze(-1)


def divisions(n, h, s):
    return h / 2 + h / n.w + n.w / (2 + h.sin()) + h / (2 + s) + torch.div(h, 0.7) + (h * n.w) % 0.7 + 1 / (3 + s)


def joins(n, h, s):
    row = n.w.expand(3, 1, 4)
    out = torch.cat([row, h, h[:, :2] * n.b, torch.ones(3, 1, 4)], dim=1) + torch.cat(
        (row.repeat(1, 11, 1), s * row), 1
    )
    stacked = torch.stack([h, n.w.expand_as(h)], 0)
    return (
        out[:, :8]
        + stacked.sum(0)
        + torch.hstack([h[:, :4], row.expand(3, 4, 4)])
        + torch.vstack([h[:1], stacked[1, :2]])
    )


def pieces(n, h, s):
    a, b = h.chunk(2, dim=-1)
    c, d, e = torch.split(h, [3, 3, 2], dim=1)
    f, *_ = h.unbind(1)
    g, k = h.tensor_split(2, dim=1)
    out = torch.cat([b * a, a], -1) + torch.cat([e, c, d], 1) + f[:, None] * n.w + torch.cat([k, g * n.b], 1)
    first, second = (h * n.w).sort(dim=1)
    top = h.topk(2, dim=-1)
    return (
        out
        + first * (second > 3)
        + top.values.sum(-1, keepdim=True)
        + h.max(dim=1, keepdim=True).values * h.median(1).values[:, None]
    )


def selections(n, h, s):
    out = torch.where(h > 0, h * n.w, n.b) + torch.where(n.mask, h, 0.0) + h.masked_fill(~n.mask, -1.0) * n.w
    out = out + h.index_select(2, n.index) + h.gather(1, n.index.view(1, 1, 4).expand(3, 8, 4)) + h[..., n.index] * n.w
    out = out + h[:, n.index[:1]] + h[n.index[:3]] + h.roll(1, 1) + h.flip(-1) + h.tril() + h.triu(1) * n.w
    out = out + h.clamp(-0.5, 0.5) + torch.maximum(h, n.w) + torch.minimum(h, h * n.b) + h.abs() + h.sign()
    return out + h[(h > -100).nonzero(as_tuple=True)].view(3, 8, 4) + h.scatter(2, n.index.expand(3, 8, 4), h * n.w)


def reductions(n, h, s):
    out = h.cumsum(1) + h.std(1, keepdim=True) + h.var(-1, keepdim=True, unbiased=False) + h.norm(dim=-1, keepdim=True)
    out = (
        out
        + h.softmax(-1) * n.w
        + h.log_softmax(1)
        + h.logsumexp(1, keepdim=True)
        + h.mean()
        + h.sum((1, 2), keepdim=True)
    )
    out = out + h.mean(-1, keepdim=True, dtype=torch.float64) + torch.linalg.vector_norm(h) + h.prod(-1, keepdim=True)
    return (
        out
        + nnf.normalize(h, dim=-1) * n.w
        + h.cumprod(-1)
        + h.amax(1, keepdim=True)
        + torch.var_mean(h, 1, keepdim=True)[0]
    )


def norms(n, h, s):
    out = (
        nnf.layer_norm(h, (4,)) + nnf.layer_norm(h, (4,), n.w, n.b) * h + nnf.layer_norm(h, (4,), weight=n.w, eps=1e-3)
    )
    out = (
        out
        + nnf.layer_norm(h, normalized_shape=(4,), weight=n.w * s.mean(), bias=n.b)
        + nnf.layer_norm(h, (4,), None, n.b)
    )
    groups = h.mT.reshape(3, 4, 8)
    out = (
        out
        + (
            nnf.group_norm(groups, 2, n.w, n.b) + nnf.group_norm(groups, 2) + nnf.group_norm(groups, 2, n.w * s.mean())
        ).mT
    )
    spatial = nnf.group_norm(h.reshape(3, 4, 4, 2), 2, weight=n.w, bias=n.b, eps=1e-3)
    out = out + spatial.reshape(3, 8, 4) + nnf.rms_norm(h, (4,)) + nnf.rms_norm(h, (4,), n.w, 1e-3) * n.b
    return out + nnf.instance_norm(h) + nnf.batch_norm(h, n.mean, n.var) + nnf.local_response_norm(h, 2)


def images(n, h, s):
    image = h.view(3, 8, 2, 2)
    for mode in ("nearest", "bilinear", "bicubic"):
        image = nnf.interpolate(image, scale_factor=2, mode=mode) * (1 + n.w[0])
        image = nnf.avg_pool2d(image, 2) + nnf.max_pool2d(image, 2) + nnf.adaptive_avg_pool2d(image, 2)
    image = nnf.pixel_unshuffle(nnf.pixel_shuffle(image, 2).sin(), 2)
    for mode, size in (("constant", 1), ("reflect", 1), ("replicate", 1), ("circular", 1)):
        image = nnf.pad(image, (size, 0, size, 0), mode=mode, **({"value": 1.5} if mode == "constant" else {}))[
            :, :, 1:, :2
        ]
    patches = nnf.unfold(image.repeat(1, 1, 2, 2), 2, stride=2)
    return (nnf.fold(patches, 4, 2, stride=2)[..., :2, :2] + image).flatten(2) * n.w + image.unfold(2, 1, 1).reshape(
        3, 8, 4
    )


def activations(n, h, s):
    out = (
        nnf.gelu(h * n.w) + nnf.gelu(h, approximate="tanh") + nnf.silu(h) + nnf.mish(h) + nnf.softplus(h) + h.sigmoid()
    )
    out = (
        out + nnf.glu(torch.cat([h, h * n.w], -1)) + nnf.hardswish(h) + nnf.relu6(h) + nnf.prelu(h, n.w[:1]) + h.tanh()
    )
    return (
        out
        + h.exp().log1p().sqrt().rsqrt()
        + h.square() ** 1.5
        + torch.lerp(h, n.w.expand_as(h), s)
        + torch.atan2(h, n.w)
    )


def constants(n, h, s):
    """What has no derivative, in every strategy alike; and new tensors made after the pattern of a moving one."""
    with torch.no_grad():
        frozen = h * n.w
        frozen.mul_(2)
    frozen += n.w
    out = h * h.detach() + h * torch.ones_like(h) + h.new_full((4,), 2.0) * h + frozen
    out = (
        out + torch.full_like(h, float(h.detach().sum() > 0)) + (1.0 if (s < 1).all() and -9 < s.min() < 9 else 2.0) * h
    )
    out = (
        out
        + (h > 0).double()
        + h.argmax(-1, keepdim=True)
        + h.round()
        + (h.shape[1], len(h), h.mT.ndim, h.numel())[1] * h
    )
    return (
        out + nnf.one_hot(h.argmax(-1), 4) + nnf.embedding(n.index, n.W)[0] + h.to(torch.float32).double() * h.float()
    )


def attention(n, h, s):
    q = h[:, None] * n.w
    out = nnf.scaled_dot_product_attention(q, h[:, None], h[:, None])
    out = out + nnf.scaled_dot_product_attention(q, n.W.expand(3, 1, 4, 4), n.W.expand(3, 1, 4, 4), scale=0.3)
    out = out + nnf.scaled_dot_product_attention(
        q, q, q, attn_mask=torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    )
    out = out + nnf.scaled_dot_product_attention(q, q, value=q, is_causal=True)
    moving_bias = (h @ h.mT)[:, None]  # a mask that depends on the state
    return (out + nnf.scaled_dot_product_attention(q, q, q, attn_mask=moving_bias))[:, 0]


def broadcasts(n, h, s):
    out = n.W[:, None, None] * s + s.squeeze()[None, :, None, None] * torch.ones(4, 3, 8, 4) * n.w
    return (
        out.sum(0) + s.expand(3, 8, 4) * s + (s * 2).expand_as(h).contiguous() + torch.broadcast_to(s, (3, 8, 4)) * 1.5
    )


AWKWARD = [
    setitem, views, no_shared_tangents, copies, in_place_activations, complex_rotary, products, linears, sums,
    divisions, joins, pieces, selections, reductions, norms, images, activations, constants, attention, broadcasts,
]  # fmt: skip


def inputs():
    rng = torch.Generator().manual_seed(3)
    t = torch.tensor([0.1, 0.45, 0.9])
    return (torch.randn(SHAPE, generator=rng), t), (torch.randn(SHAPE, generator=rng), torch.ones_like(t))


def everything(derivative, network, function):
    """Value, tangent and gradients; the inputs are as they were."""
    primals, tangents = inputs()
    F, dF = derivative(function, primals, tangents)
    torch.testing.assert_close((primals, tangents), inputs(), rtol=0, atol=0)
    assert F.requires_grad
    assert not dF.requires_grad
    weights = torch.randn(F.shape, generator=torch.Generator().manual_seed(4))
    parameters = list(network.parameters())
    gradients = torch.autograd.grad((F * weights).sum() + F.square().sum(), parameters, allow_unused=True)
    return F.detach(), dF, gradients


def check_same(network, function, strategies=TWO, reference=WHOLE):
    expected = everything(reference, network, function)
    assert expected[1].norm() > 1e-2
    for strategy in strategies:
        torch.testing.assert_close(everything(strategy, network, function), expected, **CLOSE)
    return expected


@pytest.mark.parametrize("operation", AWKWARD, ids=lambda f: f.__name__)
def test_strategies_agree_on_awkward_operations(operation):
    network = Awkward(operation)
    expected = check_same(network, network)
    checkpointed = Awkward(operation, checkpointed=True)
    for strategy in (OpLevel(), NoGraph()):
        torch.testing.assert_close(everything(strategy, checkpointed, checkpointed), expected, **CLOSE)


@pytest.mark.parametrize("strategy", [OpLevel(), NoGraph()], ids=str)
def test_data_of_a_tensor_cuts_the_graph_as_in_an_ordinary_pass(strategy):
    """Where torch.func.jvp keeps the graph: its gradient is the wrong one here."""
    network = Awkward(lambda n, h, s: h.data * n.w * h)
    F, dF = strategy(network, *inputs())
    expected = network(*inputs()[0])
    gradients = (torch.autograd.grad(out.sum(), network.parameters(), allow_unused=True) for out in (F, expected))
    torch.testing.assert_close(next(gradients), next(gradients), **ROUNDING)
    torch.testing.assert_close(dF, WholeNetwork()(network, *inputs())[1], **CLOSE)


# What autograd keeps


@pytest.mark.parametrize("operation", AWKWARD, ids=lambda f: f.__name__)
def test_autograd_saves_what_an_ordinary_forward_pass_saves(operation):
    """The same tensors in the same order, none of them with a tangent."""
    network, ((x, t), tangents) = Awkward(operation), inputs()

    def saved(run):
        found = []

        def pack(tensor):
            assert fwd._current_level < 0 or fwd.unpack_dual(tensor).tangent is None
            found.append(tensor.detach().clone())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run()
        return found

    ordinary = saved(lambda: network(x, t))
    assert len(ordinary) > 1
    torch.testing.assert_close(saved(lambda: OpLevel()(network, (x, t), tangents)), ordinary, **ROUNDING)


class Alive(TorchDispatchMode):
    """Bytes of the tensors made inside that still exist."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def bytes(self):
        return sum(size for reference, size in self.storages.values() if not reference.expired())


def residual(n, h, s):
    for _ in range(8):
        branch = nnf.silu(nnf.linear(nnf.layer_norm(h, (4,), n.w, n.b), n.W))
        h = h + torch.cat([branch, h * s], 1)[:, :8] * n.w
        h += nnf.dropout(h, 0.3).mean(-1, keepdim=True)
        h = h.clone() if n.training else h
        h *= n.w
        h = h.permute(1, 0, 2).reshape(8, 12).view(8, 3, 4).transpose(0, 1).contiguous()
    return h


def test_tangents_do_not_outlive_their_use():
    """At the end of the forward pass, where memory peaks, an ordinary pass's activations and a handful of tangents."""
    network, alive = Awkward(residual), []
    network.inside = lambda: alive.append(counter.bytes())
    with Alive() as counter:
        network(*inputs()[0])
    with Alive() as counter:
        OpLevel()(network, *inputs())
    one = inputs()[0][0].nbytes
    assert alive[0] > 50 * one
    assert alive[1] < alive[0] + 10 * one


# Modules of PyTorch


class Attending(nn.Module):
    def __init__(self, dropout=0.0, need_weights=True):
        super().__init__()
        self.need_weights = need_weights
        self.attention = nn.MultiheadAttention(4, 2, dropout=dropout, batch_first=True)

    def forward(self, x, t, cond=None):
        h = x + t[:, None, None]
        return h + self.attention(h, h, x, need_weights=self.need_weights)[0]


class Encoding(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x, t, cond=None):
        return self.encoder(x * (1 + t[:, None, None]))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.lstm = nn.GRU(4, 4, batch_first=True), nn.LSTM(4, 4, batch_first=True)

    def forward(self, x, t, cond=None):
        return self.lstm(self.gru(x + t[:, None, None])[0])[0]


class Convolved(nn.Module):
    """Batch and instance norm, with statistics."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.instance = nn.InstanceNorm1d(8, affine=True, track_running_stats=True)
        self.drop = nn.Dropout1d(0.0)

    def forward(self, x, t, cond=None):
        return self.drop(self.instance(self.norm(self.conv(x + t[:, None, None])).tanh()))


MODULES = {
    "attention": Attending,
    "attention without weights": lambda: Attending(need_weights=False),
    "encoder": Encoding,
    "recurrent": Recurrent,
    "convolved": Convolved,
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", MODULES)
def test_strategies_agree_on_modules_of_pytorch(name, training):
    torch.manual_seed(0)
    network = MODULES[name]().train(training)
    # torch.func.jvp refuses to count the batches of a batch norm
    reference = NoGraph() if training and name == "convolved" else WholeNetwork()
    check_same(network, network, reference=reference)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_statistics_are_kept_once_a_call(training):
    torch.manual_seed(0)
    network, expected = Convolved().train(training), Convolved().train(training)
    expected.load_state_dict(network.state_dict())
    expected(*inputs()[0])
    OpLevel()(network, *inputs())
    torch.testing.assert_close(dict(network.named_buffers()), dict(expected.named_buffers()), **ROUNDING)
    assert network.norm.num_batches_tracked == training


# Randomness: one mask, and the generator as an ordinary forward pass leaves it


class Dropping(nn.Module):
    def __init__(self, drop):
        super().__init__()
        self.drop = drop
        self.inward, self.outward = nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, x, t, cond=None):
        h = self.inward(x * (1 + t[:, None, None])).sin()
        return self.outward(h + self.drop(h * 2)) + 0.1 * torch.rand_like(h[..., :4])


DROPS = {
    "dropout": nn.Dropout(0.4),
    "in place": nn.Dropout(0.4, inplace=True),
    "all": nn.Dropout(1.0),
    "none": nn.Dropout(0.0),
    "functional": lambda h: torch.dropout(h, 0.3, True),
    "channels": nn.Dropout1d(0.5),
    "alpha": nn.AlphaDropout(0.3),
    "feature alpha": nn.FeatureAlphaDropout(0.3),
    "rrelu": nn.RReLU(),
    "gumbel": lambda h: nnf.gumbel_softmax(h, tau=0.7),
    "bernoulli": lambda h: h * torch.bernoulli(h.sigmoid()),
    "attention": nn.MultiheadAttention(16, 2, dropout=0.3, batch_first=True),
    "attention without weights": nn.MultiheadAttention(16, 2, dropout=0.3, batch_first=True),
    "encoder": nn.TransformerEncoderLayer(16, 2, 8, dropout=0.2, batch_first=True),
}


@pytest.mark.parametrize("name", DROPS)
def test_value_and_tangent_draw_the_same(name):
    torch.manual_seed(0)
    drop = DROPS[name]
    if isinstance(drop, nn.MultiheadAttention):
        attention = drop.double()
        drop = lambda h: attention(h, h, h, need_weights=name == "attention")[0]  # noqa: E731
    network = Dropping(drop).double().train()
    if isinstance(drop, nn.Module):
        drop.double().train()
    torch.manual_seed(7)
    network(*inputs()[0])
    state = torch.get_rng_state()
    torch.manual_seed(7)
    masked = same_dropout(network)
    # torch.func.jvp draws another mask than the network alone where a layout is transposed
    check_same(network, masked, reference=NoGraph() if name == "encoder" else WholeNetwork())
    torch.testing.assert_close(OpLevel()(masked, *inputs())[0], masked(*inputs()[0]), **ROUNDING)
    OpLevel()(masked, *inputs())
    assert torch.equal(torch.get_rng_state(), state)
    difference = FiniteDifference(1e-5)(masked, *inputs())[1]
    torch.testing.assert_close(difference, OpLevel()(masked, *inputs())[1], rtol=1e-5, atol=1e-5)


def test_dropout_under_checkpointing():
    network = Awkward(residual)
    torch.manual_seed(7)
    expected = everything(OpLevel(), network, network)
    torch.manual_seed(7)
    checkpointed = Awkward(residual, checkpointed=True)
    torch.testing.assert_close(everything(OpLevel(), checkpointed, checkpointed), expected, **CLOSE)


# Half precision


@pytest.mark.parametrize("strategy", TWO, ids=str)
@pytest.mark.parametrize("operation", [linears, norms, sums, products, joins], ids=lambda f: f.__name__)
def test_value_and_gradient_under_autocast_are_those_of_an_ordinary_pass(strategy, operation):
    torch.set_default_dtype(torch.float32)
    network = Awkward(operation).float().eval()
    primals, tangents = (tuple(a.float() for a in pair) for pair in inputs())
    _, exact = strategy(network, primals, tangents)
    found = []
    for run in (lambda: strategy(network, primals, tangents), lambda: (network(*primals), None)):
        with torch.autocast("cpu", torch.bfloat16):
            F, dF = run()
        found.append((F, torch.autograd.grad(F.float().sum(), network.parameters(), allow_unused=True), dF))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-5)  # added up in another order
    assert (found[0][2] - exact).norm() < 0.1 * exact.norm()


def test_a_norm_with_weights_of_another_precision():
    network = Awkward(lambda n, h, s: nnf.layer_norm(h.bfloat16(), (4,), n.w.float(), n.b.float()))
    F, dF = OpLevel()(network, *inputs())
    assert F.dtype == dF.dtype == torch.bfloat16
    torch.testing.assert_close(dF.float(), WholeNetwork()(network, *inputs())[1].float(), rtol=0.05, atol=0.1)


# What is said where it fails


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Custom(nn.Module):
    def forward(self, h):
        return Twice.apply(h)


class Distances(nn.Module):
    """cdist has no forward derivative."""

    def forward(self, h):
        return torch.cdist(h, h)[..., :4]


class Dropped(nn.Module):
    def forward(self, h):
        q = h[:, None]
        return nnf.scaled_dot_product_attention(q, q, q, dropout_p=0.1 if self.training else 0.0)[:, 0]


class Tower(nn.Module):
    """Two blocks, of which the second holds ``part``; ``order`` is what forward calls."""

    def __init__(self, part=None, order=(0, 1)):
        super().__init__()
        self.order = order
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), part or nn.Tanh())])
        self.other = nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, x, t, cond=None):
        h = x + t[:, None, None]
        for k in self.order:
            h = self.blocks[k](h)
        return h


def predicted(network):
    return Prediction(network, lambda t: {"t": t})


FORWARD_MODE = [WholeNetwork(), NoGraph(), OpLevel(), Chain(("blocks",)), Chain(("blocks",), op_level=True)]


@pytest.mark.parametrize("strategy", FORWARD_MODE, ids=str)
@pytest.mark.parametrize(("part", "operation"), [(Custom, "Twice"), (Distances, "_cdist_forward")])
def test_the_module_and_the_operation_are_named(strategy, part, operation):
    network = Tower(part())
    with pytest.raises(ForwardModeError) as error:
        strategy(predicted(network), *inputs())
    message = str(error.value)
    assert f"derivative = {type(strategy).__name__}(" in message
    assert f"module 'blocks.1.1' ({part.__name__}, " in message
    assert operation in message
    F, dF = FiniteDifference()(predicted(network), *inputs())
    assert F.shape == dF.shape == SHAPE


@pytest.mark.parametrize("strategy", [OpLevel(), Chain(("blocks",), op_level=True)], ids=str)
def test_attention_dropout_is_refused(strategy):
    network = Tower(Dropped()).train()
    with pytest.raises(ForwardModeError, match=r"module 'blocks.1.1' \(Dropped.*dropout_p = 0.1.*expected 0"):
        strategy(predicted(network), *inputs())
    check_same(network.eval(), predicted(network), strategies=[strategy])


@pytest.mark.parametrize("strategy", [WholeNetwork(), Chain(("blocks",))], ids=str)
def test_checkpointing_inside_is_refused_where_it_cannot_work(strategy):
    class Checkpointed(Tower):
        def forward(self, x, t, cond=None):
            return checkpoint(super().forward, x, t, use_reentrant=False)

    with pytest.raises(ForwardModeError, match=r"activation checkpointing inside.*Expected.*OpLevel"):
        strategy(predicted(Checkpointed()), *inputs())


def test_hooks_on_saved_tensors_from_outside_are_allowed():
    network = Tower()
    with torch.autograd.graph.save_on_cpu():
        found = everything(WholeNetwork(), network, network)
    torch.testing.assert_close(found, everything(OpLevel(), network, network), **CLOSE)


@pytest.mark.parametrize("strategy", [WholeNetwork(), NoGraph(), OpLevel()], ids=str)
def test_other_errors_of_the_network_pass_through(strategy):
    def fails(n, h, s):
        raise RuntimeError("not about derivatives")

    with pytest.raises(RuntimeError, match=re.escape("not about derivatives")) as error:
        strategy(Awkward(fails), *inputs())
    assert not isinstance(error.value, ForwardModeError)


# Block lists that are not a chain


@pytest.mark.parametrize(
    ("blocks", "order", "message"),
    [
        (("bocks",), (0, 1), r"Tower has no module 'bocks'; it has blocks, other"),
        (("blocks", "blocks.1"), (0, 1), r"'blocks.1' and 'blocks.1' overlap"),
        (("blocks.1", "blocks.1.0"), (0, 1), r"'blocks.1.0' and 'blocks.1' overlap"),
        (("blocks.1.0", "blocks.1"), (0, 1), r"'blocks.1' and 'blocks.1.0' overlap"),
        (("blocks",), (0, 1, 1), r"block 'blocks.1' is called 2 times"),
        (("blocks",), (0,), r"block 'blocks.1' is never called"),
        (("blocks",), (1, 0), r"block 'blocks.1' is called before 'blocks.0'"),
        (("blocks.1", "blocks.0"), (0, 1), r"block 'blocks.0' is called before 'blocks.1'"),
        ((), (0, 1), r"block 'other.0' is never called"),
    ],
)
def test_a_block_list_that_is_not_a_chain(blocks, order, message):
    network = Tower(order=order)
    with pytest.raises(ValueError, match=message):
        Chain(blocks)(predicted(network), *inputs())
    assert not any(module._forward_hooks for module in network.modules())


def test_a_network_without_blocks_is_no_chain():
    with pytest.raises(ValueError, match="Awkward has no ModuleList"):
        Chain()(predicted(Awkward(sums)), *inputs())
    with pytest.raises(ValueError, match=r"expected a facm\.derivative\.Prediction"):
        Chain(("blocks",))(Tower(), *inputs())


@pytest.mark.parametrize("blocks", [("blocks",), ("blocks.0", "blocks.1"), ("blocks.1",)])
def test_a_block_list_that_is_a_chain(blocks):
    network = Tower()
    check_same(network, predicted(network), strategies=[Chain(blocks), Chain(blocks, op_level=True)])
