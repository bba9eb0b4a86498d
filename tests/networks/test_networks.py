"""Networks: pure functions of (x, time, condition), DiT's initialisation, and foreign conventions seen as our own."""

import math

import pytest
import torch
from torch import nn

from facm.derivative import NoGraph
from facm.flow.time_conditioning import ExpandedInterval
from facm.networks.adapters.foreign import Foreign
from facm.networks.lightning_dit import (
    LightningDiT,
    RMSNorm,
    from_reference_flags,
    grid_positions,
    lightning_dit,
    modulate,
    reference_state_dict,
    sinusoid,
)
from facm.networks.mlp import MLP

TINY = {"input_size": 4, "patch_size": 2, "in_channels": 3, "hidden_size": 32, "depth": 2, "num_heads": 2}
TINY |= {"num_classes": 5}
FLAGS = [{}, {"auxiliary_time": True}, {"learn_sigma": True, "shift": False}]
FLAGS += [dict.fromkeys(("qk_norm", "swiglu", "rope", "rmsnorm"), False)]


def tiny(refill=True, **flags):
    torch.manual_seed(0)
    network = LightningDiT(**{**TINY, **flags}).build()
    if refill:
        for p in network.parameters():
            if p.requires_grad:
                p.data += 0.2 * torch.randn_like(p)
    return network


def inputs(n=4, auxiliary_time=False, **_):
    rng = torch.Generator().manual_seed(1)
    x, t = torch.randn(n, 3, 4, 4, generator=rng), torch.linspace(0, 2, n)
    second = {"r": torch.linspace(1, 0, n)} if auxiliary_time else {}
    return x, {"t": t, "cond": torch.arange(n) % 6, **second}


# Purity


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_the_transformer_is_a_pure_function_in_train_and_eval_mode(flags):
    network, (x, arguments) = tiny(**flags), inputs(**flags)
    out, state = network.train()(x, **arguments), torch.get_rng_state()
    assert out.shape == x.shape
    assert torch.equal(out, network(x, **arguments))
    assert torch.equal(out, network.eval()(x, **arguments))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_samples_of_a_batch_do_not_see_each_other(flags):
    network, (x, arguments) = tiny(**flags), inputs(**flags)
    out = network(x, **arguments)
    for i in range(4):
        alone = network(x[i : i + 1], **{k: v[i : i + 1] for k, v in arguments.items()})
        torch.testing.assert_close(alone, out[i : i + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_every_argument_and_every_parameter_matters(flags):
    network, (x, arguments) = tiny(**flags), inputs(**flags)
    out = network(x, **arguments)
    for name in ["x", *arguments]:
        changed = {"x": x, **arguments}
        changed[name] = changed[name].flip(0)
        assert not torch.allclose(network(**changed), out, atol=1e-3), name
    out.square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
    assert silent == []
    assert not network.pos_embed.requires_grad


def test_tokens_know_their_places():
    """Permuting the patches of the input does not merely permute those of the output, with rope or without."""
    for rope in (True, False):
        network, (x, arguments) = tiny(rope=rope), inputs()
        swapped = x.roll(2, dims=3)  # exchanges the left and the right patches
        assert not torch.allclose(network(swapped, **arguments), network(x, **arguments).roll(2, dims=3), atol=1e-3)


def test_an_image_is_not_transposed():
    """With one token per pixel and all mixing between tokens off, each output pixel depends on its own input pixel."""
    network = tiny(patch_size=1)
    for block in network.blocks:
        nn.init.zeros_(block.attn.proj.weight)
    x, arguments = inputs()
    moved = x.clone()
    moved[:, :, 1, 3] += 1
    changed = (network(moved, **arguments) - network(x, **arguments)).abs().sum((0, 1))
    assert changed.nonzero().tolist() == [[1, 3]]


def test_patches_are_put_back_where_they_came_from():
    network = tiny(patch_size=2)
    for block in network.blocks:
        nn.init.zeros_(block.attn.proj.weight)
    x, arguments = inputs()
    moved = x.clone()
    moved[:, :, 1, 3] += 1  # in the patch of rows 0-1, columns 2-3
    changed = (network(moved, **arguments) - network(x, **arguments)).abs().sum((0, 1))
    assert changed.nonzero().tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]


def test_channels_and_pixels_of_a_patch_are_ordered_as_rows_columns_channels():
    network = tiny(patch_size=2, in_channels=3)
    tokens = torch.arange(4 * 12.0).reshape(1, 4, 12)  # 4 tokens of 2 x 2 pixels x 3 channels
    image = network._to_image(tokens)
    for row in range(4):
        for column in range(4):
            for channel in range(3):
                token, pixel = (row // 2) * 2 + column // 2, (row % 2) * 2 + column % 2
                assert image[0, channel, row, column] == tokens[0, token, pixel * 3 + channel]


def test_learn_sigma_drops_the_second_half_of_the_channels():
    network, (x, arguments) = tiny(learn_sigma=True), inputs()
    assert network.final_layer.linear.out_features == 2 * 2 * 6
    out = network(x, **arguments)
    assert out.shape == x.shape
    last = network.final_layer.linear
    kept = (torch.arange(24) % 6) < 3
    last.weight.data[~kept] += 1
    last.bias.data[~kept] -= 5
    assert torch.equal(network(x, **arguments), out)
    last.bias.data[kept] -= 5
    torch.testing.assert_close(network(x, **arguments), out - 5)


# Conditions and times


def test_the_null_label_has_a_row_of_its_own():
    network = tiny()
    table = network.y_embedder.embedding_table.weight
    assert table.shape == (6, 32)
    x, arguments = inputs()
    null = {**arguments, "cond": torch.full((4,), 5)}
    before, labelled = network(x, **null), {**arguments, "cond": torch.tensor([0, 1, 2, 4])}
    kept = network(x, **labelled)
    table.data[5] += 1
    assert torch.equal(network(x, **labelled), kept)
    assert not torch.allclose(network(x, **null), before)


def test_the_transformers_own_errors_name_what_is_wrong():
    network, (x, arguments) = tiny(), inputs()
    with pytest.raises(ValueError, match=r"x has shape \(4, 3, 4, 2\), expected \(B, 3, 4, 4\)"):
        network(x[..., :2], **arguments)
    with pytest.raises(ValueError, match="cond is missing for num_classes = 5"):
        network(x, arguments["t"])
    with pytest.raises(ValueError, match="cond is given for num_classes = 0"):
        tiny(num_classes=0)(x, **arguments)
    with pytest.raises(ValueError, match="r is given for auxiliary_time = False"):
        network(x, **arguments, r=arguments["t"])
    with pytest.raises(ValueError, match="r is missing for auxiliary_time = True"):
        tiny(auxiliary_time=True)(x, **arguments)
    with pytest.raises(ValueError, match=r"x has shape \(4, 3\), expected \(B, 2\)"):
        MLP(2, 8, 1).build()(torch.zeros(4, 3), torch.zeros(4))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"input_size": 5}, "input_size = 5, expected a multiple of patch_size = 2"),
        ({"num_heads": 3}, "hidden_size = 32, expected a multiple of num_heads = 3"),
        ({"hidden_size": 30, "num_heads": 2}, "hidden_size = 30, expected a multiple of 4"),
        (
            {"hidden_size": 12, "num_heads": 2},
            "num_heads = 2, expected hidden_size = 12 over a multiple of 4",
        ),
    ],
)
def test_an_impossible_configuration_is_an_error_that_names_it(flags, named):
    with pytest.raises(ValueError, match=named):
        LightningDiT(**{**TINY, **flags})
    LightningDiT(**{**TINY, "hidden_size": 12, "num_heads": 2, "rope": False})


def test_names_of_sizes():
    assert lightning_dit("B/2", num_classes=7) == LightningDiT(
        patch_size=2, hidden_size=768, depth=12, num_heads=12, num_classes=7
    )
    assert (lightning_dit("S/1").hidden_size, lightning_dit("S/1").depth, lightning_dit("S/1").num_heads) == (
        384,
        12,
        6,
    )
    assert lightning_dit("XL/1") == LightningDiT()
    for name in ("M/2", "XL", "XL/x"):
        with pytest.raises(ValueError, match=f"size = '{name}', expected one of S, B, L, XL"):
            lightning_dit(name)


def test_flags_of_the_reference():
    flags = {"use_qknorm": False, "use_swiglu": False, "use_rope": False, "use_rmsnorm": False, "wo_shift": True}
    ignored = {"use_checkpoint": True, "class_dropout_prob": 0.1, "disable_label_dropout": True}
    plain = {"qk_norm": False, "swiglu": False, "rope": False, "rmsnorm": False}
    expected = LightningDiT(32, 2, **plain, shift=False, auxiliary_time=True, depth=3)
    assert from_reference_flags({**flags, **ignored, "auxiliary_time_cond": True, "depth": 3}) == expected
    assert from_reference_flags({"wo_shift": False}) == LightningDiT(32, 2, **plain)
    assert from_reference_flags({"use_rope": True}) == LightningDiT(32, 2, **{**plain, "rope": True})
    with pytest.raises(ValueError, match=r"unknown flags \['use_magic'\]"):
        from_reference_flags({"use_magic": True})


def test_wrappers_prefixes_are_taken_off_the_names_of_a_state_dict():
    names = ["module.a.weight", "_orig_mod.module.b", "ema_model.c.module.d", "e.module.f", "blocks.0._orig_mod.g"]
    out = reference_state_dict({name: torch.full((1,), float(i)) for i, name in enumerate(names)})
    assert {k: v.item() for k, v in out.items()} == {"a.weight": 0, "b": 1, "c.d": 2, "e.f": 3, "blocks.0.g": 4}


# Initialisation


def test_at_initialisation_blocks_are_the_identity_and_the_output_is_zero():
    network, (x, arguments) = tiny(refill=False), inputs()
    assert torch.equal(network(x, **arguments), torch.zeros_like(x))
    h = torch.randn(4, 4, 32)
    for block in network.blocks:
        assert torch.equal(block(h, torch.randn(4, 32), network.feat_rope), h)
    last = network.final_layer  # neither shift nor scale at the start
    last.linear.weight.data.normal_()
    first, second = last(h, torch.randn(4, 32)), last(h, torch.randn(4, 32))
    assert torch.equal(first, second)


def test_the_second_time_has_no_effect_at_initialisation():
    plain, auxiliary = tiny(), tiny(refill=False, auxiliary_time=True)
    missing = auxiliary.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert all(name.startswith("r_embedder") for name in missing)
    x, arguments = inputs(auxiliary_time=True)
    r = arguments.pop("r")
    expected = plain(x, **arguments)
    assert torch.equal(auxiliary(x, **arguments, r=r), expected)
    assert torch.equal(auxiliary(x, **arguments, r=r.flip(0)), expected)
    auxiliary(x, **arguments, r=r).sum().backward()
    assert auxiliary.r_embedder.mlp[2].weight.grad.abs().sum() > 0  # but it can be learnt


def test_scales_of_the_initial_weights():
    torch.manual_seed(0)
    network = LightningDiT(8, 2, 4, 128, 1, 4, num_classes=300, auxiliary_time=True).build()
    std = {name: p.std().item() for name, p in network.named_parameters() if p.numel() > 1}
    for name in ("t_embedder.mlp.0", "t_embedder.mlp.2", "r_embedder.mlp.0", "y_embedder.embedding_table"):
        assert std[name + ".weight"] == pytest.approx(0.02, rel=0.05)
    xavier = {"blocks.0.attn.qkv": 128 + 384, "blocks.0.mlp.w3": 341 + 128, "x_embedder.proj": 16 + 128}
    for name, fans in xavier.items():
        weight = network.get_parameter(name + ".weight")
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fans), rel=0.05)
        assert weight.abs().max() <= math.sqrt(6 / fans)
    zero = {name for name, p in network.named_parameters() if name.endswith("weight") and not p.any()}
    assert zero == {
        "blocks.0.adaLN_modulation.1.weight",
        "final_layer.adaLN_modulation.1.weight",
        "final_layer.linear.weight",
        "r_embedder.mlp.2.weight",
    }
    biases = [p for name, p in network.named_parameters() if name.endswith("bias")]
    assert not any(p.any() for p in biases)
    gains = [p for name, p in network.named_parameters() if "norm" in name]
    assert all((p == 1).all() for p in gains)


# Parts


def test_sinusoid_is_cosines_then_sines_of_the_unscaled_time():
    t = torch.tensor([0.0, 0.5, 2.0])
    out = sinusoid(t)
    assert out.shape == (3, 256)
    for i, s in enumerate(t.tolist()):
        for k in (0, 1, 64, 127):
            angle = s * 10_000 ** (-k / 128)
            assert out[i, k].item() == pytest.approx(math.cos(angle), abs=1e-6)
            assert out[i, 128 + k].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_times_are_embedded_in_single_precision_at_least():
    t = torch.tensor([0.7], dtype=torch.bfloat16)
    assert sinusoid(t).dtype == torch.float32
    torch.testing.assert_close(sinusoid(t), sinusoid(t.float()))
    assert sinusoid(t.double()).dtype == torch.float64


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_rms_norm(scale):
    norm = RMSNorm(4)
    norm.weight.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    x = scale * torch.tensor([[1.0, -2.0, 2.0, 4.0]])
    rms = math.sqrt(scale**2 * 25 / 4 + 1e-6)
    torch.testing.assert_close(norm(x), x / rms * norm.weight)


def test_who_hooks_into_a_norm_or_the_rotation_is_called_and_nothing_else_changes():
    network, (x, arguments), called = tiny(), inputs(), set()
    plain = network(x, **arguments)
    parts = {name: m for name, m in network.named_modules() if type(m).__name__ in ("RMSNorm", "RotaryPositions")}
    for name, part in parts.items():
        part.register_forward_hook(lambda *_, name=name: called.add(name))
    torch.testing.assert_close(network(x, **arguments), plain)
    assert called == set(parts) >= {"blocks.0.norm1", "blocks.0.attn.q_norm"}


def test_rms_norm_is_computed_in_single_precision_and_cast_back_before_its_weight():
    norm = RMSNorm(64)
    norm.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    normed = (x.float() / (x.float().square().mean(-1, keepdim=True) + 1e-6).sqrt()).bfloat16()
    torch.testing.assert_close(norm.bfloat16()(x), normed * norm.weight.bfloat16())
    assert norm(x).dtype == torch.bfloat16


def test_half_precision_network_answers_in_half_precision_and_nearly_the_same():
    network, (x, arguments) = tiny(), inputs()
    expected = network(x, **arguments)
    halved = network.bfloat16()(x.bfloat16(), **{**arguments, "t": arguments["t"]})
    assert halved.dtype == torch.bfloat16
    assert (halved.float() - expected).norm() < 0.05 * expected.norm()


def test_layer_norm_of_queries_and_keys_is_affine_and_that_of_tokens_is_not():
    """torch's default eps 1e-5 where there are weights, 1e-6 where the modulation takes their place."""
    network = tiny(rmsnorm=False)
    norms = {name: m for name, m in network.named_modules() if isinstance(m, nn.LayerNorm)}
    affine = {name for name, m in norms.items() if m.elementwise_affine}
    assert affine == {f"blocks.{i}.attn.{which}_norm" for i in (0, 1) for which in "qk"}
    assert all(m.eps == (1e-5 if name in affine else 1e-6) for name, m in norms.items())
    assert len(norms) == 2 * 4 + 1


def test_modulation_scales_around_one_then_shifts():
    x, shift, scale = torch.full((1, 2, 2), 3.0), torch.tensor([[10.0, 20.0]]), torch.tensor([[1.0, -1.0]])
    assert modulate(x, shift, scale)[0].tolist() == [[16, 20], [16, 20]]
    assert modulate(x, None, scale)[0].tolist() == [[6, 0], [6, 0]]


def test_rope_keeps_lengths_and_depends_on_relative_positions_only():
    rope = LightningDiT(**{**TINY, "input_size": 8}).build().feat_rope  # 4 x 4 tokens, heads of 16
    q, k = torch.randn(16), torch.randn(16)
    turned_q, turned_k = rope(q.expand(1, 1, 16, 16))[0, 0], rope(k.expand(1, 1, 16, 16))[0, 0]
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(16))
    torch.testing.assert_close(turned_q[0], q)  # position (0, 0) is not turned
    at = lambda row, column: 4 * row + column  # noqa: E731
    score = lambda a, b: turned_q[at(*a)] @ turned_k[at(*b)]  # noqa: E731
    torch.testing.assert_close(score((0, 1), (2, 3)), score((1, 0), (3, 2)))
    torch.testing.assert_close(score((3, 1), (1, 1)), score((2, 3), (0, 3)))
    assert not torch.allclose(score((0, 1), (2, 3)), score((0, 1), (2, 2)))
    first, second = q[0].item(), q[1].item()  # one row down turns the first pair by one radian
    expected = [first * math.cos(1) - second * math.sin(1), first * math.sin(1) + second * math.cos(1)]
    torch.testing.assert_close(turned_q[at(1, 0), :2], torch.tensor(expected))
    torch.testing.assert_close(turned_q[at(1, 0), 8:], q[8:])  # the second half of the head is the column's
    torch.testing.assert_close(turned_q[at(0, 1), :8], q[:8])
    slower = 10_000 ** (-2 / 8)
    expected = q[2].item() * math.cos(slower) - q[3].item() * math.sin(slower)
    assert turned_q[at(1, 0), 2].item() == pytest.approx(expected, abs=1e-5)


def test_grid_positions_are_columns_then_rows():
    table = grid_positions(8, 3).reshape(3, 3, 8)
    for row in range(3):
        for column in range(3):
            expected = []
            for place in (column, row):
                angles = [place, place / 100]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(table[row, column], torch.tensor(expected))


# The multilayer perceptron


def test_mlp_depends_on_both_times_and_on_the_label():
    torch.manual_seed(0)
    network = MLP(2, 16, 2, 3, auxiliary_time=True).build()
    assert network.auxiliary_time
    assert not MLP().build().auxiliary_time
    x, t, y, r = torch.randn(4, 2), torch.tensor([0.0, 0.3, 0.9, 1.7]), torch.tensor([0, 1, 2, 3]), torch.rand(4)
    out = network(x, t, y, r)
    assert out.shape == x.shape
    for changed in ((x.flip(0), t, y, r), (x, t.flip(0), y, r), (x, t, y.flip(0), r), (x, t, y, r.flip(0))):
        assert not torch.allclose(network(*changed), out, atol=1e-3)
    torch.testing.assert_close(network(x[1:2], t[1:2], y[1:2], r[1:2]), out[1:2])


def test_mlp_drops_out_in_train_mode_only():
    torch.manual_seed(0)
    network, x, t = MLP(2, 64, 2, dropout=0.5).build(), torch.randn(4, 2), torch.rand(4)
    assert torch.equal(network.eval()(x, t), network(x, t))
    assert not torch.equal(network.train()(x, t), network(x, t))
    outs = torch.stack([network(x, t) for _ in range(400)])
    assert not torch.allclose(outs[0], network.eval()(x, t))


# Foreign conventions


class Reversed(nn.Module):
    """Noise at its time ``top``, data at 0; predicts d x / d (time / top), under other argument names."""

    def __init__(self, top):
        super().__init__()
        self.top, self.inner = top, MLP(2, 16, 2, 3).build()
        self.seen = None

    def forward(self, x, timestep, labels=None):
        self.seen = timestep, labels
        return -self.inner(x, 1 - timestep / self.top, labels)


class ReversedConfig:
    def __init__(self, top=1.0):
        self.top = top

    def build(self):
        torch.manual_seed(0)
        return Reversed(self.top).double()


@pytest.mark.parametrize("top", [1.0, 1000.0])
def test_a_network_of_reversed_and_scaled_time_is_seen_as_one_of_ours(top):
    network = Foreign(ReversedConfig(top), time_scale=top, time_name="timestep", cond_name="labels").build()
    rng = torch.Generator().manual_seed(0)
    x, v = (torch.randn(4, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    y, t = torch.tensor([0, 1, 2, 3]), torch.tensor([0.0, 0.3, 0.8, 1.0], dtype=torch.float64)
    ours = network.inner.inner
    for times in (ExpandedInterval().shortcut(t), ExpandedInterval().anchor(t)):
        torch.testing.assert_close(network(x, cond=y, **times), ours(x, times["t"], y))
    # c_FM = 2 - t is told as minus the reversed time (Sec. 3.2.2)
    torch.testing.assert_close(network.inner.seen[0], -top * (1 - t))
    assert torch.equal(network.inner.seen[1], y)
    assert not network.auxiliary_time

    def F(x, t):
        return network(x, cond=y, **ExpandedInterval().shortcut(t))

    _, dF = NoGraph()(F, (x, t), (v, torch.ones_like(t)))
    h = 1e-5
    torch.testing.assert_close(dF, (F(x + h * v, t + h) - F(x - h * v, t - h)) / (2 * h), rtol=1e-6, atol=1e-8)


def test_a_network_of_our_direction_is_only_renamed_and_scaled():
    class Plain(nn.Module):
        def forward(self, x, t, **others):
            assert not others  # no condition is passed on where there is none
            return x + t[:, None]

    class Config:
        def build(self):
            return Plain()

    network = Foreign(Config(), reversed_time=False, time_scale=10.0).build()
    assert network(torch.zeros(1, 1), torch.tensor([0.25])).item() == 2.5
    assert Foreign(Config()).build()(torch.zeros(1, 1), torch.tensor([0.25])).item() == -0.75
    assert Foreign(Config()).reversed_time


def test_a_scaled_time_is_computed_in_single_precision():
    class Recorder(nn.Module):
        def forward(self, x, t):
            self.t = t
            return x

    class Config:
        def build(self):
            return Recorder()

    network = Foreign(Config(), time_scale=1000.0).build()
    t = torch.tensor([0.3], dtype=torch.bfloat16)
    network(torch.zeros(1, 1), t)
    assert network.inner.t.dtype == torch.float32
    assert network.inner.t.item() == pytest.approx(1000 * (1 - t.item()), abs=1e-3)
