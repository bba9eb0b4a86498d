"""A scheduler of diffusers that samples a student of several phases, or a pair of which each half has learned one.

``pipe.scheduler = PhasedScheduler(bounds=[0, 0.125, 1])`` replaces a pipeline's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401 (from_pretrained looks for it here)
from torch import Tensor

from facm.foundation.export.scheduler import CountingScheduler
from facm.sampling.solvers import phased_times, renoised, spread_over_phases


class PhasedScheduler(CountingScheduler):
    """Steps that jump to the end of their phase: within a phase noise is added again, from one to the next none is.

    bounds: times 1 - sigma at which phases begin and end, from 0 to 1. The steps of any number N, at least one in each
    phase, are those of :class:`facm.sampling.Phased`.
    """

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, bounds: Sequence[float] = (0.0, 1.0)) -> None:
        super().__init__(num_train_timesteps=num_train_timesteps, shift=1.0, stochastic_sampling=True)

    def _levels(self: Any, num_steps: int) -> list[float]:
        bounds = tuple(self.config.bounds)
        self._times = phased_times(spread_over_phases(num_steps, len(bounds) - 1), bounds)
        return [1 - t for t in self._times]

    def _next(self: Any, x: Tensor, output: Tensor, fresh_noise: Callable[[], Tensor]) -> Tensor:
        t, later = [*self._times, 1.0][self._step_index : self._step_index + 2]
        end = min(bound for bound in self.config.bounds if bound > t)
        x_end = x - (end - t) * output
        return renoised(x_end, end, later, fresh_noise()) if later < end else x_end
