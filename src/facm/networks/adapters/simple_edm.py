"""Simple-EDM (IMM, arXiv 2503.07565, App. C.5), the paper's parametrisation on CIFAR-10 (Table 5), as a velocity.

On the linear path with s^2 = t^2 + (1 - t)^2 a network G gives the data f that a sample ends in, and F the velocity
that leads there:

    f = t/s^2 x - (1 - t)/s sigma_data G(x/(s sigma_data), c)      and      f = x + (1 - t) F
    F = (2t - 1)/s^2 x - sigma_data/s G(x/(s sigma_data), c)

which is finite at both ends: F = -x - sigma_data G at t = 0, F = x - sigma_data G at t = 1. With a second time r the
same F leads from t to r in a straight line, which is IMM's jump.

IMM scales its noise by sigma_data, so that the input and the target of G have unit variance at all times for data of
standard deviation sigma_data. Here noise is N(0, I). For data of standard deviation 0.5 the variance of the input, from
noise to data, runs from 4 to 1 with sigma_data = 0.5, from 2 to 1/2 with sqrt(0.5) and from 1 to 1/4 with 1.0; that of
the target runs from 1 to 4, from 1/2 to 2 and from 1/4 to 1. No sigma_data gives 1 at both ends unless data are scaled
to the standard deviation of the noise. The two paths pass through the same samples at other times and scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from facm.core.component import Positive, component
from facm.core.cond import Cond
from facm.core.tensors import at_least_float32, expand
from facm.core.types import NetworkConfig
from facm.networks.adapters.base import Adapter


@dataclass(frozen=True)
@component
class SimpleEDM(NetworkConfig):
    """A network G of (x, c, cond[, r]) as the velocity F(x, c, cond[, r]).

    For c in (1, 2] the path is at t = 2 - c; G gets c itself, and r unchanged.
    The output is float32 or better, whatever precision the network computes in.
    """

    network: NetworkConfig
    """Configuration of the network G."""
    sigma_data: Positive = 0.5
    """Standard deviation that the input of G is divided by; 0.5 (EDM, IMM) is about that of images in [-1, 1]."""

    def build(self) -> SimpleEDMNetwork:
        return SimpleEDMNetwork(self.network.build(), self)


class SimpleEDMNetwork(Adapter):
    """F from G; see :class:`SimpleEDM`."""

    config: SimpleEDM

    def forward(self, x: Tensor, t: Tensor, cond: Cond = None, r: Tensor | None = None) -> Tensor:
        x_t = at_least_float32(x)
        a = expand(torch.where(t > 1, 2 - t, t), x_t).to(x_t.dtype)
        sigma_data, square = self.config.sigma_data, a.square() + (1 - a).square()
        scale = sigma_data * square.rsqrt()  # sigma_data / s
        times = {"t": t} if r is None else {"t": t, "r": r}
        G = self.inner((x_t * scale / sigma_data**2).to(x.dtype), cond=cond, **times)
        return (2 * a - 1) / square * x_t - scale * at_least_float32(G)
