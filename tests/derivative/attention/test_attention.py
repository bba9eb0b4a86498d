"""Attention's tangent: the plain formula against forward mode in float64, the kernel in Triton's interpreter against
the plain formula, the value and log-sum-exp of the stock kernels, and which of the two ways is taken.

The interpreter has to be asked for before anything imports triton, so every group of kernel cases is a process of its
own: this file run as a script.
"""

import json
import math
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.autograd.forward_ad as fwd
import torch.nn.functional as nnf
from torch.nn.attention import SDPBackend, sdpa_kernel

import facm
from facm.derivative.attention import dispatch, triton_kernel
from facm.derivative.attention.dispatch import attention_pair, chosen, forget
from facm.derivative.attention.operator import attention_tangent
from facm.derivative.attention.reference import plain_tangent
from facm.derivative.attention.sdpa import value_and_lse, without_lse
from facm.derivative.attention.triton_kernel import kernel_tangent, supports
from tests.paths import ROOT

NAMES = ("dq", "dk", "dv")


def draw(*shape, dtype=torch.float64, seed=0, device="cpu"):
    rng = torch.Generator().manual_seed(seed + 100 * len(shape) + sum(shape))
    return torch.randn(shape, generator=rng, dtype=torch.float64).to(device, dtype)


def inputs(n=7, m=9, d=8, dv=None, lead=(2, 3), **options):
    """(q, k, v), (dq, dk, dv)"""
    shapes = (*lead, n, d), (*lead, m, d), (*lead, m, dv or d)
    return tuple(tuple(draw(*s, seed=10 * i + j, **options) for j, s in enumerate(shapes)) for i in range(2))


def some(tangents, given):
    return tuple(z if name in given else None for name, z in zip(NAMES, tangents, strict=True))


def formula(q, k, v, mask=None, scale=None):
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ v


def forward_mode(primals, tangents, **options):
    tangents = tuple(torch.zeros_like(p) if d is None else d for p, d in zip(primals, tangents, strict=True))
    return torch.func.jvp(lambda *z: formula(*z, **options), primals, tangents)[1]


def lower(n, m):
    return torch.ones(n, m, dtype=torch.bool).tril()


def distance(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


# The plain formula

GIVEN = ["dq", "dk", "dv", "dq dk", "dq dv", "dk dv", "dq dk dv"]


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("shape", [(7, 7, 8, 8), (7, 9, 8, 5), (9, 7, 5, 8)], ids=str)
def test_plain_is_forward_mode(given, shape):
    primals, tangents = inputs(*shape)
    tangents = some(tangents, given)
    for scale in (None, 0.7):
        expected = forward_mode(primals, tangents, scale=scale)
        torch.testing.assert_close(plain_tangent(*primals, *tangents, scale=scale), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lead", [(), (3,), (2, 2, 3)], ids=str)
def test_plain_takes_any_leading_axes(lead):
    primals, tangents = inputs(lead=lead)
    torch.testing.assert_close(
        plain_tangent(*primals, *tangents), forward_mode(primals, tangents), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize(("n", "m"), [(7, 7), (5, 9), (9, 5)])
def test_plain_is_causal_from_the_top_left(n, m):
    primals, tangents = inputs(n, m)
    expected = forward_mode(primals, tangents, mask=lower(n, m))
    torch.testing.assert_close(plain_tangent(*primals, *tangents, is_causal=True), expected, rtol=1e-10, atol=1e-12)
    stock = nnf.scaled_dot_product_attention(*primals, is_causal=True)
    torch.testing.assert_close(stock, formula(*primals, mask=lower(n, m)))


@pytest.mark.parametrize("shape", [(7, 9), (2, 1, 1, 9), (3, 7, 9), (2, 3, 7, 9)], ids=str)
def test_plain_masks(shape):
    primals, tangents = inputs()
    boolean = draw(*shape) > 0
    boolean[..., 0] = True
    for mask in (boolean, draw(*shape), torch.zeros(shape).masked_fill(~boolean, -torch.inf).double()):
        expected = forward_mode(primals, tangents, mask=mask)
        torch.testing.assert_close(plain_tangent(*primals, *tangents, mask=mask), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["boolean", "additive"])
def test_rows_that_take_no_key_have_value_and_tangent_zero(kind):
    primals, tangents = inputs()
    boolean = draw(7, 9) > 0
    boolean[:, 0] = True
    boolean[3] = False
    mask = boolean if kind == "boolean" else torch.zeros(7, 9).double().masked_fill(~boolean, -torch.inf)
    value, tangent = attention_pair(primals, tangents, attn_mask=mask)
    assert (value[..., 3, :] == 0).all()
    assert (tangent[..., 3, :] == 0).all()
    rest = torch.arange(7) != 3
    expected = forward_mode((primals[0][..., rest, :], *primals[1:]), (tangents[0][..., rest, :], *tangents[1:]),
                            mask=mask[rest])  # fmt: skip
    torch.testing.assert_close(tangent[..., rest, :], expected, rtol=1e-10, atol=1e-12)


def test_plain_repeats_grouped_heads():
    (q, _, _), (dq, _, _) = inputs(lead=(2, 6))
    (_, k, v), (_, dk, dv) = inputs(lead=(2, 2))
    value, tangent = attention_pair((q, k, v), (dq, dk, dv), enable_gqa=True)
    k, v, dk, dv = (z.repeat_interleave(3, dim=1) for z in (k, v, dk, dv))
    torch.testing.assert_close(value, formula(q, k, v))
    torch.testing.assert_close(tangent, forward_mode((q, k, v), (dq, dk, dv)), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match=r"enable_gqa with 4 heads of k and v, expected a divisor of q's 6"):
        plain_tangent(q, k[:, :4], v[:, :4], dq, None, None, enable_gqa=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_plain_in_half_precision_rounds_only_what_it_must(dtype):
    """The rounding of inputs and output remains, also where the scores move together, which changes nothing."""
    (q, k, v), (dq, dk, dv) = inputs(40, 50, 32, dtype=dtype)
    dk = dk + (20 * q.float().mean(-2, keepdim=True)).to(dtype)
    got = plain_tangent(q, k, v, dq, dk, dv)
    assert got.dtype == dtype
    expected = forward_mode(tuple(z.double() for z in (q, k, v)), tuple(z.double() for z in (dq, dk, dv)))
    assert distance(got, expected) < 2 * torch.finfo(dtype).eps
    q, k = 6 * q, 6 * k  # peaked: scores in half precision would be off by more than this
    expected = forward_mode(tuple(z.double() for z in (q, k, v)), (dq.double(), None, None))
    assert distance(plain_tangent(q, k, v, dq, None, None), expected) < 2 * torch.finfo(dtype).eps


def test_plain_refuses_with_the_names_and_values():
    (q, k, v), (dq, dk, dv) = inputs()
    with pytest.raises(ValueError, match=r"dq, dk and dv are all None, expected at least one tangent"):
        plain_tangent(q, k, v, None, None, None)
    with pytest.raises(ValueError, match=r"dk is \(2, 3, 7, 8\) torch.float64, expected \(2, 3, 9, 8\)"):
        plain_tangent(q, k, v, dq, dq, dv)
    with pytest.raises(ValueError, match=r"dq is \(2, 3, 7, 8\) torch.float32, expected \(2, 3, 7, 8\) torch.float64"):
        plain_tangent(q, k, v, dq.float(), dk, dv)
    with pytest.raises(ValueError, match=r"is_causal = True together with a mask"):
        plain_tangent(q, k, v, dq, dk, dv, mask=lower(7, 9), is_causal=True)


def test_plain_on_the_meta_device_and_compiled_in_one_graph():
    primals, tangents = inputs()
    on_meta = attention_pair(*(tuple(z.to("meta") for z in three) for three in (primals, tangents)), is_causal=True)
    assert [z.shape for z in on_meta] == [(2, 3, 7, 8)] * 2
    forget()
    compiled = torch.compile(attention_pair, backend="aot_eager", fullgraph=True)
    for options in ({"is_causal": True}, {"attn_mask": lower(7, 9)}):
        for a, b in zip(
            compiled(primals, tangents, **options), attention_pair(primals, tangents, **options), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert chosen()["compiled"] == "plain: on cpu"


# The value with its log-sum-exp


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_value_is_the_stock_one_with_its_gradient(causal, dtype):
    for n, m, d in ((33, 33, 72), (5, 9, 40), (9, 5, 5)):
        primals = tuple(z.requires_grad_() for z in inputs(n, m, d, dtype=dtype)[0])
        for scale in (None, 0.3):
            out, lse = value_and_lse(*primals, is_causal=causal, scale=scale)
            stock = nnf.scaled_dot_product_attention(*primals, is_causal=causal, scale=scale)
            assert torch.equal(out, stock)
            weights = draw(*out.shape, dtype=dtype)
            for a, b in zip(*(torch.autograd.grad((z * weights).sum(), primals) for z in (out, stock)), strict=True):
                assert torch.equal(a, b)
            q, k = (z.detach().double() for z in primals[:2])
            scores = q @ k.mT * (d**-0.5 if scale is None else scale)
            expected = scores.masked_fill(~lower(n, m), -torch.inf).logsumexp(-1) if causal else scores.logsumexp(-1)
            assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert not lse.requires_grad
            tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
            torch.testing.assert_close(lse.double(), expected, rtol=tolerance, atol=tolerance)


def test_value_has_no_lse_where_stock_attention_is_not_fused():
    q, k, v = inputs()[0]
    with sdpa_kernel(SDPBackend.MATH):
        assert "no fused attention" in without_lse(q, k, v)
    with pytest.raises(ValueError, match=r"no fused attention for q \(7, 8\)"):
        value_and_lse(q[0, 0], k[0, 0], v[0, 0])
    assert without_lse(q, k, v) is None


# The choice


@pytest.fixture(autouse=True)
def _fresh():
    forget()
    yield
    forget()


def test_pair_has_the_graph_in_the_value_alone():
    primals, tangents = inputs()
    primals = tuple(z.requires_grad_() for z in primals)
    value, tangent = attention_pair(primals, tangents)
    assert torch.equal(value, nnf.scaled_dot_product_attention(*primals))
    assert value.requires_grad
    assert not tangent.requires_grad
    assert chosen() == {"head dim 8, float64, 7 queries, 9 keys": "plain: on cpu"}
    attention_pair(primals, tangents, kernel="plain")
    assert chosen() == {"head dim 8, float64, 7 queries, 9 keys": "plain: asked for"}


def test_pair_hands_on_every_option():
    primals, tangents = inputs()
    mask = draw(7, 9)
    value, tangent = attention_pair(primals, tangents, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(value, formula(*primals, mask=mask, scale=0.3))
    torch.testing.assert_close(tangent, forward_mode(primals, tangents, mask=mask, scale=0.3))
    value, tangent = attention_pair(primals, tangents, is_causal=True)
    torch.testing.assert_close(value, formula(*primals, mask=lower(7, 9)))
    torch.testing.assert_close(tangent, forward_mode(primals, tangents, mask=lower(7, 9)))


def test_pair_casts_under_autocast_as_stock_attention_does(monkeypatch):
    primals, tangents = inputs(dtype=torch.float32)
    primals = tuple(z.requires_grad_() for z in primals)
    with torch.autocast("cpu", torch.bfloat16):
        value, tangent = attention_pair(primals, tangents)
        assert torch.equal(value, nnf.scaled_dot_product_attention(*primals))
    assert value.dtype == tangent.dtype == torch.bfloat16
    value.sum().backward()
    assert all(z.grad is not None for z in primals)
    assert distance(tangent, forward_mode(tuple(z.detach() for z in primals), tangents)) < 0.02

    seen = []
    monkeypatch.setattr(triton_kernel, "kernel_tangent", lambda *given, **_: seen.extend(given) or given[3])
    monkeypatch.setattr(dispatch, "_why_plain", lambda *_: (None, True))
    with torch.autocast("cpu", torch.bfloat16):
        attention_pair(primals, tangents)
    assert [z.dtype for z in seen] == [torch.bfloat16] * 7 + [torch.float32]


def test_pair_refuses_what_has_no_tangent():
    primals, tangents = inputs()
    with pytest.raises(NotImplementedError, match=r"dropout_p = 0.1 has no tangent, expected 0"):
        attention_pair(primals, tangents, dropout_p=0.1)
    with pytest.raises(ValueError, match=r"kernel = 'fast', expected \"auto\", \"plain\" or \"kernel\""):
        attention_pair(primals, tangents, kernel="fast")
    with fwd.dual_level(), pytest.raises(NotImplementedError, match=r"attn_mask has a tangent"):
        attention_pair(primals, tangents, attn_mask=fwd.make_dual(draw(7, 9), draw(7, 9)))
    with pytest.raises(ValueError, match=r'kernel = "kernel", expected "auto" or "plain" here: '):
        attention_pair(primals, tangents, kernel="kernel")


def on_cuda(m, d=72):
    """What looks like three tensors on a GPU."""
    device = SimpleNamespace(type="cuda")
    of = {"device": device, "dtype": torch.bfloat16, "dim": lambda: 4, "is_meta": False}
    made = (SimpleNamespace(**of, shape=(2, 3, n, d)) for n in (40, m, m))
    return tuple(made)


def why(m, mask=None, gqa=False, d=72, kind="auto"):
    return dispatch._why_plain(on_cuda(m, d), mask, False, None, gqa, kind)


def test_auto_takes_the_kernel_on_cuda_from_128_keys_where_it_can(monkeypatch):
    reason, surprising = why(128)
    if not torch.cuda.is_available():
        assert reason in {"triton is not installed", "there is no CUDA device (and TRITON_INTERPRET is not set to 1)"}
        assert surprising
    monkeypatch.setattr(triton_kernel, "available", lambda: None)
    monkeypatch.setattr(dispatch, "without_lse", lambda *_, **__: None)
    assert why(128) == (None, True)
    assert why(127) == ("fewer than 128 keys", False)
    assert why(127, kind="kernel") == (None, True)
    assert why(128, kind="plain") == ("asked for", False)
    assert why(128, mask=lower(40, 128)) == ("masks go through the plain formula", True)
    assert why(128, gqa=True) == ("grouped queries (enable_gqa) go through the plain formula", True)
    assert why(128, d=257) == ("head dimension 257, expected at most 256", True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert why(128) == (None, True)  # as an operator
    monkeypatch.undo()
    monkeypatch.setattr(triton_kernel, "available", lambda: None)
    monkeypatch.setattr(dispatch, "without_lse", lambda *_, **__: "switched off")
    assert why(128) == ("switched off", True)


def test_a_kernel_that_fails_is_replaced_reported_once_and_not_tried_again(monkeypatch):
    calls = []

    def fail(*_, **__):
        calls.append(1)
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(triton_kernel, "kernel_tangent", fail)
    monkeypatch.setattr(dispatch, "_why_plain", lambda *_: (None, True))
    primals, tangents = inputs()
    primals = tuple(z.requires_grad_() for z in primals)
    with pytest.warns(UserWarning, match="the kernel failed with RuntimeError: Failed to find C compiler") as caught:
        pairs = [attention_pair(primals, tangents) for _ in range(2)]
    assert len(caught) == len(calls) == 1
    for value, tangent in pairs:
        assert value.requires_grad
        torch.testing.assert_close(tangent, plain_tangent(*(z.detach() for z in primals), *tangents))
    assert "Failed to find C compiler" in chosen()["head dim 8, float64, 7 queries, 9 keys"]
    with pytest.raises(RuntimeError, match="Failed to find C compiler"):
        attention_pair(primals, tangents, kernel="kernel")
    forget()
    with pytest.warns(UserWarning, match="the kernel failed"):
        attention_pair(primals, tangents)
    forget()


def test_nothing_is_warned_about_on_the_cpu():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attention_pair(*inputs(7, 600), attn_mask=lower(7, 600))


# The operator


@pytest.mark.parametrize("given", GIVEN)
def test_the_operator_is_the_plain_formula_also_inside_a_graph(given):
    primals, tangents = inputs(7, 7, 8)
    tangents = some(tangents, given)
    out, lse = value_and_lse(*primals)

    def twice(*z):
        return 2 * attention_tangent(*z, out, lse, False, 8**-0.5)

    expected = plain_tangent(*primals, *tangents)
    for run in (twice, torch.compile(twice, backend="aot_eager", fullgraph=True)):
        torch.testing.assert_close(run(*primals, *tangents), 2 * expected)


@pytest.mark.slow
def test_the_operator_says_the_truth_about_itself():
    """Its schema, and the shape and layout of its result without content."""
    primals, tangents = inputs(7, 7, 8)
    for made in (primals, [z.transpose(1, 2).contiguous().transpose(1, 2) for z in primals]):
        out, lse = value_and_lse(*made)
        arguments = (*made, *tangents, out.detach(), lse, True, 0.3)
        torch.library.opcheck(torch.ops.facm.attention_tangent.default, arguments)


COMPILED = """
import torch
from facm.derivative.attention.dispatch import attention_pair, chosen
draw = lambda: torch.randn(2, 2, 20, 16)
torch.manual_seed(0)
primals, tangents = [draw().requires_grad_() for _ in range(3)], [draw() for _ in range(3)]
expected = attention_pair(primals, tangents, kernel="plain")
pair = torch.compile(lambda *z: attention_pair(z[:3], z[3:], kernel="kernel"), fullgraph=True, dynamic=False)
found = pair(*primals, *tangents)
assert chosen()["compiled"] == "kernel", chosen()
torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
gradients = [torch.autograd.grad(value.square().sum(), primals) for value, _ in (found, expected)]
torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_compiled_code_takes_the_kernel_for_value_tangent_and_gradient():
    assert python("-c", COMPILED, TRITON_INTERPRET="1").strip() == "equal"


# The kernel


def test_kernel_refuses_with_the_names_and_values():
    q, k, v = inputs(d=72, dtype=torch.float32)[0]
    wide = torch.zeros(2, 3, 9, 80)
    assert supports(q, k, v, mask=lower(7, 9)) == "masks go through the plain formula"
    assert "enable_gqa" in supports(q, k, v, enable_gqa=True)
    assert supports(*inputs(d=264, dtype=torch.float32)[0]) == "head dimension 264, expected at most 256"
    assert supports(q, k, wide) == "head dimension 80 of v, expected 72 like q's"
    assert "k (2, 1, 9, 72)" in supports(q, k[:, :1], v[:, :1])
    assert "k (2, 3, 9, 80)" in supports(q, wide, v)
    assert "expected (batch, heads, tokens, head dimension)" in supports(q[0], k[0], v[0])
    assert "dtypes float64, float64, float64, expected one of float32" in supports(q.double(), k.double(), v.double())
    assert "dtypes float32, float16, float32" in supports(q, k.half(), v)
    assert supports(q, k, v) == "q is on cpu, expected cuda"


@pytest.mark.slow
def test_kernel_module_imports_without_triton():
    code = "import sys; sys.modules['triton'] = None; from facm.derivative.attention.triton_kernel import available; "
    code += "print(available())"
    assert python("-c", code).strip() == "triton is not installed"


LAYOUTS = ("of one product", "amid nan", "columns", "expanded", "odd")
GROUPS = {  # name: cases of (queries, keys, head dimension, options)
    "one of each": [  # two tiles and two chunks of columns; without dk and dv; a mask and strides; half precision
        (33, 17, 24, {"layout": "odd"}),
        (5, 7, 8, {"given": "dq"}),
        (20, 20, 16, {"is_causal": True, "given": "dk dv", "lead": (2, 1), "layout": "columns", "scale": -0.3}),
        (8, 20, 16, {"dtype": "float16"}),
    ],
    "shapes": [(20, 23, d, {}) for d in (8, 40, 64, 72, 96, 128, 144, 256)]
    + [(n, m, 72, {}) for n, m in ((70, 45), (32, 16), (33, 17), (1, 1))]
    + [(n, m, 40, {"is_causal": True}) for n, m in ((70, 70), (70, 20), (20, 70))],
    "tangents and layouts": [(20, 20, 72, {"given": given}) for given in GIVEN]
    + [(20, 20, 72, {"lead": (2, 2), "layout": x}) for x in (*LAYOUTS, "mixed")]
    + [(20, 20, 72, {"scale": -0.3}), (40, 20, 72, {"layout": "pair"}), (20, 20, 72, {"layout": "far"})],
    "half precision": [
        (150, 100, 72, {"dtype": "float16"}),
        (80, 70, 128, {"dtype": "float16"}),
        (150, 150, 72, {"dtype": "float16", "is_causal": True}),
    ],
}


def python(*arguments, **environment):
    """Standard output of this interpreter, with the package under test and one thread."""
    environment |= {
        "PYTHONPATH": os.pathsep.join((str(Path(facm.__file__).parents[1]), str(ROOT))),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], env=os.environ | environment, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(
    "group", [group if group == "one of each" else pytest.param(group, marks=pytest.mark.slow) for group in GROUPS]
)
def test_kernel_is_the_plain_formula(group):
    errors = json.loads(python("-m", __name__, group, TRITON_INTERPRET="1"))
    assert len(errors) == len(GROUPS[group])
    assert not [case for case, (error, allowed) in errors.items() if not error < allowed], errors


def laid_out(z, layout, index):
    """The same numbers, elsewhere in memory (expanded: the first ones for all)."""
    layout = LAYOUTS[index % len(LAYOUTS)] if layout == "mixed" else layout
    if layout == "amid nan":  # where a read beyond the last row or column would show
        z = nnf.pad(z, (8, 8, 24, 24), value=math.nan)[..., 24:-24, 8:-8]
    elif layout == "of one product":  # (B, N, 3, H, D), like qkv in one linear layer
        z = torch.stack([z.permute(0, 2, 1, 3)] * 3, dim=2)[:, :, index % 3].permute(0, 2, 1, 3)
    elif layout == "columns":
        z = z.mT.contiguous().mT
    elif layout == "odd":
        z = nnf.pad(z, (0, 1))[..., :-1]
    elif layout == "expanded":
        z = z[:1, :1].expand(z.shape)
    return z


def interpreted(n, m, d, given="dq dk dv", lead=(1, 2), layout="", dtype="float32", is_causal=False, scale=None):
    """(relative error, what is allowed) of one case."""
    torch.set_num_threads(1)
    dtype = getattr(torch, dtype)
    primals, tangents = (tuple(three) for three in inputs(n, m, d, lead=lead, dtype=dtype))
    if layout == "far":  # scores near -130: exp(-lse) is infinite
        primals[0][..., 0], primals[1][..., 0] = 33, -33
    primals = tuple(laid_out(z, layout, i) for i, z in enumerate(primals))
    tangents = some([laid_out(z, layout, 3 + i) for i, z in enumerate(tangents)], given)
    exact = tuple(None if z is None else z.double() for z in (*primals, *tangents))
    expected = plain_tangent(*exact, is_causal=is_causal, scale=scale)
    if layout == "pair":
        got = attention_pair(primals, tangents, kernel="kernel")[1]
        assert chosen() == {f"head dim {d}, float32, {n} queries, {m} keys": "kernel"}
    else:
        scores = exact[0] @ exact[1].mT * (d**-0.5 if scale is None else scale)
        lse = (scores.masked_fill(~lower(n, m), -torch.inf) if is_causal else scores).logsumexp(-1)
        out = laid_out(formula(*exact[:3], mask=lower(n, m) if is_causal else None, scale=scale).to(dtype), layout, 0)
        got = kernel_tangent(*primals, *tangents, out, lse.float(), is_causal=is_causal, scale=scale)
    assert got.dtype == dtype
    return distance(got, expected), 1e-4 if layout == "far" else {torch.float32: 1e-6, torch.float16: 2e-3}[dtype]


# On a GPU


def gpu_case(n, m, d, dtype):
    return inputs(n, m, d, dtype=dtype, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("d", [36, 40, 64, 72, 96, 128, 192, 256])
@pytest.mark.parametrize(("n", "m", "causal"), [(600, 600, False), (600, 600, True), (100, 777, False)])
def test_kernel_on_a_gpu(dtype, d, n, m, causal):
    primals, tangents = gpu_case(n, m, d, dtype)
    expected = plain_tangent(*(z.double() for z in (*primals, *tangents)), is_causal=causal)
    value, tangent = attention_pair(primals, tangents, is_causal=causal, kernel="kernel")
    torch.testing.assert_close(value, nnf.scaled_dot_product_attention(*primals, is_causal=causal))
    allowed = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 1e-5}[dtype]
    assert distance(tangent, expected) < allowed
    assert distance(plain_tangent(*primals, *tangents, is_causal=causal), expected) < allowed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"])
@pytest.mark.parametrize("causal", [False, True])
def test_lse_of_every_stock_kernel_on_a_gpu(backend, causal):
    primals, _ = gpu_case(65, 65, 72, torch.bfloat16)
    with sdpa_kernel(getattr(SDPBackend, backend)):
        if (reason := without_lse(*primals, is_causal=causal)) is not None:
            pytest.skip(reason)
        _, lse = value_and_lse(*primals, is_causal=causal)
    q, k = (z.double() for z in primals[:2])
    scores = q @ k.mT / math.sqrt(72)
    scores = scores.masked_fill(~lower(65, 65).cuda(), -torch.inf) if causal else scores
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    print(json.dumps({str(case): interpreted(*case[:3], **case[3]) for case in GROUPS[sys.argv[1]]}))
