"""A scheduler of diffusers that samples a student on both of its heads: along the anchor's flow first, then by jumps.

``pipe.scheduler = FlowJumpScheduler()`` replaces a pipeline's own, where one transformer has learned all noise levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401 (from_pretrained looks for it here)
from torch import Tensor

from facm.foundation.export.scheduler import CountingScheduler
from facm.sampling.methods import FlowThenJump


@dataclass(frozen=True)
class Evaluation:
    """One call of the transformer, at x_t on the way from t to t_next.

    of: "slope" is asked at t and "corrected" at t_next, the two of a Heun step along the flow; "jump" leads to the data
    and back to t_next.
    """

    of: Literal["slope", "corrected", "jump"]
    t: float
    t_next: float

    @property
    def level(self) -> float:
        """The noise level 1 - c that the transformer is told: of the shortcut c = t, of the anchor c = 2 - t (Sec.
        3.2.2), which is negative."""
        asked = self.t_next if self.of == "corrected" else self.t
        t = torch.tensor(asked, dtype=torch.float32).item()  # this package's networks are asked in float32
        return 1 - t if self.of == "jump" else t - 1


def evaluations(num_steps: int) -> list[Evaluation]:
    """Those of :class:`facm.sampling.FlowThenJump`, in their order."""
    method = FlowThenJump(num_steps)
    times, found = method.schedule(), []
    for move, (t, t_next) in zip(method.moves, pairwise(times), strict=True):
        if move == "heun":
            found += [Evaluation("slope", t, t_next), Evaluation("corrected", t, t_next)]
        else:
            found.append(Evaluation("jump", t, t_next))
    return [*found, Evaluation("jump", times[-1], 1.0)]


class FlowJumpScheduler(CountingScheduler):
    """``num_inference_steps`` counts evaluations: one is a jump, two are those of :class:`FewStepScheduler`, and from
    three on the anchor's flow is followed first, as :class:`facm.sampling.FlowThenJump` does."""

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000) -> None:
        super().__init__(num_train_timesteps=num_train_timesteps, shift=1.0, stochastic_sampling=True)

    def _levels(self: Any, num_steps: int) -> list[float]:
        self._evaluations = evaluations(num_steps)
        self._begin: Tensor | None = None
        self._slope: Tensor | None = None
        return [one.level for one in self._evaluations]

    def _next(self: Any, x: Tensor, output: Tensor, fresh_noise: Callable[[], Tensor]) -> Tensor:
        one, F = self._evaluations[self._step_index], -output
        h = one.t_next - one.t
        if one.of == "slope":
            self._begin, self._slope = x, F
            return x + h * F
        if one.of == "corrected":
            return self._begin + h * (self._slope + F) / 2
        x_1 = x + (1 - one.t) * F
        return one.t_next * x_1 + (1 - one.t_next) * fresh_noise().to(x.dtype) if one.t_next < 1 else x_1
