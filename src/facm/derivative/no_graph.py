"""Value and tangent in two passes, the value with its graph and the tangent without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as fwd
import torch.nn.functional as nnf
from torch import Tensor

from facm.derivative.base import Derivative, Function, Pair
from facm.derivative.compiled import eagerly
from facm.derivative.errors import explained
from facm.derivative.inside_forward import innermost, inside_wrapper
from facm.derivative.lost_tangents import KeepTangents
from facm.derivative.whole_network import plain_attention

LINEAR = frozenset({nnf.linear, torch.conv1d, torch.conv2d, torch.conv3d, nnf.conv1d, nnf.conv2d, nnf.conv3d})


@dataclass(frozen=True)
class NoGraph(Derivative):
    """Two passes: an ordinary pass for the value, with fused attention and checkpointing, and one for the tangent.

    With the backward pass it costs about 5 forward passes, at the memory of an ordinary training step. The network runs
    twice, so that dropout must draw the same mask twice (:func:`facm.derivative.same_dropout`), and batch norm in train
    mode updates its statistics twice.
    """

    def __call__(self, function: Function, primals: Pair, tangents: Pair) -> Pair:
        network = innermost(function)
        with explained(network, "NoGraph()"):
            return inside_wrapper(_two_passes, function, primals, tangents)


def _two_passes(function: Function, primals: Pair, tangents: Pair) -> Pair:
    with torch.no_grad():
        tangent = _tangent(function, primals, tangents)
    return function(*primals), tangent


def _moves(weight: Tensor | None) -> bool:
    return weight is not None and fwd.unpack_dual(weight).tangent is not None


def _drops_on_a_gpu(
    query: Tensor, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, *_: Any, **__: Any
) -> bool:
    return query.is_cuda and dropout_p > 0


class _LinearRule(KeepTangents):
    """Linear maps and convolutions with constant weight and bias: the tangent is mapped without the bias.

    PyTorch's own rule creates a zero tangent for the weight and multiplies by it, a third product for nothing. Where
    the input is not contiguous it expands both over the batch first, which took five times as long as this rule.
    """

    def differentiated(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is nnf.scaled_dot_product_attention and _drops_on_a_gpu(*args, **kwargs):
            raise NotImplementedError(
                "attention: dropout_p > 0 has no tangent on a GPU, whose fused kernels draw another mask than the "
                "plain formula; set attention dropout to 0 or use eval()"
            )
        if func in LINEAR and not kwargs and len(args) >= 2 and not any(map(_moves, args[1:3])):
            x, dx = fwd.unpack_dual(args[0])
            if dx is not None:
                return fwd.make_dual(func(x, *args[1:]), func(dx, args[1], None, *args[3:]))
        return super().differentiated(func, args, kwargs)


def _tangent(function: Function, primals: Pair, tangents: Pair) -> Tensor:
    """dF without its graph."""
    with eagerly(), fwd.dual_level(), plain_attention(), _LinearRule():
        # Copies, since a network may write into its inputs.
        x, t = (fwd.make_dual(p.clone(), d.clone()) for p, d in zip(primals, tangents, strict=True))
        value, tangent = fwd.unpack_dual(function(x, t))
    return torch.zeros_like(value) if tangent is None else tangent
