"""Chain-JVP (Sec. 3.3): the derivative block by block, (h, dh) -> (y, dy), with the tangent detached in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from facm.core.component import component
from facm.core.cond import Cond
from facm.core.modules import blocks_of, is_compiled, unwrapped
from facm.core.tensors import at_least_float32
from facm.core.torch_private import tree_map
from facm.derivative.base import Derivative, Function, Pair, Prediction
from facm.derivative.compiled import eagerly
from facm.derivative.compiled_block import compiled_block_pair
from facm.derivative.dual_mode import op_level_pair
from facm.derivative.errors import explained, no_checkpointing
from facm.derivative.fixed_dropout import SameDropout
from facm.derivative.inside_forward import innermost, inside_wrapper, redirected
from facm.derivative.whole_network import keeping_tangents, plain_attention, whole_pair

Tensors = tuple[Tensor, ...]


@runtime_checkable
class Chained(Protocol):
    """A network that exposes its blocks: F(x, t, cond) = leave(block_n(... block_1(enter(x, t, cond)))).

    The state between blocks is (h, *rest): each block maps it, with its constants, to the next h; ``rest`` is constant.
    """

    def enter(self, x: Tensor, t: Tensor, cond: Cond = None, **times: Tensor) -> Tensors:
        """The state (h, *rest) before the first block."""
        ...

    def links(self) -> Sequence[tuple[nn.Module, tuple[Any, ...]]]:
        """The blocks with their constants: h = block(h, *rest, *constants)."""
        ...

    def leave(self, h: Tensor, *rest: Tensor) -> Tensor:
        """The network's output from the state after the last block."""
        ...


@dataclass(frozen=True)
@component
class Chain(Derivative):
    """Forward mode block by block: the tangent's graph lives no longer than one block, whatever the depth.

    Raises ValueError where the blocks are unknown, are not called once each in order, or cannot be checkpointed.
    """

    blocks: tuple[str, ...] = ()
    """Names of the blocks or of the ModuleLists that hold them; empty: the network's own chain or outermost lists."""
    op_level: bool = False
    """Differentiate each block operation by operation, as OpLevel does, instead of by torch.func.jvp."""
    checkpoint: bool = False
    """Keep only the state between blocks and recompute the rest in the backward pass; needs a network with a chain."""

    def __call__(self, function: Function, primals: Pair, tangents: Pair) -> Pair:
        network = innermost(function)
        inner = unwrapped(network)
        if not isinstance(function, Prediction) or not isinstance(inner, nn.Module):
            raise ValueError(
                f"derivative = {self} needs to see the network: expected a facm.derivative.Prediction of an nn.Module, "
                f"got {type(function).__name__}; OpLevel() takes any function"
            )
        with explained(inner, f"{self}"):
            if isinstance(inner, Chained) and not self.blocks:
                return self._links(function, inner, network, primals, tangents)
            if self.checkpoint:
                raise ValueError(
                    f"derivative = {self}: checkpoint = True needs a network that offers its chain (enter, links, "
                    f"leave), and {type(inner).__name__} does not; use OpLevel() with activation checkpointing instead"
                )
            return self._named(function, inner, network, primals, tangents)

    def _pair(self, function: Callable[..., Tensor], primals: Tensors, tangents: Tensors) -> tuple[Tensor, Tensor]:
        return (op_level_pair if self.op_level else whole_pair)(function, primals, tangents)

    # A network that exposes its chain: explicit pairs, each computed inside its block's forward.

    def _links(self, function: Prediction, inner: Any, outer: nn.Module, primals: Pair, tangents: Pair) -> Pair:
        draws = function.network if isinstance(function.network, SameDropout) else None

        def run(_: Any, x: Tensor, t: Tensor, v: Tensor, dt: Tensor) -> Pair:
            if draws is not None:
                draws.replay()
            enter = lambda x, t: inner.enter(x, cond=function.cond, **function.times(t))  # noqa: E731
            state, d_state = self._several(enter, (x, t), (v, dt))
            for block, constants in inner.links():
                method = partial(self._block, block if is_compiled(block) else None)
                h, dh = redirected(block, method, state, d_state, constants)
                state, d_state = (h, *state[1:]), (dh, *d_state[1:])
            leave = lambda *state: at_least_float32(inner.leave(*state))  # noqa: E731
            return self._pair(leave, state, d_state)

        return redirected(inner, run, *primals, *tangents, through=outer)

    def _block(
        self,
        compiled: nn.Module | None,
        forward: Callable[..., Tensor],
        state: Tensors,
        d_state: Tensors,
        constants: tuple[Any, ...],
    ) -> tuple[Tensor, Tensor]:
        def pair(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            n = len(tensors) // 2
            state, d_state = tensors[:n], tensors[n:]
            if compiled is not None:
                strategy = op_level_pair if self.op_level else whole_pair
                return compiled_block_pair(strategy, compiled, forward, constants, state, d_state)
            return self._pair(lambda *state: forward(*state, *constants), state, d_state)

        if self.checkpoint and torch.is_grad_enabled():
            return checkpoint(pair, *state, *d_state, use_reentrant=False)
        return pair(*state, *d_state)

    def _several(self, function: Callable[..., Tensors], primals: Pair, tangents: Pair) -> tuple[Tensors, Tensors]:
        """The values and tangents of a function with several outputs."""
        with eagerly(), plain_attention():
            values, derivatives = torch.func.jvp(keeping_tangents(function), primals, tangents)  # type: ignore[misc]
        return values, tuple(d.detach() for d in derivatives)

    # Any other network: one forward-mode pass, whose tangent is detached after every block.

    def _named(self, function: Prediction, inner: nn.Module, outer: nn.Module, primals: Pair, tangents: Pair) -> Pair:
        blocks = blocks_of(inner, self.blocks)
        if not blocks:
            raise ValueError(
                f"derivative = {self}: {type(inner).__name__} has no ModuleList to take blocks from; "
                "expected blocks = names of its blocks, or derivative = OpLevel()"
            )
        called: list[str] = []

        def cut(name: str) -> Callable[..., Any]:
            def hook(module: nn.Module, args: Any, out: Any) -> Any:
                called.append(name)
                return tree_map(_cut, out)

            return hook

        with ExitStack() as hooks:
            for name, block in blocks.items():
                hooks.callback(block.register_forward_hook(cut(name)).remove)
            if not self.op_level:
                hooks.enter_context(no_checkpointing())
            pair = inside_wrapper(self._pair, function, primals, tangents)
        if called != list(blocks):
            raise ValueError(
                f"derivative = {self}: {_difference(called, list(blocks))}, so they are not a chain; expected blocks "
                "that the network calls once each, in the order given, or derivative = OpLevel()"
            )
        return pair


def _cut(out: Any) -> Any:
    if not isinstance(out, Tensor) or not out.is_floating_point():
        return out
    primal, tangent = fwd.unpack_dual(out)
    return out if tangent is None else fwd.make_dual(primal, tangent.detach())


def _difference(called: list[str], expected: list[str]) -> str:
    """How the blocks that a network called differ from one call each, in order."""
    if unused := [name for name in expected if name not in called]:
        return f"block {unused[0]!r} is never called"
    if repeated := [name for name in expected if called.count(name) > 1]:
        return f"block {repeated[0]!r} is called {called.count(repeated[0])} times"
    place = next(i for i, (a, b) in enumerate(zip(called, expected, strict=True)) if a != b)
    return f"block {called[place]!r} is called before {expected[place]!r}"
