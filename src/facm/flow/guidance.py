"""Classifier-free guidance with an interval (Eq. 9).

    v = v_u + w (v_c - v_u)   for t in [low, high],   v = v_c elsewhere

w is ``guidance_scale``: w = 1 is no guidance at all, w < 1 an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from facm.core.component import Fraction, Range, component, refused
from facm.core.cond import Cond, joined, taken
from facm.core.modules import has_compiled_parts, is_compiled, unwrapped
from facm.core.objective import Condition, Times
from facm.core.tensors import at_least_float32, expand
from facm.core.types import GuidesItself, Scale, VelocityField


@dataclass(frozen=True)
@component
class Guidance:
    """Guidance of strength w for low <= t <= high, both inclusive (Table 5: 1.75, 0.125)."""

    scale: Annotated[float, Range("[1, 1e12]")] = 1.75
    """Guidance scale w >= 1; 1 is no guidance."""
    low: Fraction = 0.125
    """Earliest time t in [0, 1] at which guidance is active."""
    high: Fraction = 1.0
    """Latest time t in [0, 1] at which guidance is active."""

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise refused(self, "low", f"at most high = {self.high}")

    @property
    def strongest(self) -> float:
        """The largest w of all times; 1 is no guidance anywhere."""
        return self.scale

    def at(self, t: Tensor, like: Tensor) -> Scale:
        """w at the times t (B,) of ``like`` (B, ...)."""
        return self.scale

    def active(self, t: Tensor) -> Tensor:
        """(B,) bool: where guidance acts."""
        return (t >= self.low) & (t <= self.high) & (self.at(t, t) > 1)


NO_GUIDANCE = Guidance(1.0)


def extrapolate(v_c: Tensor, v_u: Tensor, scale: Scale) -> Tensor:
    """v_u + w (v_c - v_u)."""
    return v_u + scale * (v_c - v_u)


def guide(network: Any, v_c: Tensor, v_u: Tensor, scale: Scale) -> Tensor:
    """The guided velocity by the network's own rule, or :func:`extrapolate` where it has none."""
    inner = unwrapped(network)
    rule = inner.guide_velocity if isinstance(inner, GuidesItself) else extrapolate
    return rule(v_c, v_u, scale)


def both_velocities(network: Any, x_t: Tensor, times: Times, cond: Cond, null: Cond) -> tuple[Tensor, Tensor]:
    """Predictions under the condition and under the null, in one pass of 2B samples."""
    twice = {name: torch.cat([c, c]) for name, c in times.items()}
    v_c, v_u = at_least_float32(network(torch.cat([x_t, x_t]), cond=joined(cond, null), **twice)).chunk(2)
    return v_c, v_u


MOST = 0.75
"""From such a length of the interval on all samples are asked for both velocities on a GPU: not measured on one yet."""


def runs_behind(t: Tensor) -> bool:
    """Whether the host would have to wait for the numbers in ``t``."""
    return t.device.type != "cpu"


def guided_velocity(
    network: Any,
    at: Callable[[Tensor], Times],
    x_t: Tensor,
    t: Tensor,
    cond: Cond,
    condition: Condition,
    guidance: Guidance,
) -> Tensor:
    """The network's velocity at (x_t, t), guided where ``guidance`` is active.

    One forward pass over the conditional batch plus the unconditional branch for samples inside the guidance interval;
    under torch.compile the whole batch, to keep shapes static, and on a GPU, too, where the interval is most of [0, 1]:
    how many samples are inside is known only once the device has drawn them, and waiting for it costs more than the few
    that are not.

    at: maps t (B,) to the network's time arguments.
    """
    if guidance.strongest == 1:
        return at_least_float32(network(x_t, cond=cond, **at(t)))
    null, active = condition.null(cond), guidance.active(t)
    compiled = torch.compiler.is_compiling() or is_compiled(network) or has_compiled_parts(network)
    if compiled or (runs_behind(t) and guidance.high - guidance.low >= MOST):
        v_c, v_u = both_velocities(network, x_t, at(t), cond, null)
        return torch.where(expand(active, v_c), guide(network, v_c, v_u, guidance.at(t, v_c)), v_c)
    which = active.nonzero().squeeze(1)
    times = {name: torch.cat([c, c[which]]) for name, c in at(t).items()}
    both = joined(cond, taken(null, which))
    out = at_least_float32(network(torch.cat([x_t, x_t[which]]), cond=both, **times))
    v_c, v_u = out[: len(t)], out[len(t) :]
    return v_c.index_copy(0, which, guide(network, v_c[which], v_u, guidance.at(t[which], v_u)))


def velocity_field(
    network: Any,
    at: Callable[[Tensor], Times],
    cond: Cond,
    condition: Condition,
    guidance: Guidance = NO_GUIDANCE,
) -> VelocityField:
    """What a sampler integrates: (x, t) -> v, every t of a batch being the same; no null pass where guidance is off,
    and nothing is chosen or copied where it acts, on all samples at once."""
    null = None if guidance.strongest == 1 else condition.null(cond)

    def field(x: Tensor, t: Tensor) -> Tensor:
        if guidance.strongest == 1 or not bool(guidance.active(t[:1])):
            return guided_velocity(network, at, x, t, cond, condition, NO_GUIDANCE)
        v_c, v_u = both_velocities(network, x, at(t), cond, null)
        return guide(network, v_c, v_u, guidance.at(t, v_c))

    return field
