"""What a fused operation is, and when its plain formula runs in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from facm.core.torch_private import functorch_level, inside_dual_level

Tangents = Sequence[Tensor | None]


class Fused:
    """An operation with a backward pass and a tangent of its own.

    It is a torch function: modes see one call. Compiled code, ``torch.func`` and PyTorch's own forward mode get the
    plain formula: the compiler fuses it as well, and it has every derivative.

    formula: the operation in PyTorch's own operations.
    function: the same as an autograd function, which returns the value and what the tangent needs of it.
    tangent: (arguments, their tangents, what the function kept) -> the value's tangent, under no_grad; None where it
        does not cover these arguments.
    constants: places of arguments that the function has no gradient for; where one needs it, the formula runs.
    """

    def __init__(
        self,
        formula: Callable[..., Tensor],
        function: type[torch.autograd.Function],
        tangent: Callable[[Sequence[Any], Tangents, Sequence[Tensor]], Tensor | None],
        constants: Sequence[int] = (),
    ) -> None:
        self.constants = constants
        self.formula, self.function, self.tangent = formula, function, tangent
        self.__name__, self.__doc__ = formula.__name__, formula.__doc__

    def __call__(self, *args: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return self.formula(*args)
        tensors = [a for a in args if isinstance(a, Tensor)]
        if has_torch_function(tensors):
            return handle_torch_function(self, tensors, *args)
        if self._learns_constants(args):
            return self.formula(*args)
        if functorch_level() is not None or (inside_dual_level() and any(map(_moves, tensors))):
            return self.formula(*args)
        return self.function.apply(*args)[0]

    def pair(self, args: Sequence[Any], tangents: Tangents) -> tuple[Tensor, Tensor] | None:
        """The value of plain tensors with its graph, and its tangent without one; None where there is no rule."""
        if self._learns_constants(args):
            return None
        value, *others = self.function.apply(*args)
        with torch.no_grad():
            tangent = self.tangent(args, tangents, others)
        return None if tangent is None else (value, tangent)

    def _learns_constants(self, args: Sequence[Any]) -> bool:
        return torch.is_grad_enabled() and any(args[i].requires_grad for i in self.constants)


def _moves(x: Tensor) -> bool:
    return fwd.unpack_dual(x).tangent is not None


def keep(ctx: Any, arguments: Sequence[Any], *others: Tensor) -> None:
    """Keep an autograd function's arguments for its backward pass, and other tensors."""
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    ctx.save_for_backward(*tensors, *others)
    ctx.others, ctx.arguments = len(others), [None if isinstance(a, Tensor) else (a,) for a in arguments]


def kept(ctx: Any) -> tuple[list[Any], tuple[Tensor, ...]]:
    """What :func:`keep` kept: the arguments and the other tensors."""
    saved = iter(ctx.saved_tensors)
    return [next(saved) if constant is None else constant[0] for constant in ctx.arguments], tuple(saved)


def backward_of(formula: Callable[..., Tensor]) -> Callable[[Callable[..., Any]], Any]:
    """A decorator for a backward pass (ctx, gradient) -> gradients: where its own derivative is asked for
    (create_graph), the formula's takes its place."""

    def decorate(backward: Callable[..., Any]) -> Any:
        def either(ctx: Any, gradient: Tensor | None, *_: Any) -> Any:
            if gradient is None:
                return (None,) * len(ctx.needs_input_grad)
            if not torch.is_grad_enabled():
                return backward(ctx, gradient)
            arguments, _ = kept(ctx)
            wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
            out = formula(*arguments)
            inputs = [arguments[i] for i in wanted]
            found = torch.autograd.grad(out, inputs, gradient.to(out.dtype), create_graph=True, allow_unused=True)
            return tuple(found[wanted.index(i)] if i in wanted else None for i in range(len(arguments)))

        return staticmethod(either)

    return decorate


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype in which a product would take ``x``, None without autocast: what comes before is written in it, in
    place of a cast."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def without_autocast(x: Tensor) -> Any:
    """The dtypes inside are chosen by hand."""
    device = x.device.type
    return torch.autocast(device if torch.amp.is_autocast_available(device) else "cpu", enabled=False)


def into(dtype: torch.dtype, operation: Callable[..., Tensor], *args: Any, like: Tensor) -> Tensor:
    """``operation(*args)`` of at least float32 tensors, written in ``dtype`` at once: a GPU casts on the way."""
    if like.dtype == dtype:
        return operation(*args, out=like)
    return operation(*args, out=torch.empty_like(like, dtype=dtype))
