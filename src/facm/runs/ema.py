"""Power-function EMA with post-hoc synthesis (Karras et al., 2024, "EDM2", Sec. 3 and App. C).

An EMA of relative length sigma_rel weights the past by p(tau) proportional to tau^gamma on [0, clock]. From snapshots
of two such EMAs any other length can be synthesised after training as a least-squares combination.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from facm.core.component import Range, component, refused
from facm.core.tensors import at_least_float32

Weights = dict[str, Tensor]
LENGTHS = "[1e-6, 0.28]"
"""EMA lengths sigma_rel: there is no profile beyond, and far below, an average is its last weights."""


@dataclass(frozen=True)
@component
class PowerEMA:
    """Averages of the weights that a run tracks."""

    sigma_rels: Annotated[tuple[Annotated[float, Range(LENGTHS)], ...], Range("[1, 32]")] = (0.05, 0.2)
    """EMA lengths sigma_rel, the widths of the averaging profiles relative to the run; the first is sampled."""

    def __post_init__(self) -> None:
        if len(set(self.sigma_rels)) < len(self.sigma_rels):
            raise refused(self, "sigma_rels", "different lengths")


def gamma_of(sigma_rel: float) -> float:
    """The exponent with sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (EDM2, Eq. 123-126)."""
    if sigma_rel not in Range(LENGTHS):
        raise ValueError(f"sigma_rel = {sigma_rel}, expected a length within {LENGTHS}")
    s = sigma_rel**-2
    return float(np.roots([1, 7, 16 - s, 12 - s]).real.max())


def decay(sigma_rel: float, images_seen: int, batch_size: int) -> float:
    """beta = (1 - batch / (clock + batch))^(gamma + 1) for the update that ends at ``images_seen``; 0 for the first.

    EDM2 has clock in place of clock + batch; one batch later is what the reference's EMA does, and its numbers.
    """
    if images_seen <= batch_size:
        return 0.0
    return (1 - batch_size / (images_seen + batch_size)) ** (gamma_of(sigma_rel) + 1)


class EMA:
    """The running averages of a network's parameters, in at least float32; buffers are copied.

    In half precision a step's share of a long average rounds to nothing, and the average never moves.
    """

    def __init__(self, config: PowerEMA, network: torch.nn.Module) -> None:
        self.network = network
        self.averages: dict[float, Weights] = {
            sigma_rel: {name: value.detach().clone() for name, value in self._current().items()}
            for sigma_rel in config.sigma_rels
        }

    def _averaged(self) -> list[str]:
        return [name for name, p in self.network.named_parameters(remove_duplicate=False) if p.requires_grad]

    def _current(self) -> Weights:
        """The network's weights, those that are averaged in at least float32."""
        current = self.network.state_dict()
        return current | {name: at_least_float32(current[name].detach()) for name in self._averaged()}

    @torch.no_grad()
    def update(self, images_seen: int, batch_size: int) -> None:
        """Take in the weights as they are after the step that ended at ``images_seen``."""
        current, averaged = self._current(), self._averaged()
        copied = current.keys() - set(averaged)
        for sigma_rel, average in self.averages.items():
            beta = decay(sigma_rel, images_seen, batch_size)
            get_ema_multi_avg_fn(beta)([average[n] for n in averaged], [current[n] for n in averaged], None)
            for name in copied:
                average[name].copy_(current[name])


@dataclass(frozen=True)
class Snapshot:
    """An EMA's weights at one moment.

    images_seen: the clock.
    sigma_rel: the EMA's length.
    load: reads the weights; called once, so that a synthesis never holds more than one snapshot.
    """

    images_seen: int
    sigma_rel: float
    load: Callable[[], Weights]


def _overlap(t_a: float, gamma_a: float, t_b: float, gamma_b: float) -> float:
    """Inner product of two profiles p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t], in closed form."""
    shared, power = min(t_a, t_b), gamma_a + gamma_b + 1
    log = power * np.log(shared) - (gamma_a + 1) * np.log(t_a) - (gamma_b + 1) * np.log(t_b)
    return float((gamma_a + 1) * (gamma_b + 1) / power * np.exp(log))


def synthesis_weights(
    snapshots: Sequence[tuple[int, float]], images_seen: int, sigma_rel: float, unit_sum: bool = False
) -> np.ndarray:
    """Coefficients of snapshots (clock, sigma_rel) whose sum is closest to the wanted profile (EDM2, App. C.2).

    unit_sum: among those that sum to 1. Without it (EDM2, and the reference) few snapshots make a network whose weights
    are all a few percent too large or too small: 2 % for three pairs.
    """
    if not snapshots:
        raise ValueError("post-hoc EMA: no snapshots to synthesise from")
    points = [(float(t), gamma_of(s)) for t, s in snapshots]
    wanted = (float(images_seen), gamma_of(sigma_rel))
    gram = np.array([[_overlap(*a, *b) for b in points] for a in points])
    target = np.array([_overlap(*a, *wanted) for a in points])
    if not unit_sum:
        return np.linalg.lstsq(gram, target, rcond=None)[0]
    n = len(points)
    bordered = np.block([[gram, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])  # Lagrange multiplier
    return np.linalg.lstsq(bordered, np.append(target, 1.0), rcond=None)[0][:n]


def synthesise(snapshots: Sequence[Snapshot], images_seen: int, sigma_rel: float, unit_sum: bool = False) -> Weights:
    """The weights that an EMA of length ``sigma_rel`` would have had at ``images_seen``, from snapshots up to there.

    Floating-point and complex tensors are combined; what never changed, such as frozen tables, comes out as it is.
    """
    usable = [s for s in snapshots if s.images_seen <= images_seen]
    weights = synthesis_weights([(s.images_seen, s.sigma_rel) for s in usable], images_seen, sigma_rel, unit_sum)
    first = usable[-1].load()
    total = {name: torch.zeros_like(_wide(v)) for name, v in first.items() if v.is_floating_point() or v.is_complex()}
    changed: set[str] = set()
    for weight, snapshot in zip(weights, usable, strict=True):
        state = snapshot.load()
        changed |= {name for name in total if not torch.equal(_wide(state[name]), _wide(first[name]))}
        for name, so_far in total.items():
            so_far.add_(_wide(state[name]), alpha=float(weight))
    return {name: total[name].to(value.dtype) if name in changed else value for name, value in first.items()}


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.complex128 if value.is_complex() else torch.float64)
