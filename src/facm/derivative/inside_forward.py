"""How a derivative gets inside a network's own forward, and the wrappers around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from facm.core.torch_private import compiled_call, replace_forward, set_compiled_call
from facm.derivative.base import Function, Pair


def innermost(function: Any) -> Any:
    """The network at the bottom of ``function``, a wrapper's included, or None if there is none to see."""
    network = getattr(function, "network", None)
    return network if network is None or isinstance(network, nn.Module) else innermost(network) or network


def with_network(function: Any, network: Any) -> Any:
    """``function`` with another network at its bottom."""
    inner = function.network
    deeper = hasattr(inner, "network") and not isinstance(inner, nn.Module)
    return dataclasses.replace(function, network=with_network(inner, network) if deeper else network)


def redirected(module: nn.Module, method: Callable[..., Any], *args: Any, through: nn.Module | None = None) -> Any:
    """``method(forward, *args)`` in place of the module's own forward, inside the hooks that surround it.

    That is how a computation gets inside a sharded unit, whose hooks gather its parameters before forward and let go of
    them after. through: a wrapper of the module to be called instead of the module itself.
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
    """``pair(function, ...)``; where the network is wrapped for data parallelism, inside one forward of the wrapper.

    Only what passes through the wrapper's forward has its gradients averaged over ranks, and a wrapper that copies
    buffers in place cannot be entered with tangents: one forward, entered with plain tensors, is right on both counts.
    """
    wrapper = innermost(function)
    module = getattr(wrapper, "module", None)
    if not (isinstance(wrapper, nn.Module) and isinstance(module, nn.Module)):
        return pair(function, primals, tangents)

    def method(forward: Callable[..., Tensor], x: Tensor, t: Tensor, v: Tensor, dt: Tensor) -> Pair:
        return pair(with_network(function, forward), (x, t), (v, dt))

    return redirected(module, method, *primals, *tangents, through=wrapper)
