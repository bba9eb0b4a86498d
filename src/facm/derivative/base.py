"""The protocol of a strategy, and the function that it differentiates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from facm.core.cond import Cond
from facm.core.tensors import at_least_float32

Pair = tuple[Tensor, Tensor]
Function = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class Derivative(Protocol):
    """A strategy for the total derivative along the flow."""

    def __call__(self, function: Function, primals: Pair, tangents: Pair) -> Pair:
        """(F, dF): the value with its graph and the tangent without one, both of F's shape.

        function: Maps (x, t) to F; a :class:`Prediction` where the strategy needs access to the network.
        primals: x_t (B, ...) and t (B,).
        tangents: Their derivatives along the flow, v (B, ...) and ones (B,).
        """
        ...


@dataclass(frozen=True, eq=False)
class Prediction:
    """The function (x, t) -> F(x, c(t), cond) in at least float32 that a derivative is taken of.

    network: The network F, or a wrapper around it.
    times: Maps t (B,) to the network's time arguments; differentiating through it is Eq. 16.
    cond: The condition, one entry per sample, or None.
    """

    network: Any
    times: Callable[[Tensor], Mapping[str, Tensor]]
    cond: Cond = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return at_least_float32(self.network(x, cond=self.cond, **self.times(t)))
