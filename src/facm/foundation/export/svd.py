"""The difference between a fully trained student and its model as adapters of a given rank, by singular values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from facm.foundation.export.lowrank import LowRank, added, layer_of_smoothing, merged
from facm.foundation.network import DiffusersNetwork

OVERSAMPLED = 16
"""Further directions that the randomised decomposition of a large matrix looks at."""
ITERATIONS = 6
"""Power iterations of the randomised decomposition."""


@dataclass(frozen=True)
class Kept:
    """How much of the squared norm of the difference the adapters hold, as shares.

    layers: layer -> share of its own difference.
    linear: share of the difference of all linear layers.
    total: share of the difference of all weights; biases, norms and convolutions have no adapters.
    """

    layers: dict[str, float]
    linear: float
    total: float

    def __str__(self) -> str:
        worst = min(self.layers, key=self.layers.__getitem__, default="")
        least = f", least in {worst} ({self.layers[worst]:.1%})" if worst else ""
        return (
            f"{self.linear:.1%} of the squared change of the linear layers{least}, {self.total:.1%} of that of all "
            "weights"
        )


@torch.no_grad()
def low_rank(network: DiffusersNetwork, base: nn.Module, rank: int) -> tuple[dict[str, LowRank], Kept]:
    """Layer -> the best approximation of this rank of what training added to its weight, for all linear layers; what
    smoothing adds is exact, at the rank that it has.

    base: the transformer as it is in the model's folder, without adapters. Raises ValueError for a rank that no layer
    has, or that is less than 1, and where nothing changed.
    """
    linear = {name: module for name, module in base.named_modules() if isinstance(module, nn.Linear)}
    largest = max(min(module.weight.shape) for module in linear.values())
    if not 1 <= rank <= largest:
        raise ValueError(f"lora_rank = {rank}, expected 1 to {largest}, the smaller side of the largest layer")
    before, after = base.state_dict(), merged(network)
    exact = added(network)
    differences: dict[str, LowRank] = {}
    norms, kept, everything = {}, {}, 0.0
    for key, value in after.items():
        change = value.float() - before[key].float().to(value.device)
        square = _square(change)
        everything += square
        layer = key.removesuffix(".weight")
        if layer not in linear or not key.endswith(".weight") or square == 0:
            continue
        norms[layer] = square
        differences[layer] = _truncated(change, min(rank, *change.shape))
        kept[layer] = square - _square(change - differences[layer].product())
    if network.smoothing is not None:  # its layer is not trained: the difference is the mask alone
        layer = layer_of_smoothing(network)
        if layer in exact:
            differences[layer], kept[layer] = exact[layer], norms[layer]
    if not differences:
        raise ValueError("lora_rank: the weights of this run are those of its model, so that there is nothing to add")
    shares = {layer: kept[layer] / norms[layer] for layer in norms}
    return differences, Kept(shares, sum(kept.values()) / sum(norms.values()), sum(kept.values()) / everything)


def _truncated(change: Tensor, rank: int) -> LowRank:
    if 4 * (rank + OVERSAMPLED) < min(change.shape):
        with torch.random.fork_rng(devices=[change.device] if change.is_cuda else []):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(change, rank + OVERSAMPLED, ITERATIONS)
        vh = v.T
    else:
        u, s, vh = torch.linalg.svd(change, full_matrices=False)
    root = s[:rank].sqrt()  # both sides of a similar size, as half precision wants it
    return LowRank((u[:, :rank] * root).contiguous(), (root[:, None] * vh[:rank]).contiguous())


def _square(value: Tensor) -> float:
    return float(value.double().square().sum())
