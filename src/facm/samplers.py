"""Samplers: plain functions of a velocity field, an initial noise and a schedule of times from 0 to 1.

The state is kept in float64 and the field asked in the noise's own dtype, which the output keeps. Every draw is made by
the caller's ``fresh_noise``, and none after the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from facm.types import VelocityField


def uniform_times(n: int) -> list[float]:
    """t_i = (i - 1)/n for i = 1 .. n (App. A.3 b)."""
    if n < 1:
        raise ValueError(f"nfe = {n}: zero steps make no sample; expected at least 1")
    return [i / n for i in range(n)]


def shifted_times(n: int, shift: float) -> list[float]:
    """The uniform schedule under t -> s t / (1 + (s - 1) t). In this package's time s > 1 spends more steps near
    data; the reversed convention's shift is 1/s."""
    if not shift > 0:
        raise ValueError(f"shift = {shift}, expected a positive number (1 is the uniform schedule)")
    return [shift * t / (1 + (shift - 1) * t) for t in uniform_times(n)]


def check_times(times: Sequence[float]) -> None:
    """Raise ValueError unless the times start at 0 and increase strictly within [0, 1)."""
    increasing = all(a < b for a, b in pairwise([*times, 1.0]))
    if not times or times[0] != 0 or not increasing:
        raise ValueError(f"times = {list(times)}, expected times that start at 0 and increase strictly below 1")


def _at(F: VelocityField, x: Tensor, t: float, dtype: torch.dtype) -> Tensor:
    return F(x.to(dtype), torch.full((len(x),), t, dtype=dtype, device=x.device)).double()


@torch.no_grad()
def consistency(
    F: VelocityField, x_0: Tensor, times: Sequence[float], fresh_noise: Callable[[int], Tensor] | None = None
) -> Tensor:
    """Multi-step consistency sampling (Eq. 19): jump to x_1, renoise to the next time, jump again.

    F: average velocity, asked at c_CM. x_0 (B, ...): initial noise. times: t_1 = 0 < ... < t_N. fresh_noise(i) gives
    z_i (B, ...) for i = 1 .. N - 1. N evaluations of F.
    """
    check_times(times)
    if len(times) > 1 and fresh_noise is None:
        raise ValueError(f"{len(times)} consistency steps need fresh_noise, got None")
    x, x_1_hat = x_0.double(), x_0.double()
    for i, t in enumerate(times):
        if i > 0:
            assert fresh_noise is not None
            x = t * x_1_hat + (1 - t) * fresh_noise(i).to(x)
        x_1_hat = x + (1 - t) * _at(F, x, t, x_0.dtype)
    return x_1_hat.to(x_0.dtype)


@torch.no_grad()
def euler(F: VelocityField, x_0: Tensor, times: Sequence[float]) -> Tensor:
    """Euler's method from t = 0 to 1; F: instantaneous velocity. One evaluation a step, first order."""
    check_times(times)
    x = x_0.double()
    for t, t_next in zip(times, [*times[1:], 1.0], strict=True):
        x = x + (t_next - t) * _at(F, x, t, x_0.dtype)
    return x.to(x_0.dtype)


@torch.no_grad()
def heun(F: VelocityField, x_0: Tensor, times: Sequence[float]) -> Tensor:
    """Heun's method, the last step by Euler: 2N - 1 evaluations, second order up to the last step."""
    check_times(times)
    x = x_0.double()
    for t, t_next in zip(times, [*times[1:], 1.0], strict=True):
        d = _at(F, x, t, x_0.dtype)
        x_next = x + (t_next - t) * d
        if t_next < 1:
            x_next = x + (t_next - t) * (d + _at(F, x_next, t_next, x_0.dtype)) / 2
        x = x_next
    return x.to(x_0.dtype)
