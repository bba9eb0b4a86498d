"""Small checks and conversions of tensors that all layers share."""

from __future__ import annotations

import torch
from torch import Tensor


def expand(t: Tensor, like: Tensor) -> Tensor:
    """t (B,) -> (B, 1, ..., 1) with as many axes as ``like``."""
    return t.reshape(-1, *[1] * (like.ndim - 1))


def check_time(t: Tensor, x: Tensor, name: str = "t", high: float = 1.0) -> None:
    """Raise ValueError unless ``t`` is (B,) for x (B, ...) and, on the CPU, within [0, high]."""
    if t.shape != x.shape[:1]:
        raise ValueError(
            f"{name} has shape {tuple(t.shape)}, expected ({x.shape[0]},): one time per sample of x {tuple(x.shape)}"
        )
    if t.device.type != "cpu" or torch.compiler.is_compiling():  # a GPU would have to synchronise
        return
    if not bool(((t >= 0) & (t <= high)).all()):  # no float(t), which forward mode cannot follow
        raise ValueError(f"{name} runs over [{t.min():g}, {t.max():g}], expected times within [0, {high:g}]")


def check_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError unless all named tensors have the same shape."""
    shapes = {name: tuple(x.shape) for name, x in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError("expected equal shapes, got " + ", ".join(f"{k} {s}" for k, s in shapes.items()))


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32 if it is in half precision, otherwise unchanged: losses and tangents are never summed in bf16.

    Raises TypeError where a network returned anything but a tensor.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"the network returned {type(x).__name__}, expected one tensor of x's shape")
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def unusual(tensor: Tensor) -> str:
    """What kind of tensor it is where it is no plain one, whose numbers lie in memory; empty for a plain one."""
    kinds = {
        "nested": tensor.is_nested,
        "quantized": tensor.is_quantized,
        "sparse": tensor.layout is not torch.strided,
        "meta": tensor.device.type == "meta",
    }
    return next((kind for kind, it_is in kinds.items() if it_is), "")
