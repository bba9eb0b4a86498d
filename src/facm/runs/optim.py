"""The optimiser and its learning-rate schedule; the clock is images seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import torch

from facm.core.component import Fraction, Images, Positive, Range, component


@runtime_checkable
class Decay(Protocol):
    """A schedule of the learning rate."""

    def __call__(self, progress: float) -> float:
        """Factor on the learning rate at ``progress`` in [0, 1] of the run."""
        ...


Decaying = Annotated[float, Range("[0, 1)")]
"""How much of an average stays, each step."""


@dataclass(frozen=True)
class Constant(Decay):
    """The same learning rate over the whole run."""

    def __call__(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
@component
class CosineDecay(Decay):
    """From 1 to ``final`` along half a cosine."""

    final: Fraction = 0.0
    """Factor on the learning rate at the end of the run."""

    def __call__(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


@dataclass(frozen=True)
@component
class AdamW:
    """AdamW as in Table 5."""

    lr: Positive = 1e-4
    """Learning rate after the warm-up, above 0."""
    betas: tuple[Decaying, Decaying] = (0.9, 0.999)
    """Decay rates of the first and second moments, within [0, 1)."""
    weight_decay: Annotated[float, Range("[0, 1e12]")] = 0.0
    """Decoupled weight decay, 0 or more."""
    eps: Annotated[float, Range("[1e-30, 1]")] = 1e-8
    """Constant added to the root of the second moment, above 0."""
    warmup_images: Images = 0
    """Images over which the learning rate rises linearly from 0."""
    decay: Decay = Constant()
    """Decay of the learning rate over the run: Constant() or CosineDecay(final)."""
    clip: Annotated[float, Range("(0, inf]")] = 1.0
    """Bound of the gradient's norm; inf for no clipping."""

    def build(self, network: torch.nn.Module) -> torch.optim.AdamW:
        parameters = [p for p in network.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("the network has no parameter that requires a gradient: there is nothing to train")
        return torch.optim.AdamW(
            parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, eps=self.eps, fused=True
        )

    def learning_rate(self, images_seen: int, images: int) -> float:
        """The rate for a step that ends at ``images_seen`` of a run of ``images``."""
        warmup = min(1.0, images_seen / self.warmup_images) if self.warmup_images else 1.0
        return self.lr * warmup * self.decay(images_seen / images)
