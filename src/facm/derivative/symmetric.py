"""Operations whose Jacobian is symmetric: what maps gradients backward maps tangents forward, in one fused kernel.

    y = f(x) for each element: dy = f'(x) dx
    norms without their weight, r (I - 1 1^T / D - h h^T / D); softmax, diag(y) - y y^T

PyTorch's own forward mode computes the value a second time, and a norm's tangent in about ten passes over memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from facm.core.torch_private import (
    gelu_backward,
    group_norm_backward,
    layer_norm_backward,
    rms_norm_backward,
    rms_norm_root,
    sigmoid_backward,
    silu_backward,
    softmax_backward,
    tanh_backward,
)
from facm.derivative.lost_tangents import named

Rule = Callable[..., Tensor | None]
"""(dx, y, x, *arguments as of the operation) -> dy; dx, x and y have one floating-point type."""


def _softmax(
    dx: Tensor, y: Tensor, x: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Tensor | None:
    return None if dim is None else softmax_backward(dx, y, dim)


def _layer_norm(
    dx: Tensor, y: Tensor, x: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    dy = layer_norm_backward(dx, x, tuple(normalized_shape), eps)
    return dy if weight is None else dy.mul_(weight)


def _rms_norm(
    dx: Tensor, y: Tensor, x: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None
) -> Tensor:
    rows = (*x.shape[: x.ndim - len(normalized_shape)], math.prod(normalized_shape))
    flat = x.reshape(rows)
    root = rms_norm_root(flat, torch.finfo(x.dtype).eps if eps is None else eps)
    dy = rms_norm_backward(dx.reshape(rows), flat, root).reshape(x.shape)
    return dy if weight is None else dy.mul_(weight)


def _group_norm(
    dx: Tensor, y: Tensor, x: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    dy = group_norm_backward(dx.contiguous(), x.contiguous(), num_groups, eps)
    return dy if weight is None else dy.mul_(weight.reshape(-1, *[1] * (x.ndim - 2)))


BY_NAME: dict[str, Rule] = {  # of torch, Tensor and torch.nn.functional
    "sigmoid": lambda dx, y, x: sigmoid_backward(dx, y),
    "tanh": lambda dx, y, x: tanh_backward(dx, y),
    "exp": lambda dx, y, x: dx * y,
    "square": lambda dx, y, x: (dx * x).mul_(2),
    "rsqrt": lambda dx, y, x: (dx * -0.5).mul_(y.pow(3)),
    "sqrt": lambda dx, y, x: dx / (2 * y),
    "sin": lambda dx, y, x: dx * x.cos(),
    "cos": lambda dx, y, x: (dx * x.sin()).neg_(),
}
RULES: dict[Callable[..., Any], Rule] = {
    nnf.silu: lambda dx, y, x, inplace=False: silu_backward(dx, x, torch.empty_like(y)),
    nnf.gelu: lambda dx, y, x, approximate="none": gelu_backward(dx, x, approximate),
    nnf.softmax: _softmax,
    torch.softmax: lambda dx, y, x, dim, dtype=None: softmax_backward(dx, y, dim),
    Tensor.softmax: lambda dx, y, x, dim, dtype=None: softmax_backward(dx, y, dim),
    nnf.layer_norm: _layer_norm,
    nnf.rms_norm: _rms_norm,
    nnf.group_norm: _group_norm,
    **{function: rule for name, rule in BY_NAME.items() for function in named(name, torch, Tensor, nnf)},
}


def symmetric_tangent(
    func: Callable[..., Any], x: Tensor, dx: Tensor, y: Any, args: Any, kwargs: dict[str, Any]
) -> Tensor | None:
    """dy of y = func(x, *args, **kwargs), one of RULES, where only x moves; None where the kernels do not apply."""
    alike = isinstance(y, Tensor) and y.is_floating_point() and x.layout is dx.layout is torch.strided
    if (
        not alike
        or dx.numel() == 0
        or any(isinstance(a, Tensor) and a.dtype != y.dtype for a in (*args, *kwargs.values()))
    ):
        return None
    return RULES[func](dx.to(y.dtype), y.detach(), x.detach().to(y.dtype), *args, **kwargs)
