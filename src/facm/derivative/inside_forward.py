"""Running a derivative inside a network's forward and the wrappers around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from facm.core.torch_private import compiled_call, replace_forward, set_compiled_call
from facm.derivative.base import Function, Pair


def innermost(function: Any) -> Any:
    """The innermost network of ``function``, which may be a data-parallel wrapper; None for a plain function."""
    network = getattr(function, "network", None)
    return network if network is None or isinstance(network, nn.Module) else innermost(network) or network


def with_network(function: Any, network: Any) -> Any:
    """``function`` with another innermost network."""
    inner = function.network
    deeper = hasattr(inner, "network") and not isinstance(inner, nn.Module)
    return dataclasses.replace(function, network=with_network(inner, network) if deeper else network)


def redirected(module: nn.Module, method: Callable[..., Any], *args: Any, through: nn.Module | None = None) -> Any:
    """``method(forward, *args)`` in place of the module's forward, inside the hooks that surround it.

    The hooks of a sharded unit gather its parameters before forward and free them afterwards, so that a computation on
    its parameters must run in between.

    through: A wrapper around the module, which is called instead of the module.
    """
    forward = module.forward
    compiled = compiled_call(module)  # what is compiled is the module's own forward, not the method

    def restore() -> None:
        undo()
        set_compiled_call(module, compiled)

    def instead(*inner: Any) -> Any:
        restore()
        return method(forward, *inner)

    undo = replace_forward(module, instead)
    set_compiled_call(module, None)
    try:
        return (module if through is None else through)(*args)
    finally:
        restore()


def inside_wrapper(pair: Callable[[Function, Pair, Pair], Pair], function: Any, primals: Pair, tangents: Pair) -> Pair:
    """``pair(function, ...)``, inside one forward of the wrapper where the network is wrapped for data parallelism.

    Gradients are averaged over ranks only for what passes through the wrapper's forward, and a wrapper that copies
    buffers in place fails on tangents. One forward of the wrapper with plain tensors satisfies both.
    """
    wrapper = innermost(function)
    module = getattr(wrapper, "module", None)
    if not (isinstance(wrapper, nn.Module) and isinstance(module, nn.Module)):
        return pair(function, primals, tangents)

    def method(forward: Callable[..., Tensor], x: Tensor, t: Tensor, v: Tensor, dt: Tensor) -> Pair:
        return pair(with_network(function, forward), (x, t), (v, dt))

    return redirected(module, method, *primals, *tangents, through=wrapper)
