"""A batch's condition: nothing, one tensor, or several by name, such as a prompt's embeddings, mask and pooled vector.

Every part has one entry per sample along its first axis. What was padded to another length along the second axis is
padded further with zeros where two conditions meet; a part of booleans, the mask, then says what is padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

Cond = Tensor | Mapping[str, Tensor] | None
"""(B, ...), or named tensors (B, ...), or None where there is no condition."""


def parts(cond: Cond) -> dict[str, Tensor]:
    """The tensors by name; a plain tensor's name is empty, and None has none."""
    if cond is None:
        return {}
    return {"": cond} if isinstance(cond, Tensor) else dict(cond)


def mapped(function: Callable[[Tensor], Tensor], cond: Cond) -> Cond:
    """``function`` of each tensor."""
    if cond is None:
        return None
    if isinstance(cond, Tensor):
        return function(cond)
    return {name: function(value) for name, value in cond.items()}


def taken(cond: Cond, which: slice | Tensor) -> Cond:
    """The samples ``which``: a slice, or indices (n,) int64."""
    return mapped(lambda value: value[which], cond)


def joined(first: Cond, second: Cond) -> Cond:
    """The samples of both, one after the other. Raises ValueError where they do not have the same parts."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    if first is None and second is None:
        return None
    return {name: torch.cat(pair) for name, pair in _alike(first, second).items()}


def chosen(which: Tensor, first: Cond, second: Cond) -> Cond:
    """``first`` where ``which`` (B,) bool is true, ``second`` elsewhere. Raises ValueError as :func:`joined` does."""
    if first is None and second is None:
        return None

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return choose(first, second)
    return {name: choose(a, b) for name, (a, b) in _alike(first, second).items()}


def repeated(cond: Cond, n: int) -> Cond:
    """A condition of one sample for ``n`` samples, without memory for them."""
    return mapped(lambda value: value.expand(n, *value.shape[1:]), cond)


def size(cond: Cond) -> int | None:
    """The number of samples, None for no condition. Raises ValueError where the parts differ in it."""
    sizes = {name: len(value) for name, value in parts(cond).items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {n}" for name, n in sizes.items())
        raise ValueError(f"the condition's parts are of different numbers of samples: {listed}")
    return next(iter(sizes.values()), None)


def _alike(first: Cond, second: Cond) -> dict[str, tuple[Tensor, Tensor]]:
    """The parts of both by name, padded to one length."""
    a, b = parts(first), parts(second)
    if a.keys() != b.keys():
        raise ValueError(
            f"one condition has the parts {_listed(a)}, the other {_listed(b)}; expected the same, as the null has"
        )
    padded = {name: _padded(a[name], b[name]) for name in a}
    longer = sorted(name for name in a if padded[name][0] is not a[name] or padded[name][1] is not b[name])
    if longer and not any(value.dtype == torch.bool and value.ndim == 2 for value in a.values()):
        raise ValueError(
            f"{longer[0]} has {a[longer[0]].shape[1]} tokens in one condition, {b[longer[0]].shape[1]} in the other, "
            "and no part is a mask (B, L) bool that would tell padding apart; expected the same number of tokens"
        )
    return padded


def _padded(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.ndim < 2 or b.ndim < 2 or a.shape[1] == b.shape[1]:
        return a, b
    length = max(a.shape[1], b.shape[1])
    return _to_length(a, length), _to_length(b, length)


def _to_length(value: Tensor, length: int) -> Tensor:
    """``value`` (B, L, ...) with zeros up to ``length`` tokens."""
    return pad(value, (*[0, 0] * (value.ndim - 2), 0, length - value.shape[1])) if value.shape[1] < length else value


def _listed(named: Mapping[str, Tensor]) -> str:
    return ", ".join(name or "one tensor" for name in sorted(named)) or "none"
