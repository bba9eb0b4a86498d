"""Inception score (Salimans et al. 2016), streaming."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SPLITS = 10
SEED = 2020  # torch-fidelity's


class InceptionScore:
    """exp of the mean Kullback-Leibler divergence of a sample's class probabilities p(y|x) from their average p(y),
    in each of ``splits`` parts of n samples; mean and standard deviation over the parts.

    The same as torch-fidelity's on all logits at once: it shuffles the samples with seed 2020 and cuts them into
    parts, so that which part sample i belongs to is known as soon as n is. With q the mean of p over a part, the mean
    of sum p log(p / q) is the mean of sum p log p, less sum q log q: two running sums a part, in float64.
    """

    def __init__(self, n: int, splits: int = SPLITS, seed: int = SEED) -> None:
        if not 1 <= splits <= n:
            raise ValueError(f"splits = {splits}, expected 1 to n = {n}: a part needs a sample")
        self.n, self.splits = n, splits
        order = np.random.RandomState(seed).permutation(n)
        self._part = torch.empty(n, dtype=torch.int64)
        for k in range(splits):
            self._part[torch.from_numpy(order[k * n // splits : (k + 1) * n // splits])] = k
        self._seen = 0
        self._count = torch.bincount(self._part, minlength=splits).double()
        self._negentropy = torch.zeros(splits, dtype=torch.float64)
        self._probability: Tensor | None = None

    def add(self, logits: Tensor) -> None:
        """The next samples' logits (B, K), any float type and device. Raises ValueError beyond n samples."""
        if self._seen + len(logits) > self.n:
            raise ValueError(f"{self._seen + len(logits)} samples, expected no more than the n = {self.n} announced")
        part = self._part[self._seen : self._seen + len(logits)]
        self._seen += len(logits)
        log_p = logits.detach().cpu().double().log_softmax(1)
        p = log_p.exp()
        if self._probability is None:
            self._probability = torch.zeros(self.splits, p.shape[1], dtype=torch.float64)
        self._probability.index_add_(0, part, p)
        self._negentropy.index_add_(0, part, torch.special.entr(p).sum(1).neg())

    def result(self) -> tuple[float, float]:
        """Mean and standard deviation. Raises ValueError before all n samples are there."""
        if self._probability is None or self._seen < self.n:
            raise ValueError(f"{self._seen} of n = {self.n} samples so far: the Inception score needs all of them")
        q = self._probability / self._count[:, None]
        scores = (self._negentropy / self._count + torch.special.entr(q).sum(1)).exp()
        return float(scores.mean()), float(scores.std(correction=0))
