"""What is checked: a network in this package's convention, a batch of its data, and the run that would distil it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from facm.core.cond import Cond
from facm.core.objective import Condition, NetworkInterface
from facm.core.tensors import at_least_float32, expand
from facm.core.types import Batch, Dataset
from facm.derivative import Prediction
from facm.flow.conditions import Unconditional
from facm.flow.time_conditioning import ExpandedInterval, native
from facm.runs.config import Run
from facm.sampling.source import Source


@dataclass(frozen=True, eq=False)
class Subject:
    """A network that is looked at. Nothing is changed in it: whoever trains or casts takes a :meth:`copy`.

    name: of its class, file or run.
    network: F(x, t, cond) with t = 0 at noise, in eval mode.
    inner: the same as its author wrote it, where that is another.
    interface: how ``network`` is called, and what it has learned.
    dataset: its data, or noise of their shape.
    batch: a few dozen of them, on ``device``.
    seen: x_1 (N, ...) of more of them.
    has_data: whether ``dataset`` holds its data.
    run: what would distil it.
    guidance_scale: of the teacher in that run.
    noise: x_0 (B, ...) for the batch.
    device: where it computes.
    is_teacher: whether a student is to be distilled of it as it is.
    has_learned: whether its weights are not those that a run begins with.
    """

    name: str
    network: nn.Module
    inner: nn.Module
    interface: NetworkInterface
    dataset: Dataset
    batch: Batch
    seen: Tensor
    has_data: bool
    run: Run | None
    guidance_scale: float
    noise: Tensor
    device: torch.device
    is_teacher: bool = True
    has_learned: bool = True

    @property
    def condition(self) -> Condition:
        """What the network is conditioned on."""
        return self.interface.condition or Unconditional()

    @property
    def v(self) -> Tensor:
        """x_1 - x_0 (B, ...)."""
        return self.batch.x_1 - self.noise

    def point(self, t: float, n: int | None = None) -> tuple[Tensor, Tensor]:
        """x_t (n, ...) of the batch's first n samples, and t (n,)."""
        x_1, x_0 = self.batch.x_1[:n], self.noise[:n]
        times = torch.full((len(x_1),), t, device=x_1.device, dtype=x_1.dtype)
        return (1 - expand(times, x_1)) * x_0 + expand(times, x_1) * x_1, times

    def flow(self, cond: Cond, network: nn.Module | None = None) -> Prediction:
        """(x, t) -> the instantaneous velocity, by the head that has learned it."""
        asked = self.network if network is None else network
        task = self.interface.task or ExpandedInterval()
        return Prediction(asked, task.anchor if self.interface.learns_shortcut else partial(native, asked), cond)

    def shortcut(self, cond: Cond, network: nn.Module | None = None) -> Prediction:
        """(x, t) -> the output whose total derivative a student is trained with (Alg. 1, line 6)."""
        task = self.interface.task or ExpandedInterval()
        return Prediction(self.network if network is None else network, task.shortcut, cond)

    def copy(self) -> nn.Module:
        """A copy of the network, in eval mode and without gradients."""
        return copy.deepcopy(self.network).eval().requires_grad_(False)

    def named(self, module: str) -> str:
        """The name of a module or a buffer as the network's author knows it, outside of this package's adapters."""
        while self.network is not self.inner and module.startswith("inner."):
            module = module.removeprefix("inner.")
        return module

    def source(self) -> Source:
        """What samples are drawn from."""
        shape = tuple(self.batch.x_1.shape[1:])
        interface: Any = self.interface
        if interface.condition is None:
            interface = NetworkInterface(Unconditional(), interface.task, interface.learns_shortcut)
        return Source(self.network, interface, shape, self.device)


def relative(x: Tensor, of: Tensor) -> float:
    """The root mean square of x in parts of that of ``of``."""
    return float(rms(x) / rms(of).clamp(min=1e-30))


def rms(x: Tensor) -> Tensor:
    """Root mean square (), in float32 or better."""
    return at_least_float32(x).square().mean().sqrt()
