"""EDM's DDPM++: its published layout and numbers, its options, and its derivative."""

import hashlib
import math

import pytest
import torch
from torch import nn

from facm.core.modules import blocks_of
from facm.derivative import Chain, NoGraph, OpLevel, Prediction, WholeNetwork, same_dropout
from facm.flow.time_conditioning import AuxiliaryTime, ExpandedInterval
from facm.networks.ddpm_pp import DDPMpp, positions

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def small(**options):
    torch.manual_seed(0)
    config = {"size": 8, "channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "num_classes": 5}
    return DDPMpp(**config | options).build()


def refilled(network, seed=0):
    """In double precision, with nothing left near zero, so that no path is silent."""
    rng = torch.Generator().manual_seed(seed)
    network.double()
    for p in network.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=rng, dtype=p.dtype) / max(p.shape[-1], 1) ** 0.5
    return network


def inputs(n=3, channels=3):
    rng = torch.Generator().manual_seed(3)
    x, v = (torch.randn(n, channels, 8, 8, generator=rng, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0.1, 0.45, 0.9], dtype=torch.float64)[:n]
    return (x, t), (v, torch.ones_like(t))


LABELS = torch.tensor([0, 3, 5])


# As published


def layout(network):
    """A digest of the names and shapes of a state dict, in order of names."""
    said = "\n".join(f"{name} {tuple(value.shape)}" for name, value in sorted(network.state_dict().items()))
    return hashlib.sha256(said.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("options", "parameters", "expected"),
    [({}, 55_733_891, "7fac419af4b1c9c5"), ({"num_classes": 10}, 55_735_299, "2c62785be254eec5")],
)
def test_layout_and_size_are_those_of_the_published_networks(options, parameters, expected):
    """Digests of what NVlabs/edm (commit 008a4e53) builds for CIFAR-10, with its 9 augmentation labels."""
    with torch.device("meta"):
        network = DDPMpp(augment_dim=9, **options).build()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert layout(network) == expected


def test_the_default_is_the_published_size_without_its_augmentation():
    with torch.device("meta"):
        assert sum(p.numel() for p in DDPMpp().build().parameters()) == 55_733_891 - 9 * 128


def waves(network):
    """Weights by a rule: sines of their place, scaled by the fan in; scales of norms around 1."""
    network.double().eval()
    for i, (name, p) in enumerate(sorted(network.named_parameters())):
        wave = torch.sin(0.7 * torch.arange(p.numel(), dtype=torch.float64) + i).reshape(p.shape)
        scale = p.ndim == 1 and "norm" in name and name.endswith("weight")
        p.data = 1 + 0.3 * wave if scale else wave * math.sqrt(2 / p[0].numel())
    return network


@pytest.mark.parametrize(
    ("options", "squares", "first", "last"),
    [
        (
            {},
            [0.7357255035056772, 0.7482881418210479, 0.7272238472168826],
            [-0.2736550976009301, -0.5336785382565187, -0.3838727135617705],
            [0.9372490485601459, 0.8659736175794801, 0.8703948355799758],
        ),
        (
            {"num_classes": 4, "augment_dim": 9},
            [0.6596459081046926, 0.6588440251738457, 0.6483318164183148],
            [-0.13332061520299401, -0.2892985977580644, -0.14505666130878844],
            [0.9326342827287528, 0.8928243307851408, 0.8984117457098],
        ),
    ],
)
def test_its_numbers_are_the_public_codes(options, squares, first, last):
    """Outputs of NVlabs/edm's SongUNet (commit 008a4e53) in float64 (its attention is in float32, hence 1e-7) on these
    weights and inputs; the third label is none, which it is given as zeros."""
    config = DDPMpp(
        size=16, in_channels=2, channels=16, multipliers=(1, 2, 2), blocks=2, attention=(8,), dropout=0.13, **options
    )
    x = torch.cos(0.37 * torch.arange(3 * 2 * 16 * 16, dtype=torch.float64)).reshape(3, 2, 16, 16)
    t = torch.tensor([-1.2, 0.3, 1.9], dtype=torch.float64)
    out = waves(config.build())(x, t, torch.tensor([0, 3, 4]) if options else None).detach()
    found = torch.stack([out.square().mean((1, 2, 3)), out[:, 0, 3, 5], out[:, 1, 12, 9]])
    torch.testing.assert_close(found, torch.tensor([squares, first, last], dtype=torch.float64), rtol=1e-7, atol=1e-7)


# As initialised


def test_as_initialised_every_branch_and_the_output_are_nearly_zero():
    network, ((x, t), _) = small(auxiliary_time=True).double().eval(), inputs()
    out = network(x, t, LABELS, t)
    assert 0 < out.abs().max() < 1e-3
    for name, p in network.named_parameters():
        if name.endswith(("conv1.weight", "proj.weight", "aux_conv.weight")):
            assert 0 < p.abs().max() < 1e-5
        elif name.endswith("bias") or name.startswith("second_time.outer"):
            assert not p.any()
        elif name.endswith(("conv0.weight", "affine.weight", "qkv.weight", "skip.weight")):
            fan_in, fan_out = p[0].numel(), p[:, 0].numel()
            bound = math.sqrt(6 / (fan_in + fan_out)) * (math.sqrt(0.2) if "qkv" in name else 1)
            assert 0.8 * bound < p.abs().max() <= bound


def test_the_second_time_is_without_effect_as_initialised():
    network, ((x, t), _) = refilled(small(auxiliary_time=True, dropout=0.0)), inputs()
    for p in network.second_time.outer.parameters():
        p.data.zero_()
    out = network(x, t, LABELS, t)
    assert torch.equal(out, network(x, t, LABELS, 1 - t))
    assert not torch.allclose(out, network(x, 1 - t, LABELS, t))
    assert not torch.allclose(out, network(x, t, LABELS.flip(0), t))
    refilled(network.second_time)
    assert not torch.allclose(network(x, t, LABELS, t), network(x, t, LABELS, 1 - t))


def test_the_weights_head_is_zero_as_initialised_and_absent_by_default():
    network, ((_, t), _) = small(weight_head=True).double(), inputs()
    assert network.weight_head
    assert torch.equal(network.log_weight(t), torch.zeros(3, dtype=torch.float64))
    w = refilled(network).log_weight(t)
    assert w.shape == (3,)
    assert len(set(w.tolist())) == 3
    assert not small().weight_head
    with pytest.raises(ValueError, match="weight_head = False, expected weight_head = True"):
        small().log_weight(t)


def test_what_has_zero_init_prefixes_is_named():
    plain, all_of_it = small(), small(auxiliary_time=True, weight_head=True)
    added = all_of_it.state_dict().keys() - plain.state_dict().keys()
    assert {name.split(".")[0] + "." for name in added} == set(all_of_it.zero_init_prefixes)


# What it computes


def test_times_are_sines_and_cosines_as_they_are():
    t = torch.tensor([0.3, -1.7], dtype=torch.float64)
    frequencies = torch.tensor([1.0, 1e-4 ** (1 / 3), 1e-4 ** (2 / 3), 1e-4], dtype=torch.float64)
    angle = t[:, None] * frequencies
    torch.testing.assert_close(positions(t, 8), torch.cat([angle.sin(), angle.cos()], dim=1), **CLOSE)


def test_time_is_never_in_half_precision():
    network, ((x, _), _) = refilled(small(num_classes=0, dropout=0.0)), inputs(2)
    rounded = torch.tensor([0.3, 1.7]).bfloat16()
    assert positions(rounded, 8).dtype == torch.float32
    torch.testing.assert_close(positions(rounded, 8).double(), positions(rounded.double(), 8), rtol=1e-6, atol=1e-6)
    assert network.bfloat16()(x.bfloat16(), rounded.float()).dtype == torch.bfloat16


def test_pixel_norm_divides_each_shift_by_its_root_mean_square():
    block = refilled(small(pixel_norm=True, dropout=0.0)).enc["8x8_block0"]
    plain = refilled(small(dropout=0.0)).enc["8x8_block0"]
    h, c = torch.randn(2, 8, 8, 8, dtype=torch.float64), torch.randn(2, 32, dtype=torch.float64)
    assert not torch.allclose(block(h, c), plain(h, c))
    shift = block.affine(c)
    plain.affine.weight.data.zero_()
    plain.affine.bias.data = (shift / shift.square().mean(1, keepdim=True).sqrt())[0]
    torch.testing.assert_close(block(h, c)[:1], plain(h, c)[:1], rtol=1e-7, atol=1e-7)


def test_augmentation_labels_are_zeros_and_their_layer_has_a_gradient():
    network, ((x, t), _) = refilled(small(augment_dim=9, dropout=0.0)), inputs()
    out = network(x, t, LABELS)
    out.sum().backward()
    assert torch.equal(network.map_augment.weight.grad, torch.zeros(8, 9, dtype=torch.float64))
    network.map_augment.weight.data += 1
    assert torch.equal(network(x, t, LABELS), out)


def test_the_null_label_adds_only_the_layers_bias_and_others_their_scaled_column():
    network, ((x, t), _) = refilled(small(dropout=0.0)), inputs()
    bare = refilled(small(dropout=0.0, num_classes=0))
    bare.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("map_label")})
    network.map_label.bias.data.zero_()
    torch.testing.assert_close(network(x, t, torch.tensor([5, 5, 5])), bare(x, t), **CLOSE)
    asked = []
    network.map_layer0.register_forward_pre_hook(lambda module, given: asked.append(given[0].detach()))
    network(x, t, torch.tensor([0, 2, 5]))
    label = asked[0] - positions(t, 8)
    column = network.map_label.weight.detach() * math.sqrt(5)
    torch.testing.assert_close(label, torch.stack([column[:, 0], column[:, 2], 0 * column[:, 0]]), **CLOSE)


def test_a_label_out_of_range_is_an_error():
    (x, t), _ = inputs()
    with pytest.raises(RuntimeError, match="Class values must be smaller than num_classes"):
        small().double()(x, t, torch.tensor([0, 3, 6]))


def test_it_keeps_the_layout_of_its_input():
    """A transposed attention would hand its layout on to all that follows."""
    network, ((x, t), _) = small(attention=(4, 8)).double(), inputs()
    strides = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, given, out: strides.append(out.is_contiguous()))
    network(x, t, LABELS)
    assert all(strides)


# Its blocks


NAMES = ["enc.8x8_conv", "enc.8x8_block0", "enc.4x4_down", "enc.4x4_block0", "dec.4x4_in0", "dec.4x4_in1"]
NAMES += ["dec.4x4_block0", "dec.4x4_block1", "dec.8x8_up", "dec.8x8_block0", "dec.8x8_block1"]
NAMES += ["dec.8x8_aux_norm", "dec.8x8_aux_conv"]


def test_its_blocks_are_the_entries_of_its_dictionaries_in_order_of_calls():
    network, ((x, t), _) = small().double(), inputs()
    found, called = blocks_of(network), []
    assert list(found) == NAMES
    assert list(blocks_of(network, ("dec", "enc.8x8_conv"))) == [*NAMES[4:], "enc.8x8_conv"]
    for name, module in found.items():
        module.register_forward_hook(lambda m, given, out, name=name: called.append(name))
    network(x, t, LABELS)
    assert called == NAMES


def test_dictionaries_hold_blocks_only_where_there_is_no_list():
    entry = lambda: nn.Linear(2, 2)  # noqa: E731
    network = nn.Module()
    network.heads = nn.ModuleDict({"a": entry(), "in": nn.ModuleDict({"b": entry()})})
    assert list(blocks_of(network)) == ["heads.a", "heads.in"]
    network.layers = nn.ModuleList([entry(), entry()])
    assert list(blocks_of(network)) == ["layers.0", "layers.1"]


def test_attention_is_where_it_was_trained():
    with torch.device("meta"):
        network = DDPMpp().build()
    attending = [name for name, module in network.named_modules() if getattr(module, "attends", False)]
    expected = [f"enc.16x16_block{i}" for i in range(4)] + ["dec.8x8_in0", "dec.16x16_block4"]
    assert attending == expected


def test_the_way_up_takes_what_the_way_down_left_last_first():
    network, ((x, t), _), kept = small(blocks=2).double(), inputs(), []
    for unit in network.enc.values():
        unit.register_forward_hook(lambda module, given, out: kept.append(out))

    def check(module, given):
        if module.joins:
            skip = kept.pop()
            assert torch.equal(given[0][:, -skip.shape[1] :], skip)

    for unit in network.dec.values():
        if hasattr(unit, "joins"):
            unit.register_forward_pre_hook(check)
    network(x, t, LABELS)
    assert kept == []


# Its derivative


def everything(derivative, network, function):
    """Value, tangent and the gradient of a loss of the value, through one strategy."""
    F, dF = derivative(function, *inputs())
    weights = torch.randn(F.shape, generator=torch.Generator().manual_seed(4), dtype=F.dtype)
    return F.detach(), dF, torch.autograd.grad((F * weights).sum(), list(network.parameters()), allow_unused=True)


ALL = (OpLevel(), NoGraph(), Chain(), Chain(op_level=True), Chain(("enc", "dec")), Chain(("dec.4x4_in0",)))


@pytest.mark.parametrize("options", [{}, {"auxiliary_time": True, "pixel_norm": True, "augment_dim": 9}], ids=str)
def test_strategies_agree_under_dropout(options):
    network = refilled(small(dropout=0.3, **options)).train()
    task = AuxiliaryTime() if options else ExpandedInterval()
    torch.manual_seed(7)
    function = Prediction(same_dropout(network), task.shortcut, LABELS)
    expected = everything(WholeNetwork(), network, function)
    assert expected[1].norm() > 1e-2
    for derivative in ALL:
        torch.testing.assert_close(everything(derivative, network, function), expected, **CLOSE)
    (x, t), (v, one) = inputs()
    h = 1e-5
    with torch.no_grad():
        difference = (function(x + h * v, t + h * one) - function(x - h * v, t - h * one)) / (2 * h)
    torch.testing.assert_close(expected[1], difference, rtol=1e-5, atol=1e-6)
    undropped = Prediction(network.eval(), task.shortcut, LABELS)
    assert not torch.allclose(everything(OpLevel(), network, undropped)[1], expected[1])


def test_it_draws_only_with_dropout():
    with_dropout, without = small(dropout=0.5).train(), small(dropout=0.0).train()
    assert getattr(with_dropout, "stochastic", True)
    assert same_dropout(without) is without
    (x, t), _ = inputs()
    with_dropout = refilled(with_dropout)
    assert not torch.equal(with_dropout(x, t, LABELS), with_dropout(x, t, LABELS))
    assert torch.equal(with_dropout.eval()(x, t, LABELS), with_dropout(x, t, LABELS))


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 9}, r"size = 9, expected a multiple of 2"),
        ({"multipliers": ()}, r"multipliers = \(\), expected a tuple of a length within \[1"),
        ({"channels": 6}, "channels = 6, expected a multiple of 4"),
        ({"channels": 0}, "channels = 0, expected an integer within"),
        (
            {"channels": 132},
            "channels = 132, expected with .* a multiple of 32 wherever .* not 132",
        ),
        ({"blocks": 0}, "blocks = 0, expected an integer within"),
        ({"dropout": 1.0}, r"dropout = 1.0, expected a number within \[0, 1\)"),
        ({"attention": (5,)}, r"attention = \(5,\), expected sizes among the levels' \[8, 4\]"),
        ({"num_classes": -1}, r"num_classes = -1, expected an integer within \[0"),
        ({"augment_dim": -1}, r"augment_dim = -1, expected an integer within \[0"),
    ],
)
def test_it_says_what_it_expects(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(2, 3, 4, 4)}, r"x has shape \(2, 3, 4, 4\), expected \(B, 3, 8, 8\)"),
        ({"cond": None}, "cond is missing for num_classes = 5"),
        ({"r": torch.zeros(2)}, "r is given for auxiliary_time = False"),
    ],
)
def test_it_checks_its_arguments(arguments, message):
    given = {"x": torch.zeros(2, 3, 8, 8), "t": torch.zeros(2), "cond": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        small()(**given | arguments)
