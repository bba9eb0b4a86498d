"""A scheduler of diffusers that samples a student of several phases, or a pair of which each half has learned one.

``pipe.scheduler = PhasedScheduler(bounds=[0, 0.125, 1])`` replaces a pipeline's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401 (from_pretrained looks for it here)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from facm.foundation.export.scheduler import FewStepScheduler
from facm.sampling.solvers import phased_times, spread_over_phases


class PhasedScheduler(FewStepScheduler):
    """Steps that jump to the end of their phase: within a phase noise is added again, from one to the next none is.

    bounds: times 1 - sigma at which phases begin and end, from 0 to 1. The steps of any number N, at least one in each
    phase, are those of :class:`facm.sampling.Phased`.
    """

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, bounds: Sequence[float] = (0.0, 1.0)) -> None:
        super().__init__(num_train_timesteps=num_train_timesteps, shift=1.0, stochastic_sampling=True)

    def set_timesteps(
        self: Any,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """The levels of ``num_inference_steps``; those that a pipeline says itself are not used."""
        steps = num_inference_steps or (None if sigmas is None else len(sigmas))
        if timesteps is not None or steps is None:
            raise ValueError("timesteps, or no num_inference_steps: expected num_inference_steps")
        bounds = tuple(self.config.bounds)
        self._times = phased_times(spread_over_phases(steps, len(bounds) - 1), bounds)
        super().set_timesteps(sigmas=[1 - t for t in self._times], device=device)

    def step(
        self: Any,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        *args: Any,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """From ``sample`` at a noise level to the next; see the class."""
        if self.step_index is None:
            self._init_step_index(timestep)
        times, at = [*self._times, 1.0], self._step_index
        t, later = times[at], times[at + 1]
        end = min(bound for bound in self.config.bounds if bound > t)
        x = self._exact(sample) - (end - t) * model_output.to(self._exact(sample).dtype)
        if later < end:
            noise = randn_tensor(
                sample.shape, generator=generator or self.generator, device=sample.device, dtype=torch.float32
            )
            kept = later / end
            x = kept * x + math.sqrt((1 - later) ** 2 - (kept * (1 - end)) ** 2) * noise.to(x.dtype)
        self._kept = x
        self._step_index += 1
        previous: Any = x.to(model_output.dtype)
        return FlowMatchEulerDiscreteSchedulerOutput(previous) if return_dict else (previous,)
