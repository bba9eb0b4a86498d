"""Checks of the arguments that an image network is called with."""

from __future__ import annotations

from torch import Tensor


def check_inputs(
    x: Tensor,
    cond: Tensor | None,
    r: Tensor | None,
    *,
    shape: tuple[int, int, int],
    num_classes: int,
    auxiliary_time: bool,
) -> None:
    """Raise ValueError unless x is (B, *shape), and cond and r are given exactly where the network uses them.

    num_classes: Number of labels; 0 for an unconditional network.
    """
    if x.shape[1:] != shape:
        expected = f"(B, {', '.join(map(str, shape))})"
        raise ValueError(f"x has shape {tuple(x.shape)}, expected {expected}")
    if (cond is None) != (num_classes == 0):
        raise ValueError(f"cond is {'missing' if cond is None else 'given'} for num_classes = {num_classes}")
    if (r is None) == auxiliary_time:
        raise ValueError(f"r is {'missing' if r is None else 'given'} for auxiliary_time = {auxiliary_time}")
