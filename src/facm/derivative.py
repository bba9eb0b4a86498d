"""The total derivative of the network along the flow, behind one seam (Eq. 7 and 16).

    F, dF = derivative(function, (x_t, t), (v, 1))

``function(x, t)`` evaluates the network; the value carries the graph for the backward pass, the tangent dF never does:
it is only ever used under stop-gradient (Alg. 1, line 7). Fused attention has no forward-mode derivative in PyTorch, so
the tangent's pass runs attention by its plain formula, here and only here; nothing has to be switched off outside.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.autograd.forward_ad as fwd
import torch.nn.functional as nnf
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Function = Callable[[Tensor, Tensor], Tensor]
Pair = tuple[Tensor, Tensor]


@runtime_checkable
class Derivative(Protocol):
    def __call__(self, function: Function, primals: Pair, tangents: Pair) -> Pair:
        """(F, dF): value with graph and tangent without, both of F's shape.

        primals: x_t (B, ...), t (B,). tangents: their derivatives along the flow, v (B, ...) and ones (B,).
        """
        ...


def plain_attention() -> AbstractContextManager[Any]:
    """Attention by its plain formula, which has a forward-mode derivative."""
    return sdpa_kernel(SDPBackend.MATH)


@dataclass(frozen=True)
class WholeNetwork:
    """One forward-mode pass through the whole network, the tangent's graph included.

    The naive way, kept as the reference: about 5 forward passes with the backward, and the most memory.
    """

    def __call__(self, function: Function, primals: Pair, tangents: Pair) -> Pair:
        with plain_attention():
            value, tangent = torch.func.jvp(function, primals, tangents)  # type: ignore[misc]
        return value, tangent.detach()


@dataclass(frozen=True)
class NoGraph:
    """Two passes: the value with its graph (fused attention and all), the tangent without one.

    About 5 forward passes with the backward; the memory of an ordinary training pass.
    """

    def __call__(self, function: Function, primals: Pair, tangents: Pair) -> Pair:
        with torch.no_grad():
            tangent = _tangent(function, primals, tangents)
        return function(*primals), tangent


LINEAR = frozenset({nnf.linear, torch.conv1d, torch.conv2d, torch.conv3d, nnf.conv1d, nnf.conv2d, nnf.conv3d})


def _moves(weight: Tensor | None) -> bool:
    return weight is not None and fwd.unpack_dual(weight).tangent is not None


class _LinearRule(TorchFunctionMode):
    """Linear maps and convolutions with constant weight and bias: the tangent is the map of the tangent, without bias.

    PyTorch's own rule makes a zero tangent for the weight and multiplies by it, a third product for nothing; where the
    input is not contiguous it expands both over the batch first (measured: five times this rule's whole pass).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LINEAR and not kwargs and len(args) >= 2 and not any(map(_moves, args[1:3])):
            x, dx = fwd.unpack_dual(args[0])
            if dx is not None:
                return fwd.make_dual(func(x, *args[1:]), func(dx, args[1], None, *args[3:]))
        return func(*args, **(kwargs or {}))


def _tangent(function: Function, primals: Pair, tangents: Pair) -> Tensor:
    """dF alone, without graph."""
    with fwd.dual_level(), plain_attention(), _LinearRule():
        x, t = (fwd.make_dual(p, d) for p, d in zip(primals, tangents, strict=True))
        value, tangent = fwd.unpack_dual(function(x, t))
    return torch.zeros_like(value) if tangent is None else tangent


@dataclass(frozen=True)
class FiniteDifference:
    """dF ~ (F(x + h v, t + h) - F(x - h v, t - h)) / 2h: no forward mode needed at all.

    Error O(h^2) plus rounding/h: about 2e-4 relative at h = 5e-3 in fp32 for networks that embed t in [0, 2] unscaled;
    wrong in bf16. For a time scaled by 1000 choose h = 1e-5. Near the ends F is asked a step h outside [0, 1].
    """

    h: float = 5e-3

    def __post_init__(self) -> None:
        if not self.h > 0:
            raise ValueError(f"FiniteDifference: h = {self.h}, expected a positive step")

    def __call__(self, function: Function, primals: Pair, tangents: Pair) -> Pair:
        (x, t), (v, dt) = primals, tangents
        with torch.no_grad():
            forward = function(x + self.h * v, t + self.h * dt)
            backward = function(x - self.h * v, t - self.h * dt)
        return function(x, t), (forward - backward) / (2 * self.h)


def same_dropout(network: Any) -> Any:
    """``network``, drawing the same dropout mask at every call: the anchor, the shortcut and its tangent in one step
    must be one function (METHOD: traps). In eval mode there is nothing to draw and the network is returned as it is."""
    if not getattr(network, "training", False):
        return network
    device = next((p.device for p in network.parameters() if p.device.type == "cuda"), None)
    state = torch.get_rng_state() if device is None else torch.cuda.get_rng_state(device)

    def call(*args: Any, **kwargs: Any) -> Tensor:
        if device is None:
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)
        return network(*args, **kwargs)

    call.auxiliary_time = getattr(network, "auxiliary_time", False)  # type: ignore[attr-defined]
    return call
