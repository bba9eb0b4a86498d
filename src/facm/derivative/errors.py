"""Errors for networks that forward mode cannot differentiate: they name the module and the operation."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import disable_saved_tensors_hooks

# The messages of PyTorch 2.11 to 2.13 about an operation without a formula, an autograd Function without jvp and a
# nested transform, and of this package about attention.
FORWARD_MODE = re.compile(
    r"forward (mode )?AD|forward-mode|\bjvp\b|has no tangent|would mutate a captured", re.IGNORECASE
)
CHECKPOINTING = "activation checkpointing inside torch.func.jvp, a forward-mode pass whose backward fails."


TRANSFORMS: tuple[tuple[str, str, str], ...] = (
    (
        r"requires_grad_\(\)|autograd\.functional",
        "torch.autograd inside the network does not work under torch.func.jvp.",
        "derivative = NoGraph(), which differentiates it as well, or FiniteDifference()",
    ),
    (
        r"TensorWrapper|version_counter for inference|functions with out=",
        "an operation inside the network does not work under torch.func.jvp.",
        "derivative = OpLevel() or FiniteDifference()",
    ),
    (
        r"aten::_(unpack|make)_dual|Nested forward mode AD|dual_level\(\) cannot be nested",
        "a transform of torch.func (vmap, jvp, jacfwd) inside the network cannot be nested here.",
        "derivative = WholeNetwork(), which nests them, or FiniteDifference()",
    ),
)
"""Patterns of PyTorch's errors about a transform inside the network, what they mean, and the strategies that work."""


class ForwardModeError(RuntimeError):
    """A part of the network has no forward-mode derivative."""


class LostTangent(NotImplementedError):
    """An operation would lose a tangent; ``advice`` says what helps."""

    def __init__(self, said: str, advice: str) -> None:
        super().__init__(said)
        self.advice = advice


@contextlib.contextmanager
def explained(network: Any, strategy: str) -> Iterator[None]:
    """Replace PyTorch's error about forward mode by one that names the module and the operation."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        said = None if isinstance(error, ForwardModeError) else _said(error, strategy)
        if said is None:
            raise
        raise ForwardModeError(
            f"derivative = {strategy} cannot differentiate {_place(error.__traceback__, network)}: {said}"
        ) from error


def _said(error: Exception, strategy: str) -> str | None:
    """What is wrong and what helps; None for an error that is not about forward mode."""
    message = str(error)
    if isinstance(error, LostTangent):
        return f"{message} What helps: {error.advice}"
    for pattern, meaning, advice in TRANSFORMS:
        if re.search(pattern, message):
            return f"{meaning} What helps: {advice}"
    if not FORWARD_MODE.search(message):
        return None
    others = "" if strategy.startswith("OpLevel") else "OpLevel(), which needs it of single operations only, "
    return (
        f"{message.strip().splitlines()[0]} Expected operations with a forward-mode derivative; what helps: "
        f"derivative = {others}FiniteDifference(), which needs none, or a jvp on the network's autograd Function"
    )


@contextlib.contextmanager
def no_checkpointing() -> Iterator[None]:
    """Refuse activation checkpointing inside the context, where its backward pass would fail with an unclear error.

    What ``torch.func.jvp`` saves cannot be recomputed after it. Hooks on saved tensors from outside stay allowed.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(RuntimeError):  # raised where hooks are active already
            stack.enter_context(disable_saved_tensors_hooks(CHECKPOINTING))
        yield


def _place(trace: TracebackType | None, network: Any) -> str:
    """The innermost module whose forward raised the error, by its name in the network, and the autograd Function."""
    names = {id(m): name for name, m in network.named_modules()} if isinstance(network, nn.Module) else {}
    found, function = "the network", ""
    while trace is not None:
        frame = trace.tb_frame
        module, called = frame.f_locals.get("self"), frame.f_locals.get("cls")
        if isinstance(module, nn.Module) and not frame.f_code.co_filename.endswith("nn/modules/module.py"):
            name = names.get(id(module))
            where = f"{frame.f_code.co_filename}:{trace.tb_lineno}"
            found = (
                f"module {name!r} ({type(module).__name__}, {where})" if name else f"{type(module).__name__} ({where})"
            )
        if isinstance(called, type) and issubclass(called, torch.autograd.Function):
            function = f", in the autograd Function {called.__name__}"
        trace = trace.tb_next
    return found + function
