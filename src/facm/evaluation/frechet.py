"""Mean, covariance and Frechet distance, in float64 on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Mean and covariance of feature rows fed block by block; the memory is one (F, F) matrix.

    Blocks are merged with the update of Chan, Golub and LeVeque (1983), which does not cancel where the mean is large
    beside the spread, as sums of squares do.
    """

    def __init__(self, num_features: int) -> None:
        self.n = 0
        self.mean = torch.zeros(num_features, dtype=torch.float64)
        self._scatter = torch.zeros(num_features, num_features, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """rows (B, F), any float type and device."""
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise ValueError(f"features have shape {tuple(rows.shape)}, expected (B, {len(self.mean)})")
        if not len(rows):
            return
        rows = rows.detach().cpu().double()
        mean = rows.mean(0)
        centred, shift = rows - mean, mean - self.mean
        total = self.n + len(rows)
        self._scatter += centred.T @ centred + torch.outer(shift, shift) * (self.n * len(rows) / total)
        self.mean += shift * (len(rows) / total)
        self.n = total

    def covariance(self) -> Tensor:
        """Unbiased covariance (F, F) float64. Raises ValueError below two rows."""
        if self.n < 2:
            raise ValueError(f"n = {self.n} samples, expected at least 2 for a covariance")
        return self._scatter / (self.n - 1)


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians, the quantity behind FID (Heusel et al. 2017, eq. 6):

        |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)),   A = cov_a, B = cov_b.

    A B is not symmetric, but has the eigenvalues of the symmetric M M^T = A^(1/2) B A^(1/2), M = A^(1/2) B^(1/2). Hence

        tr (A B)^(1/2) = sum of sqrt(eigenvalues of M M^T) = sum of the singular values of M.

    The singular values are taken of M itself: forming M M^T first would square the condition number, and every
    direction without variance (fewer samples than features) would add sqrt(1e-16) of noise.

    Means (F,), covariances (F, F), symmetric and positive semi-definite; computed in float64. Raises ValueError for
    other shapes and for non-finite entries.
    """
    f = mean_a.shape[0] if mean_a.ndim else 0
    for name, value, shape in (
        ("mean_a", mean_a, (f,)),
        ("cov_a", cov_a, (f, f)),
        ("mean_b", mean_b, (f,)),
        ("cov_b", cov_b, (f, f)),
    ):
        if value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {shape}")
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} has non-finite entries, expected finite ones")
    mean_a, cov_a, mean_b, cov_b = (v.detach().cpu().double() for v in (mean_a, cov_a, mean_b, cov_b))
    trace_root = torch.linalg.svdvals(_root(cov_a) @ _root(cov_b)).sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * trace_root
    return max(float(distance), 0.0)  # rounding may leave -1e-15 for equal Gaussians


def _root(covariance: Tensor) -> Tensor:
    """Symmetric square root. Eigenvalues within rounding error of zero are zero: their roots would be 1e-8 of noise."""
    values, vectors = torch.linalg.eigh(covariance)
    noise = torch.finfo(values.dtype).eps * len(values) * values.abs().max()
    return (vectors * values.where(values > noise, 0).sqrt()) @ vectors.T
