"""An exponential average of the network that an objective's targets ask, with weights of its own in the checkpoint.

Of the averages that are sampled (facm.runs.ema) it differs in purpose and in length: a momentum of 0.5 remembers a few
steps, whatever the length of the run.
"""

from __future__ import annotations

import copy

import torch


class SelfTeacher:
    """The average phi~ <- mu phi~ + (1 - mu) phi, without the bias of its start: after step i the new weights count
    (1 - mu) / (1 - mu^i) (TRACT, arXiv 2303.04248, Sec. 3), so that after the first they are all of it.

    network: a copy, in eval mode and frozen, on ``device``; buffers are the newest.
    """

    def __init__(self, network: torch.nn.Module, momentum: float, device: torch.device) -> None:
        self.momentum = momentum
        self.network = copy.deepcopy(network).eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def update(self, network: torch.nn.Module, steps: int) -> None:
        """Take in the weights after ``steps`` steps, the newest of them included."""
        share = (1 - self.momentum) / (1 - self.momentum**steps)
        for average, new in zip(self.network.parameters(), network.parameters(), strict=True):
            average.lerp_(new, share)
        for kept, newest in zip(self.network.buffers(), network.buffers(), strict=True):
            kept.copy_(newest)
