"""Improved precision and recall (Kynkaanniemi et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor


def precision_recall(real: Tensor, generated: Tensor, k: int = 3, block: int = 1024) -> tuple[float, float]:
    """Improved precision and recall of Kynkaanniemi et al. 2019 (arXiv:1904.06991, eqs. 1 and 2).

    Each set spans a manifold: the union of balls around its members, each reaching to that member's k-th nearest
    neighbour within the set (itself not counted). Precision is the share of generated samples inside the real
    manifold, recall the share of real samples inside the generated one; the edge of a ball belongs to it.

    real (N, F), generated (M, F): features, N and M above k; both values in [0, 1], k = 3 in the paper. Distances are
    held ``block`` rows at a time. Both values depend on N and M: compare them at equal sizes only.
    """
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"real {tuple(real.shape)} and generated {tuple(generated.shape)}: expected features (N, F) and (M, F)"
        )
    for name, rows in (("real", real), ("generated", generated)):
        if len(rows) <= k:
            raise ValueError(f"{len(rows)} {name} samples, expected more than k = {k} neighbours")
    real, generated = real.double(), generated.double()
    real_radius, generated_radius = _radii(real, k, block), _radii(generated, k, block)
    inside_real = 0
    inside_generated = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, radius in zip(generated.split(block), generated_radius.split(block), strict=True):
        distance = _squared_distances(rows, real)
        inside_real += int((distance <= real_radius).any(1).sum())
        inside_generated |= (distance <= radius[:, None]).any(0)
    return inside_real / len(generated), float(inside_generated.double().mean())


def _radii(rows: Tensor, k: int, block: int) -> Tensor:
    """Squared distance of each row to its k-th nearest other row: the nearest is itself, at distance zero."""
    nearest = [_squared_distances(part, rows).topk(k + 1, largest=False).values for part in rows.split(block)]
    return torch.cat(nearest)[:, k]


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(N, F), (M, F) float64 -> (N, M). By a matrix product, ten times faster than by differences; its rounding error
    is set to zero, so that a sample is at distance zero from its duplicates and inside their balls."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1)
    distances = torch.addmm(squares, a, b.T, alpha=-2)
    return distances.masked_fill_(distances < 1e-12 * squares, 0)
