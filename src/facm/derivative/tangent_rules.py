"""The tangent of one torch-level operation, whose value is computed on plain tensors.

PyTorch's own propagation of dual numbers would make autograd save the duals with their tangents and record a graph of
the tangent, would multiply by a zero tangent of the weight in every linear map, and would fail for fused attention.

Every rule guarantees the following. The value is the operation itself, called once on plain tensors, so that autograd
saves the same tensors as usual, which activation checkpointing compares. An operation that draws random numbers draws
the same ones for the tangent. Two tangents share memory exactly where their values do, since a network may write into
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as fwd
import torch.nn.functional as nnf
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from facm.core.fused.base import Fused
from facm.core.torch_private import (
    constant_under_compile,
    dual_functions,
    tensor_attributes,
    tree_flatten,
    tree_map,
    tree_unflatten,
)
from facm.derivative.attention.dispatch import Kernel, attention_pair
from facm.derivative.errors import LostTangent
from facm.derivative.lost_tangents import (
    CONSTANT,
    CUTS,
    ENERGY,
    LEAVES,
    TWICE,
    carried,
    check_arguments,
    check_result,
    contiguous_for,
    is_real,
    named,
    unpack,
)
from facm.derivative.symmetric import RULES as SYMMETRIC
from facm.derivative.symmetric import symmetric_tangent


def _writes(name: str) -> bool:
    """Whether an operation of this name, such as mul_, __imul__ or __setitem__, writes into its first argument."""
    inside = name[2:-2]
    if name == f"__{inside}__":
        return inside == "setitem" or (inside[:1] == "i" and hasattr(Tensor, f"__{inside[1:]}__"))
    return name.endswith("_") and not name.startswith("_")


# PyTorch's own propagation is right for these: views, whose tangent must be the same view of the tangent, and
# operations that have no tangent at all.
NATIVE = (
    named(
        "view view_as transpose permute movedim moveaxis swapaxes swapdims t unsqueeze squeeze unflatten expand "
        "expand_as broadcast_to chunk split tensor_split unbind narrow select diagonal view_as_real view_as_complex",
        torch,
        Tensor,
    )
    | named("unfold", Tensor)
    | dual_functions()  # hooks and the like handle duals themselves
    | named(
        "register_hook requires_grad_ retain_grad register_post_accumulate_grad_hook size dim stride numel "
        "is_contiguous untyped_storage element_size is_floating_point is_complex get_device storage_offset __repr__ "
        "__format__ __len__ __bool__ __int__ isnan isfinite isinf eq ne lt le gt ge __eq__ __ne__ __lt__ __le__ __gt__ "
        "__ge__ argmax argmin argsort allclose equal",
        torch,
        Tensor,
    )
    | CONSTANT
    | (tensor_attributes() - CUTS - LEAVES)  # x.shape, x.mT
)
# Linear in the first argument if no other has a tangent. Where the value is that argument or a view of it, the tangent
# is the argument's tangent or the same view of it, and so shares its memory.
LINEAR = (
    named(
        "reshape reshape_as flatten ravel contiguous to type type_as float double half bfloat16 __getitem__ clone sum "
        "mean neg roll flip repeat repeat_interleave tile index_select gather cumsum tril triu true_divide "
        "masked_select take_along_dim",
        torch,
        Tensor,
    )
    | named("__truediv__ __neg__", Tensor)
    | named("dropout dropout1d dropout2d dropout3d pixel_shuffle pixel_unshuffle avg_pool1d avg_pool2d avg_pool3d", nnf)
    | named("dropout feature_dropout", torch)
)
# Linear in all tensors jointly.
JOINED = named("cat concat concatenate stack hstack vstack", torch)
SUMS = named("add sub subtract", torch, Tensor) | named("__add__ __radd__ __sub__ __rsub__", Tensor)
# Linear in each tensor separately.
PRODUCTS = (
    named("matmul bmm mm mv dot outer einsum", torch)
    | named("matmul bmm mm mv dot outer", Tensor)
    | named("__matmul__ __rmatmul__", Tensor)
)
TIMES = named("mul multiply", torch, Tensor) | named("__mul__ __rmul__", Tensor)
# Linear in the first argument: (input, weight[, bias], ...).
BIASED = named("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", nnf)
# Normalisations that scale and shift: (input, shape or groups, weight, ...).
NORMS = named("layer_norm group_norm rms_norm", nnf)
# Operations that draw random numbers; the tangent has to draw the same.
DRAW = (
    named("dropout alpha_dropout feature_alpha_dropout dropout1d dropout2d dropout3d rrelu gumbel_softmax", nnf)
    | named("dropout feature_dropout alpha_dropout feature_alpha_dropout rrelu", torch)
    | named("multi_head_attention_forward", nnf)
)
# Operations that update running statistics; the tangent must not call them again.
KEEP_STATISTICS = named("batch_norm instance_norm", nnf, torch)
WRITE = frozenset(getattr(place, name) for place in (torch, Tensor, nnf) for name in dir(place) if _writes(name))
# Linear in what they write, or random: nothing with a tangent is saved, and PyTorch's propagation leaves no graph.
WRITE_NATIVELY = (
    named(
        "add_ sub_ neg_ copy_ zero_ fill_ masked_fill_ masked_scatter_ index_fill_ index_put_ "
        "scatter_ scatter_add_ squeeze_ unsqueeze_ transpose_ t_ swapaxes_ resize_ requires_grad_ detach_ set_ "
        "bernoulli_ normal_ uniform_ random_ exponential_ geometric_ log_normal_ cauchy_",
        torch,
        Tensor,
    )
    | named("__setitem__ __iadd__ __isub__", Tensor)
    | DRAW
)
KINDS = {
    "native": NATIVE,
    "linear": LINEAR,
    "joined": JOINED,
    "sum": SUMS,
    "product": PRODUCTS,
    "times": TIMES,
    "biased": BIASED,
    "symmetric": frozenset(SYMMETRIC),
    "norm": NORMS,
    "draw": DRAW,
    "statistics": KEEP_STATISTICS,
    "write": WRITE,
    "write natively": WRITE_NATIVELY,
    "attention": frozenset({nnf.scaled_dot_product_attention}),
    "cut": CUTS,
}


@constant_under_compile
def kinds(func: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the sets in KINDS that contain ``func``; the compiler takes the result for a constant."""
    return tuple(name for name, functions in KINDS.items() if func in functions)


@dataclass(frozen=True)
class _Call:
    """A call of ``func`` on plain tensors, with the tangents of its arguments and the value that it returned.

    func: The operation.
    kind: Names of the sets in KINDS that contain it.
    plain: Its arguments without tangents, as a flat list.
    tangents: The tangent of each entry of ``plain``, or None.
    spec: The nesting of the arguments.
    value: What the call returned.
    """

    func: Callable[..., Any]
    kind: tuple[str, ...]
    plain: list[Any]
    tangents: list[Tensor | None]
    spec: Any
    value: Any

    @property
    def arguments(self) -> tuple[Any, dict[str, Any]]:
        return tree_unflatten(self.plain, self.spec)

    @property
    def moving(self) -> list[int]:
        return [i for i, d in enumerate(self.tangents) if d is not None]

    @property
    def only_first_moves(self) -> bool:
        """Whether the first positional argument is the only one with a tangent."""
        return self.moving == [0] and bool(self.arguments[0])

    def again(self, leaves: Sequence[Any], places: Sequence[int]) -> Any:
        """The same operation on ``leaves``, with the tangents in place of the entries at ``places``."""
        args, kwargs = tree_unflatten([self.tangents[i] if i in places else p for i, p in enumerate(leaves)], self.spec)
        return self.func(*contiguous_for(self.func, args), **kwargs)


def apply_rule(func: Callable[..., Any], args: Any, kwargs: dict[str, Any], attention: Kernel) -> Any:
    """``func(*args, **kwargs)`` with its tangent, for any mixture of plain and dual tensors among the arguments.

    It must be called inside a ``dual_level``, and returns what ``func`` returns, with dual tensors where there is a
    tangent. Raises what ``func`` raises, and NotImplementedError for an operation without forward-mode derivative.
    """
    compiling = torch.compiler.is_compiling()
    if compiling and (func is Tensor.unflatten or func is Tensor.split):
        return getattr(args[0], func.__name__)(*args[1:], **kwargs)  # their super() cannot be traced
    kind = kinds(func)
    flat, spec = tree_flatten((args, kwargs))
    pairs = [unpack(leaf) for leaf in flat]
    plain, tangents = [p for p, _ in pairs], [d for _, d in pairs]
    natively = "native" in kind or (compiling and "draw" in kind)
    if natively or all(d is None for d in tangents):
        return func(*args, **kwargs)
    if "cut" in kind:
        return carried(func, args, kwargs)
    check_arguments(func, args, kwargs)
    if func in TWICE:
        raise LostTangent(
            "torch.autograd.grad inside the network is not differentiated operation by operation.", ENERGY
        )
    if "write" in kind or kwargs.get("inplace") or kwargs.get("out") is not None:
        return _write(func, kind, flat, plain, tangents, spec)
    if (pair := _together(func, kind, args, kwargs, attention)) is not None:
        return _pack(*pair)
    plain_args, plain_kwargs = tree_unflatten(plain, spec)
    if "draw" in kind and _draws(func, args, kwargs):
        rewind = _generator(flat)
        with sdpa_kernel(SDPBackend.MATH):  # a fused kernel would draw another mask
            value = func(*plain_args, **plain_kwargs)
        rewind()
    else:
        value = func(*plain_args, **plain_kwargs)
    with torch.no_grad():
        tangent = _tangent(_Call(func, kind, plain, tangents, spec, value))
    made = zip(tree_flatten(value)[0], _flat(tangent), strict=True)
    check_result(func, args, [d for v, d in made if is_real(v)])
    return _pack(value, tangent)


def _tangent(call: _Call) -> Any:
    """The tangent of a call without its graph: by a rule for products and large copies, otherwise by forward mode.

    Returns tensors in the shapes and the structure of the value, or None where there is no tangent.
    """
    for kind in call.kind:
        if kind in BY_HAND:
            tangent = BY_HAND[kind](call)
            if tangent is not None:
                return tangent
    return _forward_mode(call)


def _forward_mode(call: _Call) -> Any:
    leaves = [p.detach() if isinstance(p, Tensor) else p for p in call.plain]
    if "statistics" in call.kind:
        leaves = [p.clone() if isinstance(p, Tensor) else p for p in leaves]
    duals = [p if d is None else _dual(p, d) for p, d in zip(leaves, call.tangents, strict=True)]
    with sdpa_kernel(SDPBackend.MATH):
        return tree_map(lambda out: unpack(out)[1], call.again(duals, ()))


# Rules by hand, which return None where they do not apply.


def _biased(call: _Call) -> Tensor | None:
    """The linear map of the tangent, without the bias."""
    if not call.only_first_moves:
        return None
    (_, *rest), kwargs = call.arguments
    if len(rest) > 1:
        rest[1] = None
    return call.func(call.tangents[0], *rest, **{name: a for name, a in kwargs.items() if name != "bias"})


def _linear(call: _Call) -> Tensor | None:
    return call.again(call.plain, [0]) if call.only_first_moves else None


def _norm(call: _Call) -> Tensor | None:
    """The norm's tangent, scaled by the weight outside: forward mode of a norm with a weight cannot be compiled."""
    if not call.only_first_moves:
        return None
    (x, *rest), kwargs = call.arguments
    weight = rest[1] if len(rest) > 1 else kwargs.get("weight")
    rest = [None if isinstance(a, Tensor) else a for a in rest]
    kwargs = {name: a for name, a in kwargs.items() if name not in ("weight", "bias")}
    args = contiguous_for(call.func, (_dual(x.detach(), call.tangents[0]), *rest))
    tangent = unpack(call.func(*args, **kwargs))[1]
    if weight is None or tangent is None:
        return tangent
    return tangent * (weight.reshape(-1, *[1] * (x.ndim - 2)) if call.func is nnf.group_norm else weight)


def _joined(call: _Call) -> Tensor:
    return call.again([torch.zeros_like(p) if isinstance(p, Tensor) else p for p in call.plain], call.moving)


def _sum(call: _Call) -> Tensor | None:
    """A summand without tangent adds zero, so that the result is a new tensor that may be written into."""
    if any(i > 1 for i in call.moving) or len(call.arguments[0]) != 2:
        return None
    zero = call.value.new_zeros(())
    return call.again([zero, zero, *call.plain[2:]], call.moving).expand(call.value.shape)


def _times(call: _Call) -> Tensor | None:
    if len(call.plain) != 2:
        return None
    (p, q), (d, e) = call.plain, call.tangents
    if d is None or e is None:
        return p * e if d is None else d * q
    return torch.addcmul(d * q, p, e)


def _product(call: _Call) -> Tensor:
    total, *others = (call.again(call.plain, [i]) for i in call.moving)
    for other in others:
        total = total + other
    return total


def _symmetric(call: _Call) -> Tensor | None:
    """Eagerly: compiled code fuses what PyTorch's own forward mode does."""
    if not call.only_first_moves or torch.compiler.is_compiling():
        return None
    (x, *rest), kwargs = call.arguments
    dx = call.tangents[0]
    assert dx is not None
    return symmetric_tangent(call.func, x, dx, call.value, rest, kwargs)


BY_HAND: dict[str, Callable[[_Call], Tensor | None]] = {
    "symmetric": _symmetric,
    "biased": _biased,
    "linear": _linear,
    "norm": _norm,
    "joined": _joined,
    "sum": _sum,
    "times": _times,
    "product": _product,
}


def _write(
    func: Callable[..., Any],
    kind: tuple[str, ...],
    flat: list[Any],
    plain: list[Any],
    tangents: list[Tensor | None],
    spec: Any,
) -> Any:
    """An operation that writes into its first argument: the tangent is computed on copies, the value in place."""
    into = tangents[0]
    if "write natively" in kind or into is None:
        args, kwargs = tree_unflatten(flat, spec)
        return func(*args, **kwargs)
    with torch.no_grad():
        copies = [
            p if d is None else _dual(p.detach().clone(), d.clone()) for p, d in zip(plain, tangents, strict=True)
        ]
        args, kwargs = tree_unflatten(copies, spec)
        func(*args, **kwargs)
        tangent = unpack(copies[0])[1]
    args, kwargs = tree_unflatten(plain, spec)
    func(*args, **kwargs)
    with torch.no_grad():
        into.zero_() if tangent is None else into.copy_(tangent)
    return flat[0]


def _together(
    func: Callable[..., Any], kind: tuple[str, ...], args: Any, kwargs: dict[str, Any], kernel: Kernel
) -> tuple[Tensor, Tensor] | None:
    """Value and tangent of an operation that computes both, without a graph of the tangent; None for any other."""
    if isinstance(func, Fused):
        pairs = [unpack(arg) for arg in args]
        return func.pair([p for p, _ in pairs], [d for _, d in pairs])
    if "attention" not in kind or _mask_moves(args, kwargs):
        return None
    given = _attention_arguments(args, kwargs)
    pairs = [unpack(given.pop(name)) for name in ("query", "key", "value")]
    return attention_pair(
        tuple(p for p, _ in pairs),
        tuple(d for _, d in pairs),  # type: ignore[arg-type]
        kernel=kernel,
        **given,
    )


def _attention_arguments(args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    return dict(zip(names, args, strict=False)) | kwargs


def _mask_moves(args: Any, kwargs: dict[str, Any]) -> bool:
    return unpack(_attention_arguments(args, kwargs).get("attn_mask"))[1] is not None


def _draws(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether this call may draw random numbers; attention without dropout does not and keeps its fused kernel."""
    if func is not nnf.multi_head_attention_forward:
        return True
    return bool(kwargs["dropout_p"] if "dropout_p" in kwargs else args[10]) and kwargs.get("training", True)


def _generator(flat: list[Any]) -> Callable[[], None]:
    """A function that restores the present random state of the tensors' device."""
    device = next(leaf.device for leaf in flat if isinstance(leaf, Tensor))
    if device.type == "meta":  # nothing is drawn there
        return lambda: None
    if device.type == "cpu":
        state = torch.get_rng_state()
        return lambda: torch.set_rng_state(state)
    module = torch.get_device_module(device)
    state = module.get_rng_state(device)
    return lambda: module.set_rng_state(state, device)


def _dual(value: Tensor, tangent: Any) -> Tensor:
    return fwd.make_dual(value, tangent.to(value.dtype))


def _flat(tangent: Any) -> list[Any]:
    return tree_flatten(tangent, is_leaf=lambda x: x is None)[0]


def _pack(value: Any, tangent: Any) -> Any:
    """Dual tensors from values and tangents, with grad enabled.

    Under no_grad, make_dual would silently cut the value's graph or forbid writing into it later.
    """
    values, spec = tree_flatten(value)
    parts = _flat(tangent)
    with torch.enable_grad():
        duals = [
            _dual(v, d) if isinstance(d, Tensor) and is_real(v) else v  # integers that .to() made have no tangent
            for v, d in zip(values, parts, strict=True)
        ]
    return tree_unflatten(duals, spec)
