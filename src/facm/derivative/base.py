"""What a strategy is given and what it returns; and how it gets inside the wrappers of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from facm.core.tensors import at_least_float32

Pair = tuple[Tensor, Tensor]
Function = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class Derivative(Protocol):
    def __call__(self, function: Function, primals: Pair, tangents: Pair) -> Pair:
        """(F, dF): value with graph and tangent without, both of F's shape.

        function: (x, t) -> F; a :class:`Prediction` where the strategy needs to see the network. primals: x_t (B, ...),
        t (B,). tangents: their derivatives along the flow, v (B, ...) and ones (B,).
        """
        ...


@dataclass(frozen=True, eq=False)
class Prediction:
    """(x, t) -> F(x, c(t), cond) in at least float32: the network as the derivative sees it.

    times: t -> the network's time arguments; differentiating through it is Eq. 16.
    """

    network: Any
    times: Callable[[Tensor], Mapping[str, Tensor]]
    cond: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return at_least_float32(self.network(x, cond=self.cond, **self.times(t)))
