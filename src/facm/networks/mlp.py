"""A residual multilayer perceptron for 2-D toys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MLP:
    """F(x, t, cond[, r]): x (B, dim), t (B,), cond (B,) int64 or None -> (B, dim). num_classes = 0 is unconditional."""

    dim: int = 2
    width: int = 128
    depth: int = 3
    num_classes: int = 0
    dropout: float = 0.0
    auxiliary_time: bool = False

    def build(self) -> MLPNetwork:
        return MLPNetwork(self)


class MLPNetwork(nn.Module):
    def __init__(self, config: MLP) -> None:
        super().__init__()
        self.config, self.auxiliary_time = config, config.auxiliary_time
        times = 2 if config.auxiliary_time else 1
        self.inward = nn.Linear(config.dim + 5 * times, config.width)
        self.labels = nn.Embedding(config.num_classes + 1, config.width) if config.num_classes else None
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(config.width, config.width),
                nn.SiLU(),
                nn.Dropout(config.dropout),
                nn.Linear(config.width, config.width),
            )
            for _ in range(config.depth)
        )
        self.outward = nn.Linear(config.width, config.dim)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        if x.shape[1:] != (self.config.dim,):
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, {self.config.dim})")
        if (cond is None) != (self.labels is None):
            raise ValueError(
                f"cond is {'missing' if cond is None else 'given'}, num_classes = {self.config.num_classes}"
            )
        times = [t] if r is None else [t, r]
        waves = [f(k * c) for c in times for k in (1.5, 3.0) for f in (torch.sin, torch.cos)]
        h = self.inward(torch.cat([x, torch.stack([*times, *waves], dim=1)], dim=1))
        if self.labels is not None:
            h = h + self.labels(cond)
        for layer in self.layers:
            h = h + layer(nn.functional.silu(h))
        return self.outward(nn.functional.silu(h))
