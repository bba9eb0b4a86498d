"""A scheduler of diffusers that samples a student in any number of steps, whatever the pipeline asks it for.

``pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config)`` replaces a pipeline's own. A model_index.json
that names this module as the scheduler's library opens where this package is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchEulerDiscreteSchedulerOutput,
)
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401 (from_pretrained looks for it here)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class FewStepScheduler(FlowMatchEulerDiscreteScheduler):
    """Noise levels 1, (N - 1)/N, ..., 1/N without any shift; each step jumps to the data and adds fresh noise again.

    generator: what fresh noise is drawn from where the pipeline passes no generator; None: PyTorch's global one.

    Between two steps the sample is kept in float64, as :func:`facm.sampling.solvers.consistency` keeps it.
    """

    generator: torch.Generator | None = None
    _kept: Tensor | None = None

    def set_timesteps(
        self: Any,  # diffusers' annotations do not say what it holds
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """sigmas: noise levels that start at 1 and fall, used as they are; mu, a shift, is not used."""
        if timesteps is not None:
            raise ValueError("timesteps: expected num_inference_steps, or sigmas, noise levels from 1 down")
        if sigmas is None:
            if num_inference_steps is None:
                raise ValueError("num_inference_steps = None and sigmas = None, expected one of them")
            sigmas = [1 - i / num_inference_steps for i in range(num_inference_steps)]
        self.num_inference_steps = len(sigmas)
        # This package's networks are asked at times 1 - sigma in float32; the last digit then is the same here.
        levels = 1 - torch.tensor([1 - sigma for sigma in map(float, sigmas)], dtype=torch.float32)
        self.timesteps = (levels * self.config.num_train_timesteps).to(device)
        self.sigmas = torch.cat([levels, levels.new_zeros(1)])
        self._exact_sigmas = [*map(float, sigmas), 0.0]
        self._step_index = self._begin_index = self._kept = None

    def _exact(self, sample: Tensor) -> Tensor:
        """``sample`` as the last step left it, in float64; what the pipeline changed since then counts."""
        kept = self._kept
        if kept is not None and kept.shape == sample.shape and torch.equal(kept.to(sample.dtype), sample):
            return kept
        return sample.to(torch.float32 if sample.device.type == "mps" else torch.float64)  # which MPS does not have

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
        x = self._exact(sample)
        fresh_noise = partial(
            randn_tensor,
            sample.shape,
            generator=generator or self.generator,
            device=sample.device,
            dtype=torch.float32,
        )
        self._kept = self._next(x, model_output.to(x.dtype), fresh_noise)
        self._step_index += 1
        previous: Any = self._kept.to(model_output.dtype)
        return FlowMatchEulerDiscreteSchedulerOutput(previous) if return_dict else (previous,)

    def _next(self: Any, x: Tensor, output: Tensor, fresh_noise: Callable[[], Tensor]) -> Tensor:
        """x at the next noise level; output: noise - data, like x."""
        sigma, lower = self._exact_sigmas[self._step_index : self._step_index + 2]
        x_1 = x - sigma * output
        return (1 - lower) * x_1 + lower * fresh_noise().to(x.dtype) if lower > 0 else x_1


class CountingScheduler(FewStepScheduler):
    """Steps whose noise levels are its own, from their number alone: ``_levels``, whatever levels a pipeline says."""

    def set_timesteps(
        self: Any,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """The levels of ``num_inference_steps``; those that a pipeline says itself are counted, and not used."""
        steps = num_inference_steps or (None if sigmas is None else len(sigmas))
        if timesteps is not None or steps is None:
            raise ValueError("timesteps, or no num_inference_steps: expected num_inference_steps")
        super().set_timesteps(sigmas=self._levels(steps), device=device)

    def _levels(self, num_steps: int) -> list[float]:
        """The noise level of each step; called once before the first of them."""
        raise NotImplementedError
