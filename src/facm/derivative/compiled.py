"""Compiled networks and their derivative.

Dual numbers must never enter compiled code: it would fail, or silently drop the tangent. Hence the derivative of a
compiled module is compiled as a unit with the dual level inside, and everything else that torch.compile made, functions
inside a network included, runs eagerly.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from facm.core.torch_private import before_scripted_calls, compiler_is_loaded, inside_dual_level, tree_leaves
from facm.derivative.errors import LostTangent
from facm.derivative.lost_tangents import moves

Tensors = tuple[Tensor, ...]


def eagerly() -> contextlib.AbstractContextManager[Any]:
    """Run all that is compiled as the Python that it was compiled from. Inside code that is being compiled: nothing.

    Scripted code has no Python any more, and loses tangents without a word: LostTangent is raised where one enters it.
    """
    return contextlib.nullcontext() if torch.compiler.is_compiling() else _eagerly()


@contextlib.contextmanager
def _eagerly() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if compiler_is_loaded():
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(before_scripted_calls(_check_scripted))
        yield


def _check_scripted(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if inside_dual_level() and any(moves(leaf) for leaf in tree_leaves((args, kwargs))):
        raise LostTangent(
            f"torch.jit's {name!r} may drop tangents.",
            "the Python that it was scripted from, or derivative = FiniteDifference()",
        )


@functools.cache
def compiled(pair: Callable[..., Any]) -> Callable[..., Any]:
    """``pair``, compiled as one graph with static shapes.

    A graph break inside a dual level would let duals leave compiled code; the batch size of a run does not change.
    """
    return torch.compile(pair, fullgraph=True, dynamic=False)
