"""The derivative of networks of other people (tiny random Wan, SD3 and Flux from diffusers) and of the U-Net."""

import pytest
import torch
from torch import nn

from facm.derivative import (
    Chain,
    FiniteDifference,
    ForwardModeError,
    NoGraph,
    OpLevel,
    Prediction,
    WholeNetwork,
)
from facm.flow.time_conditioning import ExpandedInterval

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def refilled(network, seed=0):
    """In double precision, with nothing left at its zero initialisation, so that no path is silent."""
    rng = torch.Generator().manual_seed(seed)
    network.double()
    for p in network.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=rng, dtype=p.dtype) / max(p.shape[-1], 1) ** 0.5
    return network


# diffusers: each as F(x, t, cond), its time scaled as it was trained


class Foreign(nn.Module):
    auxiliary_time = False
    stochastic = False

    def __init__(self, inner):
        super().__init__()
        self.inner = inner


class Wan(Foreign):
    """x (B, 4, 2, 4, 4), a video; t scaled by 1000."""

    shape, blocks = (2, 4, 2, 4, 4), ("inner.blocks",)

    def forward(self, x, t, cond=None):
        return self.inner(hidden_states=x, timestep=1000 * t, encoder_hidden_states=cond, return_dict=False)[0]


class SD3(Foreign):
    """x (B, 4, 4, 4); t scaled by 1000; the pooled text is the mean of the text."""

    shape, blocks = (2, 4, 4, 4), ("inner.transformer_blocks",)

    def forward(self, x, t, cond=None):
        return self.inner(
            hidden_states=x,
            timestep=1000 * t,
            encoder_hidden_states=cond,
            pooled_projections=cond.mean(1),
            return_dict=False,
        )[0]


class Flux(Foreign):
    """x (B, 6, 8), six patches; the network scales t itself."""

    shape, blocks = (2, 6, 8), ("inner.transformer_blocks", "inner.single_transformer_blocks")

    def forward(self, x, t, cond=None):
        patches = torch.stack([torch.zeros(6), torch.arange(6.0) // 3, torch.arange(6.0) % 3], dim=1)
        return self.inner(
            hidden_states=x,
            timestep=t,
            guidance=None,
            encoder_hidden_states=cond,
            pooled_projections=cond.mean(1),
            img_ids=patches,
            txt_ids=torch.zeros(cond.shape[1], 3),
            return_dict=False,
        )[0]


def build(name):
    diffusers = pytest.importorskip("diffusers", reason="checks other people's networks, which diffusers has")
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}
    text = {"joint_attention_dim": 12, "pooled_projection_dim": 12}
    torch.manual_seed(0)
    if name == "Wan":
        options = {
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 12,
            "freq_dim": 8,
            "ffn_dim": 24,
            "rope_max_seq_len": 8,
        }
        network = Wan(diffusers.WanTransformer3DModel(patch_size=(1, 2, 2), **heads, **options))
    elif name == "SD3":
        options = {"sample_size": 4, "in_channels": 4, "out_channels": 4, "caption_projection_dim": 16}
        options |= {"pos_embed_max_size": 4, "qk_norm": "rms_norm", "dual_attention_layers": (0,)}
        network = SD3(diffusers.SD3Transformer2DModel(patch_size=2, **heads, **text, **options))
    else:
        options = {"num_single_layers": 2, "guidance_embeds": False, "axes_dims_rope": (2, 2, 4)}
        network = Flux(diffusers.FluxTransformer2DModel(patch_size=1, in_channels=8, **heads, **text, **options))
    return refilled(network)


@pytest.fixture(scope="module", params=["Wan", "SD3", "Flux"])
def foreign(request):
    return build(request.param)


@pytest.fixture
def double(monkeypatch):
    """What these networks round to float32 on their way, norms and the time, is not rounded."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.fixture
def checkpointed(foreign, expected):
    foreign.inner.enable_gradient_checkpointing()
    foreign.train()
    yield foreign
    foreign.inner.disable_gradient_checkpointing()
    foreign.eval()


def prediction(network):
    cond = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Prediction(network, ExpandedInterval().shortcut, cond)


def inputs(shape):
    rng = torch.Generator().manual_seed(3)
    x, v = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(0.2, 0.9, shape[0], dtype=torch.float64)
    return (x, t), (v, torch.ones_like(t))


def everything(derivative, network, function, shape):
    """Value, tangent and parameter gradients."""
    F, dF = derivative(function, *inputs(shape))
    assert F.requires_grad
    assert not dF.requires_grad
    weights = torch.randn(F.shape, generator=torch.Generator().manual_seed(4), dtype=F.dtype)
    loss = (F * weights).sum() + F.square().sum()
    gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    return F.detach(), dF, gradients


def check_difference(network, function, shape, h, expected):
    """Central differences, to their order."""
    F, dF, gradients = everything(FiniteDifference(h), network, function, shape)
    torch.testing.assert_close((F, gradients), (expected[0], expected[2]), **CLOSE)
    wrong = (dF - expected[1]).norm() / expected[1].norm()
    half = everything(FiniteDifference(h / 2), network, function, shape)[1]
    assert wrong < 1e-2
    assert wrong / ((half - expected[1]).norm() / expected[1].norm()) == pytest.approx(4, rel=0.2)


@pytest.fixture
def expected(foreign, double):
    return everything(WholeNetwork(), foreign, prediction(foreign), foreign.shape)


def test_no_path_of_the_foreign_network_is_silent(foreign, expected):
    F, dF, gradients = expected
    assert F.shape == foreign.shape
    assert F.std() > 0.05
    assert dF.norm() > 0.1 * F.norm()
    silent = [n for (n, _), g in zip(foreign.named_parameters(), gradients, strict=True) if g is None or not g.any()]
    unused = "transformer_blocks.1.attn.add_q_proj", "transformer_blocks.1.attn.norm_added_q"  # SD3's last text stream
    assert [name for name in silent if not name.removeprefix("inner.").startswith(unused)] == []


@pytest.mark.parametrize("strategy", ["OpLevel", "NoGraph", "Chain", "Chain op by op"])
def test_strategies_agree_on_foreign_networks(foreign, expected, strategy):
    derivative = {
        "OpLevel": OpLevel(),
        "NoGraph": NoGraph(),
        "Chain": Chain(foreign.blocks),
        "Chain op by op": Chain(foreign.blocks, op_level=True),
    }[strategy]
    found = everything(derivative, foreign, prediction(foreign), foreign.shape)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_finite_differences_agree_on_foreign_networks(foreign, expected):
    check_difference(foreign, prediction(foreign), foreign.shape, 1e-4, expected)


@pytest.mark.parametrize("strategy", ["OpLevel", "NoGraph", "Chain op by op"])
def test_foreign_checkpointing_changes_nothing(checkpointed, expected, strategy):
    derivative = {
        "OpLevel": OpLevel(),
        "NoGraph": NoGraph(),
        "Chain op by op": Chain(checkpointed.blocks, op_level=True),
    }
    found = everything(derivative[strategy], checkpointed, prediction(checkpointed), checkpointed.shape)
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("name", ["Wan", "SD3", "Flux"])
def test_strategies_agree_on_foreign_networks_as_they_are(name):
    """With what they round to float32: the values are the same roundings, the tangents are 1e-6 apart."""
    network = build(name)
    expected = everything(WholeNetwork(), network, prediction(network), network.shape)
    for derivative in (OpLevel(), NoGraph(), Chain(network.blocks), Chain(network.blocks, op_level=True)):
        F, dF, gradients = everything(derivative, network, prediction(network), network.shape)
        torch.testing.assert_close((F, gradients), (expected[0], expected[2]), **CLOSE)
        assert (dF - expected[1]).norm() < 1e-5 * expected[1].norm()


def test_foreign_checkpointing_is_refused_by_the_whole_network(checkpointed):
    for derivative in (WholeNetwork(), Chain(checkpointed.blocks)):
        with pytest.raises(ForwardModeError, match="activation checkpointing inside"):
            derivative(prediction(checkpointed), *inputs(checkpointed.shape))
