"""A noise-prediction network on the variance-preserving path (DDPM, DiT) as a velocity on the linear path.

    x_t = t x_1 + (1 - t) x_0,  s = sqrt(t^2 + (1 - t)^2):   x_t / s is a VP sample with sqrt(alpha_bar) = t / s

The network is evaluated at x_t / s and at the timestep tau(t) of the same signal-to-noise ratio, and predicts
eps = E[x_0 | x_t]; then v = E[x_1 - x_0 | x_t] = (x_t - eps) / t. The schedule ends before alpha_bar is 0, at t_min
(0.0063 for DDPM). Below t_min, x_t / s is taken for a sample of the last timestep T, with the endpoint
x_1 = (x_t / s - sigma_T eps) / alpha_T and v = (x_1 - x_t) / (1 - t), which agrees at t_min and is finite at 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from facm.core.component import Range, component, refused
from facm.core.cond import Cond
from facm.core.tensors import at_least_float32, expand
from facm.core.types import NetworkConfig
from facm.networks.adapters.base import Adapter

Beta = Annotated[float, Range("[1e-12, 1)")]
"""The share of the signal that one timestep loses."""


@dataclass(frozen=True)
@component
class VariancePreserving(NetworkConfig):
    """A network that predicts noise at discrete timesteps as F(x, c, cond) with t = 0 noise, t = 1 data.

    The network is called as net(x, t=timestep (B,) in [0, steps - 1], cond=...). Arguments with other names are
    translated by ``Foreign(network, reversed_time=False, time_name=..., cond_name=...)`` inside.

    For c in (1, 2] the path is at t = 2 - c and the network gets -tau(t), the rule for reversed time of Sec. 3.2.2.
    The output is float32 or better, whatever precision the network computes in: (x_t - eps) / t cancels for small t.
    Raises ComponentError unless beta_start <= beta_end.
    """

    network: NetworkConfig
    """Configuration of the network."""
    steps: Annotated[int, Range("[2, 1000000]")] = 1000
    """Number of timesteps that the network was trained on, at least 2."""
    beta_start: Beta = 1e-4
    """First beta of the linear schedule, above 0; the default is that of DDPM, ADM and DiT."""
    beta_end: Beta = 0.02
    """Last beta of the linear schedule, below 1; the default is that of DDPM, ADM and DiT."""

    def __post_init__(self) -> None:
        if not self.beta_start <= self.beta_end:
            raise refused(self, "beta_start", f"at most beta_end = {self.beta_end}")

    def build(self) -> VariancePreservingNetwork:
        return VariancePreservingNetwork(self.network.build(), self)


def log_noise_ratios(config: VariancePreserving, device: torch.device | str = "cpu") -> Tensor:
    """log(sigma / alpha) of each timestep, with alpha^2 = alpha_bar = 1 - sigma^2: (steps,) float64, increasing."""
    betas = torch.linspace(config.beta_start, config.beta_end, config.steps, dtype=torch.float64, device=device)
    log_alpha_bar = torch.log1p(-betas).cumsum(0)
    return (torch.log(-torch.expm1(log_alpha_bar)) - log_alpha_bar) / 2


def timestep(t: Tensor, ratios: Tensor) -> Tensor:
    """tau(t) of t (B,) in [0, 1]: the timestep with log(sigma / alpha) = log((1 - t) / t), (B,) float64.

    It is interpolated linearly between the entries of ``ratios`` (:func:`log_noise_ratios`) and clamped to
    [0, steps - 1]. Differentiable in t.
    """
    t_min, t_max = torch.sigmoid(-ratios[-1]), torch.sigmoid(-ratios[0])
    t = torch.clamp(t.double(), t_min, t_max)  # before the logarithm, whose derivative at 0 and 1 is infinite
    ratio = torch.log1p(-t) - torch.log(t)
    after = torch.searchsorted(ratios, ratio.detach()).clamp(1, len(ratios) - 1)
    low, high = ratios[after - 1], ratios[after]
    return after - 1 + (ratio - low) / (high - low)


class VariancePreservingNetwork(Adapter):
    """F from a network that predicts noise; see :class:`VariancePreserving`."""

    passes_second_time = False
    config: VariancePreserving

    def forward(self, x: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        c, x_t = at_least_float32(t), at_least_float32(x)
        # Not a buffer: casting the network to half precision would take the table with it.
        ratios = log_noise_ratios(self.config, x.device)
        a = expand(torch.where(c > 1, 2 - c, c), x_t).to(x_t.dtype)
        sample = x_t / (a.square() + (1 - a).square()).sqrt()
        arguments = {} if cond is None else {"cond": cond}
        eps = at_least_float32(self.inner(sample.to(x.dtype), t=_signed_timestep(c, ratios), **arguments))
        last = ratios[-1]
        t_min = torch.sigmoid(-last).to(a.dtype)
        alpha = torch.rsqrt(1 + (2 * last).exp()).to(a.dtype)
        x_1 = sample / alpha - last.exp().to(a.dtype) * eps  # sigma / alpha = exp(last)
        below = (x_1 - x_t) / (1 - a.clamp(max=t_min))
        return torch.where(a < t_min, below, (x_t - eps) / a.clamp(min=t_min))

    def inner_time(self, t: Tensor) -> Tensor:
        c = at_least_float32(t)
        return _signed_timestep(c, log_noise_ratios(self.config, c.device))


def _signed_timestep(c: Tensor, ratios: Tensor) -> Tensor:
    """tau(c) for c (B,) in [0, 1], -tau(2 - c) above, in the dtype of c."""
    anchor = c > 1
    tau = timestep(torch.where(anchor, 2 - c, c), ratios).to(c.dtype)
    return torch.where(anchor, -tau, tau)
