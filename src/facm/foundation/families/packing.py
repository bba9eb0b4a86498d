"""Latents as tokens, a square of 2 x 2 in each, and positions of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def packed_squares(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H/2 * W/2, 4 C), rows first, each token's channels slower than its square."""
    b, c, h, w = x.shape
    squares = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(b, h // 2 * (w // 2), 4 * c)


def unpacked_squares(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse, for samples of ``shape`` (C, H, W)."""
    c, h, w = shape
    squares = tokens.reshape(len(tokens), h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(len(tokens), c, h, w)


def grid(*sizes: int, device: torch.device) -> Tensor:
    """(product of ``sizes``, len(sizes)) int64: the coordinates of a grid's points, the last running fastest."""
    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in sizes))
