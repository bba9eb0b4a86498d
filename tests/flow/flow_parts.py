"""A network whose answers show what it was asked, what it is asked with, and a step in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from facm.core.types import Batch
from facm.flow.conditions import Labels

NULL = 2
LABELS = Labels(NULL)


class Table(torch.nn.Module):
    """F = x + 10 t + 100 r + (1, 2 or 4 for label 0, 1 or null): every argument can be read off the answer."""

    def __init__(self, auxiliary_time=False):
        super().__init__()
        self.auxiliary_time, self.calls = auxiliary_time, []

    def forward(self, x, t, cond=None, r=None):
        self.calls.append(None if cond is None else cond.tolist())
        out = x + 10 * t[:, None]
        if cond is not None:
            out = out + torch.tensor([1.0, 2.0, 4.0])[cond][:, None]
        return out if r is None else out + 100 * r[:, None]


X, COND = torch.tensor([[0.5], [0.25], [0.0], [1.0]]), torch.tensor([0, 1, 0, 1])
T = torch.tensor([0.25, 0.5, 0.75, 0.76])
VALUE = torch.tensor([[1.0], [2.0], [1.0], [2.0]])  # of the label


# A step in parts, as ranks and micro-batches share it

SIZES = [(8, 8), (4, 4, 4, 4), (1, 5, 10), (16,)]


def split(batch: Batch, sizes: Sequence[int]) -> Iterator[Batch]:
    start = 0
    for n in sizes:
        rows = slice(start, start + n)
        yield Batch(batch.x_1[rows], None if batch.cond is None else batch.cond[rows], start, len(batch.x_1))
        start += n
