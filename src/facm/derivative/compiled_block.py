"""The derivative of compiled blocks: one graph for all blocks that are alike, with their parameters as its inputs.

torch.compile's front end takes the rules of forward mode apart line by line, which is most of the work where Inductor's
results are in its cache. Here it sees one opaque call, into which AOTAutograd traces by running it.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from facm.core.torch_private import has_hooks, module_bookkeeping, traced_by_running
from facm.derivative.compiled import compiled

Tensors = tuple[Tensor, ...]
Pair = Callable[[Callable[..., Tensor], Tensors, Tensors], tuple[Tensor, Tensor]]

VALUES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)


def compiled_block_pair(
    pair: Pair,
    block: nn.Module,
    forward: Callable[..., Tensor],
    constants: tuple[Any, ...],
    state: Tensors,
    d_state: Tensors,
) -> tuple[Tensor, Tensor]:
    """``pair(lambda *state: forward(*state, *constants), state, d_state)``, compiled.

    pair: one of the package's strategies, such as ``op_level_pair``.
    forward: the block's own forward, or one in its place, such as activation checkpointing's, whose graph is the front
    end's to make: only it knows what to compute again.
    """
    if not (inspect.ismethod(forward) and forward.__self__ is block):
        return compiled(_pair_of)(pair, forward, constants, state, d_state)
    try:
        alike = (pair, forward.__func__, _structure(block, hooks=True), structure(constants))
    except _Unknown:
        return compiled(_pair_of)(pair, forward, constants, state, d_state)
    graph = _GRAPHS.get(alike)
    if graph is None:
        graph = _GRAPHS[alike] = _Graph(pair)
    return graph(_Parts(block, forward.__func__, constants), state, d_state)


def _pair_of(
    pair: Pair, forward: Callable[..., Tensor], constants: tuple[Any, ...], state: Tensors, d_state: Tensors
) -> tuple[Tensor, Tensor]:
    return pair(lambda *state: forward(*state, *constants), state, d_state)


class _Parts(nn.Module):
    """A block and its constants, of which those that are modules have parameters and buffers, too."""

    def __init__(self, block: nn.Module, forward: Callable[..., Tensor], constants: tuple[Any, ...]) -> None:
        super().__init__()
        self.block, self.constants = block, nn.ModuleList(c for c in constants if isinstance(c, nn.Module))
        self.given = (forward, constants)  # in a tuple, where no module is registered twice

    def forward(self, *state: Tensor) -> Tensor:
        forward, constants = self.given
        return forward(self.block, *state, *constants)


class _Graph:
    """A compiled function of parameters, buffers, state and tangents.

    It does not keep the block that it was traced from: the next trace, for another shape, takes the block at hand.
    """

    def __init__(self, pair: Pair) -> None:
        self.parts: _Parts | None = None
        self.names: tuple[str, ...] = ()

        def by_running(values: Tensors, state: Tensors, d_state: Tensors) -> tuple[Tensor, Tensor]:
            parts, given = self.parts, dict(zip(self.names, values, strict=True))
            assert parts is not None
            return pair(lambda *state: functional_call(parts, given, state), state, d_state)

        traced = traced_by_running(by_running)

        def run(values: Tensors, state: Tensors, d_state: Tensors) -> tuple[Tensor, Tensor]:
            return traced(values, state, d_state)

        # Compiled code is kept by code object, of which all blocks' would be one: too many shapes for one of them.
        self.run = compiled(types.FunctionType(run.__code__.replace(), globals(), closure=run.__closure__))

    def __call__(self, parts: _Parts, state: Tensors, d_state: Tensors) -> tuple[Tensor, Tensor]:
        tensors = dict(parts.named_parameters()) | dict(parts.named_buffers())
        self.parts, self.names = parts, tuple(tensors)
        try:
            return self.run(tuple(tensors.values()), state, d_state)
        finally:
            self.parts = None


_GRAPHS: dict[Hashable, _Graph] = {}


class _Unknown(Exception):
    """Two such values may be alike or not."""


def structure(value: Any) -> Hashable:
    """A key that is the same for two values only where they mean the same to a function of tensors: of modules, where
    they compute the same function of parameters, buffers and inputs. Raises _Unknown where that cannot be told."""
    if isinstance(value, nn.Module):
        return _structure(value)
    if isinstance(value, (*FUNCTIONS, type)):
        return value
    if type(value) in VALUES:
        return type(value), value
    if isinstance(value, tuple | list):
        return type(value), tuple(map(structure, value))
    if isinstance(value, dict):
        return type(value), tuple((structure(key), structure(item)) for key, item in value.items())
    if dataclasses.is_dataclass(value):
        return type(value), tuple((f.name, structure(getattr(value, f.name))) for f in dataclasses.fields(value))
    raise _Unknown


def _structure(module: nn.Module, hooks: bool = False) -> Hashable:
    """hooks: whether ``module`` may have hooks, since they run outside of what is compiled."""
    if has_hooks(module) and not hooks:
        raise _Unknown
    parameters, buffers, children, others = module_bookkeeping(module)
    attributes = tuple((name, structure(value)) for name, value in others.items())
    inside = tuple((name, None if child is None else _structure(child)) for name, child in children.items())
    tensors = tuple((name, value is None) for name, value in (*parameters.items(), *buffers.items()))
    return type(module), module.training, attributes, inside, tensors
