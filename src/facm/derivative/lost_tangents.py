"""Operations that would lose a tangent without a word: it is carried along where the value stays in PyTorch, and
refused with a reason where it leaves.

A lost tangent is a wrong derivative that nothing else would notice. The total derivative along the flow is that of the
value, whatever part of it gradients are kept from: ``detach`` keeps its tangent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor
from torch.overrides import TorchFunctionMode

from facm.core.torch_private import dual_functions, forward_mode_enabled, functorch_level, tree_leaves
from facm.derivative.errors import LostTangent


def named(names: str, *places: Any) -> frozenset[Any]:
    """The functions of these names, separated by spaces, wherever they are found among ``places``."""
    return frozenset(getattr(place, name) for name in names.split() for place in places if hasattr(place, name))


# Their result is the value without its graph.
CUTS = named("detach", torch, Tensor) | {Tensor.data.__get__}  # type: ignore[attr-defined]
# They hand numbers to Python, numpy or a kernel of the user's, or replace a tensor's content behind PyTorch's back.
LEAVES = (
    named("item tolist numpy __array__ __float__ __complex__ __dlpack__ data_ptr apply_ map_ map2_ set_", Tensor)
    | named("detach_", torch, Tensor)
    | {Tensor.data.__set__}  # type: ignore[attr-defined]
)
# New tensors that take nothing but shape and type from an argument, and draws that jump from one value to another.
CONSTANT = named(
    "zeros_like ones_like empty_like rand_like randn_like randint_like new_zeros new_ones new_empty bernoulli "
    "multinomial poisson",
    torch,
    Tensor,
)
# Whose value is their first argument's alone; the others give a shape or a type.
FIRST = named("expand_as view_as reshape_as type_as to", Tensor)
# Whose value is all but the first argument's, which gives a type.
REST = named("full_like new_full new_tensor", torch, Tensor)
# Keyword arguments that PyTorch reads as numbers, though it accepts a tensor.
NUMBERS = ("alpha", "beta", "eps", "lambd", "negative_slope", "p", "scale", "threshold")
GROUP_NORMS = frozenset({torch.nn.functional.group_norm, torch.group_norm})
DUALS = dual_functions()
TWICE = frozenset({torch.autograd.grad})
INTO_GRAD = frozenset({Tensor.backward, torch.autograd.backward})
ENERGY = "derivative = NoGraph(), which differentiates torch.autograd.grad as well, or FiniteDifference()"


def unpack(leaf: Any) -> tuple[Any, Tensor | None]:
    """(value, tangent) of a dual number; (leaf, None) of anything else."""
    if not is_real(leaf):
        return leaf, None
    primal, tangent = fwd.unpack_dual(leaf)
    return (leaf, None) if tangent is None else (primal, tangent)


def moves(leaf: Any) -> bool:
    """Whether ``leaf`` is a tensor with a tangent."""
    return unpack(leaf)[1] is not None


def check_arguments(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Raise LostTangent where a call with a moving argument would lose a tangent."""
    if func in LEAVES:
        raise LostTangent(
            f"{_name(func)} takes numbers that depend on x or t out of PyTorch or replaces them, so that their tangent "
            "would be lost.",
            "tensors and their operations instead, or derivative = FiniteDifference()",
        )
    if func in INTO_GRAD:
        raise LostTangent(f"{_name(func)} writes into .grad, which keeps no tangent.", ENERGY)
    if number := next((name for name in NUMBERS if moves(kwargs.get(name))), None):
        raise LostTangent(
            f"{_name(func)} reads its argument {number} as a number, and it depends on x or t.",
            "a product in its place, or derivative = FiniteDifference()",
        )


def check_inference_mode(args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Raise LostTangent in ``torch.inference_mode``, which switches forward mode off."""
    with forward_mode_enabled():
        if any(moves(leaf) for leaf in tree_leaves((args, kwargs))):
            raise LostTangent(
                "torch.inference_mode inside the network switches forward mode off.", "torch.no_grad() in its place"
            )


def check_result(func: Callable[..., Any], args: Sequence[Any], tangents: Any) -> None:
    """Raise LostTangent where no part of a result has a tangent, though an argument has one.

    tangents: Of each floating-point tensor of the result, None where it has none.
    """
    if tangents and all(d is None for d in tangents) and func not in CONSTANT and _value_moves(func, args):
        raise LostTangent(
            f"{_name(func)} returned a value without a tangent: it has no forward-mode derivative, or reads an "
            "argument that depends on x or t as a plain number.",
            "derivative = FiniteDifference(), or operations with a forward-mode derivative",
        )


def _value_moves(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    if func in FIRST:
        return moves(args[0])
    return func not in REST or any(moves(leaf) for leaf in tree_leaves(args[1:]))


def carried(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """``func``, one of CUTS, whose result keeps the tangent of its argument, in the same memory."""
    primal, tangent = unpack(args[0] if args else kwargs["input"])
    value = func(primal) if functorch_level() is None else primal.detach()  # there .data would keep the graph
    with torch.enable_grad():  # under no_grad, make_dual would forbid writing into the result later
        return value if tangent is None else fwd.make_dual(value, tangent)


def _name(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    if func in CUTS | LEAVES and name in ("__get__", "__set__"):
        return "Tensor.data"
    return f"{'Tensor.' if func in LEAVES | INTO_GRAD else ''}{name}()"


class KeepTangents(TorchFunctionMode):
    """For tangents that PyTorch propagates itself: no operation inside loses one without an error."""

    def __init__(self) -> None:
        super().__init__()
        self.level = functorch_level()

    def __enter__(self) -> KeepTangents:
        self.level = functorch_level()
        return super().__enter__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if functorch_level() != self.level or func in DUALS:  # in a transform of the network's own, or in a hook
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled():
            check_inference_mode(args, kwargs)
        if not any(moves(leaf) for leaf in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if func in CUTS:
            return carried(func, args, kwargs)
        check_arguments(func, args, kwargs)
        out = self.differentiated(func, args, kwargs)
        check_result(func, args, [unpack(leaf)[1] for leaf in tree_leaves(out) if is_real(leaf)])
        return out

    def differentiated(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The call itself, by PyTorch's own propagation."""
        return func(*contiguous_for(func, args), **kwargs)


def contiguous_for(func: Callable[..., Any], args: Sequence[Any]) -> Sequence[Any]:
    """Arguments that forward mode accepts: that of group norm fails on channels_last and other strided inputs."""
    if func not in GROUP_NORMS or not args or not moves(args[0]):
        return args
    primal, tangent = unpack(args[0])
    return (fwd.make_dual(primal.contiguous(), tangent.contiguous()), *args[1:])  # type: ignore[union-attr]


def is_real(leaf: Any) -> bool:
    """Whether ``leaf`` is a tensor that may have a tangent."""
    numbers = isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
    return numbers and leaf.layout is torch.strided
