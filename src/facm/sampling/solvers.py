"""Samplers: plain functions of a velocity field, an initial noise and a schedule of times from 0 to 1.

The state is kept in float64 and the field asked in the noise's own dtype, which the output keeps. Every draw is made by
the caller's ``fresh_noise``, and none after the last step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from facm.core.types import VelocityField


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


def at_time(F: VelocityField, x: Tensor, t: float, dtype: torch.dtype) -> Tensor:
    """F (B, ...) in float64 at x (B, ...) and one time for all, asked in ``dtype``."""
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
        x_1_hat = x + (1 - t) * at_time(F, x, t, x_0.dtype)
    return x_1_hat.to(x_0.dtype)


@torch.no_grad()
def phased(
    F: VelocityField,
    x_0: Tensor,
    times: Sequence[float],
    bounds: Sequence[float],
    fresh_noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Consistency sampling phase by phase: jump to the end of the phase, renoise to the next time in it, jump again;
    from one phase to the next without noise.

    F: average velocity from t to the end of t's phase. bounds: 0 = b_0 < ... < b_K = 1, the phases' ends, all of which
    but the last are among the times. Otherwise as :func:`consistency`, which this is for the bounds (0, 1).
    """
    check_times(times)
    check_phases(times, bounds)
    x = x_0.double()
    for i, t in enumerate(times):
        end = min(bound for bound in bounds if bound > t)
        x_end = x + (end - t) * at_time(F, x, t, x_0.dtype)
        if i + 1 == len(times) or times[i + 1] == end:
            x = x_end
            continue
        if fresh_noise is None:
            raise ValueError(f"{len(times)} steps in {len(bounds) - 1} phases need fresh_noise, got None")
        x = renoised(x_end, end, times[i + 1], fresh_noise(i + 1))
    return x.to(x_0.dtype)


def renoised(x_end: Tensor, end: float, t: float, noise: Tensor) -> Tensor:
    """From x_end (B, ...) at the end of a phase back to t < end, like x_end. It is noisy itself before 1: its part of
    the noise is kept, and the rest of the variance is ``noise``."""
    s, kept = 1 - t, t / end
    return kept * x_end + math.sqrt(s**2 - (kept * (1 - end)) ** 2) * noise.to(x_end)


def phased_times(steps: Sequence[int], bounds: Sequence[float], shift: float = 1.0) -> list[float]:
    """The schedule with ``steps[k]`` steps in phase k, which are spread as :func:`shifted_times` spreads them."""
    phases = zip(steps, pairwise(bounds), strict=True)
    return [low + (high - low) * t for n, (low, high) in phases for t in shifted_times(n, shift)]


def spread_over_phases(nfe: int, phases: int) -> tuple[int, ...]:
    """Steps of each phase, as equal as they can be; later ones have what is left over. Raises ValueError for fewer
    steps than phases."""
    if nfe < phases:
        raise ValueError(f"nfe = {nfe} for {phases} phases, expected at least {phases}: a step in each of them")
    return tuple((nfe + k) // phases for k in range(phases))


def check_phases(times: Sequence[float], bounds: Sequence[float]) -> None:
    """Raise ValueError unless the bounds go from 0 to 1 and each phase begins with a step."""
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != 1 or any(a >= b for a, b in pairwise(bounds)):
        raise ValueError(f"bounds = {tuple(bounds)}, expected times that increase from 0 to 1")
    if missing := [bound for bound in bounds[:-1] if bound not in times]:
        raise ValueError(f"times = {list(times)}, expected a step at {missing[0]:g}, where a phase begins")


@torch.no_grad()
def euler(F: VelocityField, x_0: Tensor, times: Sequence[float]) -> Tensor:
    """Euler's method from t = 0 to 1; F: instantaneous velocity. One evaluation a step, first order."""
    check_times(times)
    x = x_0.double()
    for t, t_next in zip(times, [*times[1:], 1.0], strict=True):
        x = x + (t_next - t) * at_time(F, x, t, x_0.dtype)
    return x.to(x_0.dtype)


@torch.no_grad()
def heun(F: VelocityField, x_0: Tensor, times: Sequence[float]) -> Tensor:
    """Heun's method, the last step by Euler: 2N - 1 evaluations, second order up to the last step."""
    check_times(times)
    x = x_0.double()
    for t, t_next in zip(times, [*times[1:], 1.0], strict=True):
        d = at_time(F, x, t, x_0.dtype)
        x_next = x + (t_next - t) * d
        if t_next < 1:
            x_next = x + (t_next - t) * (d + at_time(F, x_next, t_next, x_0.dtype)) / 2
        x = x_next
    return x.to(x_0.dtype)


def flow_then_jump_times(nfe: int) -> list[float]:
    """The schedule of ``--sampler flow-jump``: 0, where each of (nfe - 1) // 2 steps along the flow ends, and with an
    even ``nfe`` how far back the noise between the two jumps leads.

    One step goes to 0.55, of two each goes half of what is left, three do so nearly; from four on the flow ends at
    15/16 and they grow finer everywhere. The noise leads 0.7 of what is left beyond the last (results/README.md, "Both
    heads"). One evaluation is a jump, and two are consistency sampling.
    """
    steps = (nfe - 1) // 2
    if steps < 1:
        return [0.0, 0.5][:nfe]
    end = 0.55 if steps == 1 else 1 - 0.5 ** min(steps, 4)
    flow = [*(end * t for t in shifted_times(steps, min(steps, 3))), end]
    return flow if nfe % 2 else [*flow, end + 0.7 * (1 - end)]


@torch.no_grad()
def jumps(F: Callable[[Tensor, Tensor, Tensor], Tensor], x_0: Tensor, times: Sequence[float]) -> Tensor:
    """From each time to the next by an average velocity: x_r = x_t + (r - t) F(x_t, t, r), the last r being 1.

    F(x, t, r): the average velocity from t to r (MeanFlow, Shortcut models, IMM's push-forward sampler). One evaluation
    a step, and no noise but the first.
    """
    check_times(times)
    x = x_0.double()
    for t, r in zip(times, [*times[1:], 1.0], strict=True):
        told = torch.full((len(x),), r, dtype=x_0.dtype, device=x.device)
        x = x + (r - t) * at_time(lambda x, t, r=told: F(x, t, r), x, t, x_0.dtype)
    return x.to(x_0.dtype)


@torch.no_grad()
def dpm_solver_pp(F: VelocityField, x_0: Tensor, times: Sequence[float]) -> Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095, Algorithm 2) from t = 0 to 1: one evaluation a step, second order.

    F: instantaneous velocity, which predicts the data D = x + (1 - t) F. Each step goes straight towards a D that is
    extrapolated, linearly in lambda = ln(t/(1 - t)), to the middle of the step. lambda is infinite at both ends: the
    second step has nothing to extrapolate from, and the last is of first order, as the authors advise. Over even steps
    of t the order is therefore 2 up to a logarithm.
    """
    check_times(times)
    x, before = x_0.double(), x_0.double()
    nodes = [*times, 1.0]
    for i, (t, t_next) in enumerate(pairwise(nodes)):
        D = x + (1 - t) * at_time(F, x, t, x_0.dtype)
        towards = D
        if i > 1 and t_next < 1:
            behind, here, ahead = (math.log(node / (1 - node)) for node in nodes[i - 1 : i + 2])
            towards = D + (ahead - here) / (here - behind) / 2 * (D - before)
        x, before = x + (t_next - t) / (1 - t) * (towards - x), D
    return x.to(x_0.dtype)


def edm_sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> list[float]:
    """EDM's n noise levels (arXiv 2206.00364, Eq. 5), falling from sigma_max to sigma_min; the step to 0 follows."""
    if n < 1:
        raise ValueError(f"{n} steps make no sample; expected at least 1")
    if not (0 < sigma_min < sigma_max and rho > 0):
        got = f"sigma_min = {sigma_min}, sigma_max = {sigma_max}, rho = {rho}"
        raise ValueError(f"{got}, expected 0 < sigma_min < sigma_max and rho > 0")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return [(high + i / max(n - 1, 1) * (low - high)) ** rho for i in range(n)]


@torch.no_grad()
def edm_heun(F: VelocityField, x_0: Tensor, sigmas: Sequence[float]) -> Tensor:
    """EDM's deterministic sampler (arXiv 2206.00364, Algorithm 1): Heun in the noise level, the last step to 0 by
    Euler; 2N - 1 evaluations, second order.

    F: instantaneous velocity. At t = 1/(1 + sigma), y = x/t is data plus sigma times noise; dy/dsigma = (y - D)/sigma
    with D = x + (1 - t) F. sigmas: N falling noise levels above 0; at the first, y is taken for noise alone.
    """
    if not sigmas or any(a <= b for a, b in pairwise([*sigmas, 0.0])):
        raise ValueError(f"sigmas = {list(sigmas)}, expected noise levels that fall strictly and stay above 0")

    def slope(y: Tensor, sigma: float) -> Tensor:
        t = 1 / (1 + sigma)
        return (y - t * y - (1 - t) * at_time(F, t * y, t, x_0.dtype)) / sigma

    y = sigmas[0] * x_0.double()
    for sigma, lower in pairwise([*sigmas, 0.0]):
        d = slope(y, sigma)
        y_next = y + (lower - sigma) * d
        if lower > 0:
            y_next = y + (lower - sigma) * (d + slope(y_next, lower)) / 2
        y = y_next
    return y.to(x_0.dtype)
