"""A residual multilayer perceptron for 2-D toys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from facm.core.component import Classes, Fraction, component
from facm.core.types import NetworkConfig
from facm.networks.sizes import Depth, Size, check_numbers


@dataclass(frozen=True)
@component
class MLP(NetworkConfig):
    """Configuration of the network F(x, t, cond[, r]): x (B, dim), t (B,), cond (B,) int64, r (B,) -> (B, dim)."""

    dim: Size = 2
    """Number of coordinates of x."""
    width: Size = 128
    """Width of the hidden layers."""
    depth: Depth = 3
    """Number of residual layers."""
    num_classes: Classes = 0
    """Number of labels 0 .. num_classes - 1; num_classes itself is the null label. 0: an unconditional network."""
    dropout: Fraction = 0.0
    """Probability of dropout in each residual layer in train mode, within [0, 1]."""
    auxiliary_time: bool = False
    """Take a second time r, as the auxiliary-time strategy and average velocities need it."""
    weight_head: bool = False
    """Add a method log_weight(t), with which sCM learns the weight of its loss; it is no part of F."""

    def __post_init__(self) -> None:
        layers = 2 * self.depth * self.width + 2 * self.dim + self.num_classes
        check_numbers(self, layers * self.width)

    def build(self) -> MLPNetwork:
        return MLPNetwork(self)


class MLPNetwork(nn.Module):
    """F(x, t, cond[, r]); see :class:`MLP`."""

    zero_init_prefixes = ("head.",)

    def __init__(self, config: MLP) -> None:
        super().__init__()
        self.config, self.auxiliary_time, self.weight_head = config, config.auxiliary_time, config.weight_head
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
        self.head: nn.Sequential | None = None
        if config.weight_head:
            self.head = nn.Sequential(nn.Linear(5, config.width), nn.SiLU(), nn.Linear(config.width, 1))
            nn.init.zeros_(self.head[2].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.head[2].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        if x.shape[1:] != (self.config.dim,):
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, {self.config.dim})")
        if (cond is None) != (self.labels is None):
            raise ValueError(
                f"cond is {'missing' if cond is None else 'given'}, num_classes = {self.config.num_classes}"
            )
        h = self.inward(torch.cat([x, embedded(t) if r is None else embedded(t, r)], dim=1))
        if self.labels is not None:
            h = h + self.labels(cond)
        for layer in self.layers:
            h = h + layer(nn.functional.silu(h))
        return self.outward(nn.functional.silu(h))

    def log_weight(self, t: Tensor) -> Tensor:
        """The log weight w(t) (B,) of t (B,), 0 as initialised. Raises ValueError without the head."""
        if self.head is None:
            raise ValueError("log_weight(t) of a network with weight_head = False, expected weight_head = True")
        return self.head(embedded(t)).squeeze(1)


def embedded(*times: Tensor) -> Tensor:
    """Times (B,) -> (B, 5 each): the times, then sines and cosines of them at two frequencies."""
    waves = [f(k * c) for c in times for k in (1.5, 3.0) for f in (torch.sin, torch.cos)]
    return torch.stack([*times, *waves], dim=1)
