"""State dicts: names without wrappers, and strict loading, whose error names every weight that does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from facm.core.finite import buffers_of, listed, non_finite


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or must not be read."""


WRAPPERS = frozenset(
    {
        "module",  # DataParallel, DDP, AveragedModel, accelerate
        "ema_model",  # ema-pytorch
        "_forward_module",  # Lightning's Fabric
        "_orig_mod",  # torch.compile
        "_checkpoint_wrapped_module",
        "_fsdp_wrapped_module",
        "_fpw_module",  # FSDP before PyTorch 2.0
    }
)
"""What wrappers of training programs add to the names of weights, wherever the wrapped module stands."""


def without_wrappers(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """``state`` by the names that the weights have without any wrapper.

    source: Where the weights come from, for the error. Raises ValueError where two names become one.
    """
    bare: dict[str, str] = {}
    for name in state:
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if short in bare:
            raise ValueError(f"{source} holds {short} twice, as {bare[short]} and as {name}; expected one of them")
        bare[short] = name
    return {short: state[name] for short, name in bare.items()}


def load_strictly(
    module: torch.nn.Module, state: Mapping[str, Tensor], source: str, may_miss: tuple[str, ...] = ()
) -> None:
    """Load weights; CheckpointError lists every missing, unexpected or misshapen one, or those that are not finite.

    source: Where the weights come from, for the error.
    may_miss: Prefixes of parameters that may be absent from ``state``, as they have no effect as initialised.
    """
    check_fits(module, {name: value.shape for name, value in state.items()}, source, may_miss)
    check_finite(module, state, source)
    module.load_state_dict({**module.state_dict(), **state}, strict=True)


def check_finite(module: torch.nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError if weights of ``module`` are not finite. Its buffers may be infinite, as masks are."""
    if bad := non_finite(state, buffers_of(module)):
        raise CheckpointError(f"{source} is no network to compute with: {listed(bad)} hold NaN or infinity")


def check_fits(
    module: torch.nn.Module, shapes: Mapping[str, Sequence[int]], source: str, may_miss: tuple[str, ...] = ()
) -> None:
    """Raise CheckpointError unless weights of these shapes fit ``module``; see :func:`load_strictly`."""
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    missing = [n for n in own if n not in shapes and not n.startswith(may_miss)]
    unexpected = [n for n in shapes if n not in own]
    misshapen = [
        f"{n} {tuple(shapes[n])} instead of {own[n]}" for n in own if n in shapes and tuple(shapes[n]) != own[n]
    ]
    wrong = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if wrong:
        raise CheckpointError(f"{source} does not fit {type(module).__name__}: {'; '.join(wrong)}")
