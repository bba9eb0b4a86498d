"""Fused operations: value, gradient and tangent are those of their plain formula, in every precision and context."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from facm.core.fused.norm import norm_modulate
from facm.core.fused.residual import gated_sum
from facm.core.fused.rotary import queries_keys
from facm.core.fused.swiglu import swiglu
from facm.derivative.dual_mode import op_level_pair

B, N, H, D = 3, 5, 2, 8
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


ANGLE = draw(N, D // 2, seed=9).repeat_interleave(2, dim=1)
CASES = {  # operation, arguments, which of them move
    "norm": (norm_modulate, (draw(B, N, D), draw(D, seed=1), draw(B, D, seed=2), draw(B, D, seed=3), 1e-6), (0, 2, 3)),
    "norm without shift": (norm_modulate, (draw(B, N, D), draw(D, seed=1), None, draw(B, D, seed=3), 1e-6), (0, 3)),
    "sum": (gated_sum, (draw(B, N, D), draw(B, D, seed=1), draw(B, N, D, seed=2)), (0, 1, 2)),
    "swiglu": (swiglu, (draw(B, N, 2 * D),), (0,)),
    "queries and keys": (
        queries_keys,
        (draw(B, N, 3, H, D)[:, :, :2], draw(D, seed=1), draw(D, seed=2), ANGLE.cos(), ANGLE.sin(), 1e-6),
        (0,),
    ),
}
SUBSETS = [(name, moving) for name, (_, _, places) in CASES.items() for moving in [places, *((i,) for i in places)]]


def requiring(arguments):
    """Leaves that need a gradient, but for the cosines and sines of constant angles."""
    return [a.clone().requires_grad_(a.shape != ANGLE.shape) if isinstance(a, torch.Tensor) else a for a in arguments]


def gradients(out, arguments):
    weights = draw(*out.shape, seed=7).to(out.dtype)
    wanted = [a for a in arguments if isinstance(a, torch.Tensor) and a.requires_grad]
    return torch.autograd.grad((out * weights).sum(), wanted, allow_unused=True)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_the_formula_s(name):
    operation, arguments, _ = CASES[name]
    found, expected = requiring(arguments), requiring(arguments)
    out, plain = operation(*found), operation.formula(*expected)
    assert out.grad_fn.name().startswith("_")  # the operation's own backward pass
    torch.testing.assert_close(out, plain, **CLOSE)
    torch.testing.assert_close(gradients(out, found), gradients(plain, expected), **CLOSE)
    with torch.no_grad():
        assert torch.equal(operation(*arguments), out.detach())


@pytest.mark.parametrize(("name", "moving"), SUBSETS, ids=str)
def test_the_tangent_is_the_formula_s_whichever_arguments_move(name, moving):
    operation, arguments, _ = CASES[name]
    tangents = [draw(*arguments[i].shape, seed=20 + i) for i in moving]

    def of(function):
        return lambda *moved: function(*[moved[moving.index(i)] if i in moving else a for i, a in enumerate(arguments)])

    primals = tuple(arguments[i] for i in moving)
    expected = torch.func.jvp(of(operation.formula), primals, tuple(tangents))
    assert expected[1].norm() > 1e-2
    kept = [d.clone() for d in tangents]
    calls = Calls()
    with calls:
        found = op_level_pair(of(operation), primals, tuple(tangents))
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(torch.func.jvp(of(operation), primals, tuple(tangents)), expected, **CLOSE)
    assert all(torch.equal(a, b) for a, b in zip(kept, tangents, strict=True))  # nothing is written into


class Calls(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_a_moving_weight_goes_through_the_formula():
    operation, arguments, _ = CASES["norm"]
    function = lambda w: operation(arguments[0], w, *arguments[2:])  # noqa: E731
    weight, tangent = (arguments[1],), (draw(D, seed=30),)
    expected = torch.func.jvp(lambda w: operation.formula(arguments[0], w, *arguments[2:]), weight, tangent)
    torch.testing.assert_close(op_level_pair(function, weight, tangent), expected, **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_in_bf16_they_are_as_close_to_the_truth_as_the_formula_is(name):
    """Under autocast, activations in bf16 and weights in float32, as in a training step."""
    operation, arguments, _ = CASES[name]
    half = [
        a if not isinstance(a, torch.Tensor) else a.float() if a.shape in ((D,), (N, D)) else a.bfloat16()
        for a in arguments
    ]
    exact = [a.double() if isinstance(a, torch.Tensor) else a for a in half]
    expected = operation.formula(*exact)
    with torch.autocast("cpu", torch.bfloat16):
        made = requiring(half)
        out = operation(*made)
    assert out.dtype == torch.bfloat16
    assert (out.double() - expected).norm() < 4e-3 * expected.norm()
    truth = requiring(exact)
    ours, theirs = gradients(out, made), gradients(operation.formula(*truth), truth)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.double() - b).norm() < 1e-2 * b.norm()


def test_angles_that_are_learned_go_through_the_formula():
    operation, arguments, _ = CASES["queries and keys"]
    made = [a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments]
    expected = [a.detach().clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in made]
    out, plain = operation(*made), operation.formula(*expected)
    torch.testing.assert_close(gradients(out, made), gradients(plain, expected), **CLOSE)


def test_compiled_code_has_the_formula():
    operation, arguments, _ = CASES["norm"]
    out = torch.compile(operation, backend="aot_eager", fullgraph=True)(*arguments)
    torch.testing.assert_close(out, operation.formula(*arguments), **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_the_second_derivative_is_the_formula_s(name):
    """As a penalty on gradients asks for it."""
    operation, arguments, places = CASES[name]
    found = []
    for function in (operation, operation.formula):
        made = requiring(arguments)
        first = torch.autograd.grad(function(*made).square().sum(), [made[i] for i in places], create_graph=True)
        found.append(gradients(sum(g.square().sum() for g in first), made))
    torch.testing.assert_close(*found, **CLOSE)
