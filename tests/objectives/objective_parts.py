"""What the objectives' tests share: a small network, the exact flow of Gaussian data, and a step in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from facm.core.types import Batch
from facm.networks.mlp import MLP
from tests.core.core_parts import generator, randn
from tests.flow.flow_parts import split

CLASSES, DIM = 3, 5
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 1, 2, 0, 1, 2, 0, 1, 2])
DROPPED = torch.tensor([False, False, True, True, False, False, False, True] * 2)
# t = 0.125 and t = 0.8 are the ends of the guidance interval, both inside it
TIMES = torch.tensor([0.03, 0.124, 0.125, 0.31, 0.57, 0.8, 0.801, 0.985] * 2, dtype=torch.float64)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def mlp(
    seed: int, auxiliary_time: bool = False, dropout: float = 0.0, *, weight_head: bool = False, scale: float = 1.0
) -> torch.nn.Module:
    """In double precision, all its weights times ``scale``."""
    torch.manual_seed(seed)
    network = MLP(DIM, 16, 2, CLASSES, dropout, auxiliary_time, weight_head).build().double()
    for p in network.parameters():
        p.data *= scale
    return network


# The exact solution for Gaussian data, x_1 ~ N(M, S^2)

M, S = 1.5, 0.4


def spread(t):
    return torch.sqrt((1 - t) ** 2 + (t * S) ** 2)


def instantaneous(x, t, cond=None):
    """E[x_1 - x_0 | x_t = x]."""
    t = t[:, None]
    return M + (t * S**2 - (1 - t)) / spread(t) ** 2 * (x - t * M)


# A step in parts, as ranks and micro-batches share it


def gradients(network, total):
    return torch.autograd.grad(total, list(network.parameters()), allow_unused=True)


def check_parts(objective: Any, network: Any, teacher: Any, sizes: Sequence[int]) -> None:
    """Loss, gradient and terms of a batch are the means over its parts."""
    assert objective.draws_for_whole_step
    batch = Batch(2 * randn(16, DIM), LABELS)
    whole = objective(network, batch, generator(5), teacher)
    expected, total, summed = gradients(network, whole.total), 0.0, None
    terms = {name: [] for name in whole.terms}
    for part in split(batch, sizes):
        weight = len(part.x_1) / 16
        loss = objective(network, part, generator(5), teacher)
        found = [weight * g for g in gradients(network, loss.total)]
        summed = found if summed is None else [a + b for a, b in zip(summed, found, strict=True)]
        total += weight * loss.total.item()
        for name, values in loss.terms.items():
            terms[name].append(values)
    assert total == pytest.approx(whole.total.item(), rel=1e-12)
    torch.testing.assert_close(tuple(summed), expected, **EXACT)
    for name, values in terms.items():
        torch.testing.assert_close(torch.cat(values), whole.terms[name], **EXACT)


class Halved(torch.nn.Module):
    """Answers in bf16, as under autocast."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, t, cond):
        return self.network(x, t, cond).bfloat16()
