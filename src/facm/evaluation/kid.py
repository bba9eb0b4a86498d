"""Kernel distance (Binkowski et al. 2018): KID where the features are Inception's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from facm.evaluation.features import check_positive


@dataclass(frozen=True)
class KernelDistance:
    """Unbiased squared maximum mean discrepancy with the kernel k(x, y) = (x . y / F + 1)^3, in random subsets.

    The defaults are torch-fidelity's, and the subsets are drawn as it draws them.

    subsets: how many, at least 1.
    subset_size: samples of each side in a subset, at least 2.
    seed: of the subsets.
    """

    subsets: int = 100
    subset_size: int = 1000
    seed: int = 2020

    def __post_init__(self) -> None:
        check_positive(subsets=self.subsets)
        if self.subset_size < 2:
            raise ValueError(f"subset_size = {self.subset_size}, expected at least 2")

    def __call__(self, generated: Tensor, real: Tensor) -> tuple[float, float]:
        """Features (N, F), (M, F) -> mean and standard deviation over the subsets; the mean may be slightly negative
        for equal distributions. Computed in float64.

        Raises ValueError for other shapes, and for fewer rows than a subset takes.
        """
        if generated.ndim != 2 or real.ndim != 2 or real.shape[1] != generated.shape[1]:
            raise ValueError(
                f"generated {tuple(generated.shape)} and real {tuple(real.shape)}: expected features (N, F) and (M, F)"
            )
        for name, rows in (("generated", generated), ("real", real)):
            if len(rows) < self.subset_size:
                raise ValueError(f"{len(rows)} {name} samples, expected at least subset_size = {self.subset_size}")
        rng = np.random.RandomState(self.seed)
        values = []
        for _ in range(self.subsets):
            x, y = (rows[rng.choice(len(rows), self.subset_size, replace=False)].double() for rows in (generated, real))
            values.append(_mmd2(x, y))
        return float(np.mean(values)), float(np.std(values))


def _mmd2(x: Tensor, y: Tensor) -> float:
    """x (m, F), y (m, F): within a set a sample is not paired with itself, which is what makes it unbiased."""
    m = len(x)
    within = sum(float(k.sum() - k.diagonal().sum()) for k in (_kernel(x, x), _kernel(y, y)))
    return within / (m * (m - 1)) - 2 * float(_kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    inner = (x @ y.T).div_(x.shape[1]).add_(1)
    return inner * inner * inner
