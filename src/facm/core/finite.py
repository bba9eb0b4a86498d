"""Whether weights are numbers that a network can compute with."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn


def non_finite(tensors: Mapping[str, Tensor], may_be_infinite: Collection[str] = ()) -> list[str]:
    """The names of the floating-point tensors that hold a NaN or an infinity. This waits for the device, once.

    may_be_infinite: names of those that only may not hold a NaN, such as a buffer with an attention mask.
    """
    floating = {name: value.detach() for name, value in tensors.items() if value.is_floating_point() and value.numel()}
    good = {}
    for name, value in floating.items():
        wide = value.float() if value.dtype.itemsize == 1 else value  # float8 has no test of its own
        good[name] = ~wide.isnan().any() if name in may_be_infinite else wide.isfinite().all()
    if not good:
        return []
    device = next(iter(good.values())).device
    answers = torch.stack([answer.to(device) for answer in good.values()]).tolist()
    return [name for name, answer in zip(good, answers, strict=True) if not answer]


def buffers_of(module: nn.Module) -> set[str]:
    """The names of the module's buffers, which may be infinite."""
    return {name for name, _ in module.named_buffers(remove_duplicate=False)}


def listed(names: list[str]) -> str:
    """The first few names, in words."""
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
