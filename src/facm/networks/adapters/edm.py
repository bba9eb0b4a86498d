"""EDM's denoiser (Karras et al. 2022, arXiv 2206.00364, Table 1) as a velocity on the linear path.

    x_t = t x_1 + (1 - t) x_0:   x_t / t = x_1 + sigma x_0 with sigma = (1 - t) / t

EDM predicts the data, D = c_skip x_t / t + c_out G(c_in x_t / t, c_noise), from a network G; the velocity is
v = (D - x_t) / (1 - t). With S^2 = (1 - t)^2 + sigma_data^2 t^2 its c_in, c_skip and c_out leave no division by t or by
1 - t:

    v = (sigma_data^2 t - (1 - t)) / S^2 x_t + sigma_data / S G(x_t / S, ln(sigma) / 4)

which is finite at both ends. x_t / S has unit variance at every t for data of standard deviation sigma_data. Only
ln(sigma) is infinite at the ends: it is clamped to [ln(sigma_min), ln(sigma_max)], the range of EDM's sampler, while
x_t / S and the two factors are not. The velocity stays continuous, and for data N(0, sigma_data^2), where G = 0, it is
exact outside the range as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from facm.core.component import Positive, component, refused
from facm.core.cond import Cond
from facm.core.tensors import at_least_float32, expand
from facm.core.types import NetworkConfig
from facm.networks.adapters.base import Adapter


@dataclass(frozen=True)
@component
class EDM(NetworkConfig):
    """A network G with EDM's preconditioning as F(x, c, cond[, r]) with t = 0 noise, t = 1 data.

    G is called as net(x, t=c_noise (B,), cond=...) with c_noise = ln(sigma) / 4; a second time r and the time of a
    weight head are passed as their c_noise as well.

    For c in (1, 2] the path is at t = 2 - c and c_noise is reflected at its value for data, ln(sigma_min) / 4: the rule
    for reversed time of Sec. 3.2.2. (-c_noise itself would be the c_noise of another time.)
    The output is float32 or better, whatever precision the network computes in.
    Raises ComponentError unless sigma_min < sigma_max.
    """

    network: NetworkConfig
    """Configuration of the network G."""
    sigma_data: Positive = 0.5
    """Standard deviation of the data that G was trained with, above 0."""
    sigma_min: Positive = 0.002
    """Lowest noise level that G is evaluated at; below it c_noise is constant."""
    sigma_max: Positive = 80.0
    """Highest noise level that G is evaluated at; above it c_noise is constant."""

    def __post_init__(self) -> None:
        if not self.sigma_min < self.sigma_max:
            raise refused(self, "sigma_min", f"less than sigma_max = {self.sigma_max}")

    def build(self) -> EDMNetwork:
        return EDMNetwork(self.network.build(), self)


def noise_condition(t: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    """c_noise = ln(sigma) / 4 (B,) of t (B,) in [0, 1], with sigma = (1 - t) / t clamped to [sigma_min, sigma_max].

    In float32 or better. The derivative is 0 where sigma is clamped.
    """
    # The time is clamped, not sigma or its logarithm, whose derivatives at 0 and 1 are infinite.
    t = torch.clamp(at_least_float32(t), 1 / (1 + sigma_max), 1 / (1 + sigma_min))
    return (torch.log1p(-t) - torch.log(t)) / 4


class EDMNetwork(Adapter):
    """F from G; see :class:`EDM`."""

    config: EDM

    def forward(self, x: Tensor, t: Tensor, cond: Cond = None, r: Tensor | None = None) -> Tensor:
        c, x_t = at_least_float32(t), at_least_float32(x)
        a = expand(torch.where(c > 1, 2 - c, c), x_t).to(x_t.dtype)
        variance = self.config.sigma_data**2
        S_squared = (1 - a).square() + variance * a.square()
        S = S_squared.sqrt()
        arguments = {} if cond is None else {"cond": cond}
        if r is not None:
            arguments["r"] = self.inner_time(r)
        G = at_least_float32(self.inner((x_t / S).to(x.dtype), t=self.inner_time(t), **arguments))
        return (variance * a - (1 - a)) / S_squared * x_t + self.config.sigma_data / S * G

    def inner_time(self, t: Tensor) -> Tensor:
        """c_noise (B,) of the time condition t (B,) in [0, 2], reflected at the data's level for t > 1."""
        c = at_least_float32(t)
        noise = noise_condition(torch.where(c > 1, 2 - c, c), self.config.sigma_min, self.config.sigma_max)
        return torch.where(c > 1, math.log(self.config.sigma_min) / 2 - noise, noise)
