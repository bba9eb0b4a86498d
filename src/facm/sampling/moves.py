"""Sampling on both heads of a student, move by move: jumps that are renoised and steps along the flow, in any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from facm.core.types import VelocityField
from facm.sampling.solvers import at_time, check_times

Move = Literal["jump", "euler", "adams", "heun"]
"""How a time leads to the next: a jump to data that is renoised, or a step along the flow.

jump: x_1 = x + (1 - t) F, then t_next x_1 + (1 - t_next) z with fresh noise z. One evaluation.
euler: Euler's step. One evaluation, first order.
adams: the two-step Adams-Bashforth step, which extrapolates from the velocity of the step before; Euler's where the
    move before was none along the flow. One evaluation, second order.
heun: Heun's step. Two evaluations, second order.
"""

EVALUATIONS: dict[Move, int] = {"jump": 1, "euler": 1, "adams": 1, "heun": 2}
"""Network evaluations of each move."""


def evaluations(moves: Sequence[Move]) -> int:
    """Network evaluations of the moves and of the jump to data that ends them."""
    return sum(EVALUATIONS[move] for move in moves) + 1


@torch.no_grad()
def follow(
    v: VelocityField,
    F: VelocityField,
    x_0: Tensor,
    times: Sequence[float],
    moves: Sequence[Move],
    fresh_noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """From each time to the next by its move, and from the last to data by a jump.

    v: instantaneous velocity, asked at c_FM. F: average velocity to 1, asked at c_CM. x_0 (B, ...): initial noise.
    times: t_1 = 0 < ... < t_k < 1. moves: k - 1 of them, the i-th from t_i to t_{i+1}. fresh_noise(i) gives the noise
    (B, ...) of the i-th jump, i = 1, 2, ...
    """
    check_times(times)
    if len(moves) != len(times) - 1:
        raise ValueError(f"{len(moves)} moves for {len(times)} times, expected one from each time to the next")
    x, jumps = x_0.double(), 0
    before: tuple[float, Tensor] | None = None  # length and velocity of the step before
    for (t, t_next), move in zip(pairwise(times), moves, strict=True):
        h = t_next - t
        if move == "jump":
            if fresh_noise is None:
                raise ValueError(f"moves = {list(moves)} need fresh_noise, got None")
            jumps += 1
            x_1_hat = x + (1 - t) * at_time(F, x, t, x_0.dtype)
            x, before = t_next * x_1_hat + (1 - t_next) * fresh_noise(jumps).to(x), None
            continue
        d = at_time(v, x, t, x_0.dtype)
        slope = d
        if move == "heun":
            slope = (d + at_time(v, x + h * d, t_next, x_0.dtype)) / 2
        elif move == "adams" and before is not None:
            h_before, d_before = before
            slope = d + h / (2 * h_before) * (d - d_before)
        x, before = x + h * slope, (h, d)
    t = times[-1]
    return (x + (1 - t) * at_time(F, x, t, x_0.dtype)).to(x_0.dtype)
