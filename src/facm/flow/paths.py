"""The OT-FM (linear) path and conversions between what networks predict.

    x_t = (1 - t) x_0 + t x_1,   v = dx_t/dt = x_1 - x_0          (paper, Sec. 2.1)

t = 0 is noise x_0, t = 1 is data x_1. All functions take t (B,) and tensors (B, ...).
"""

from __future__ import annotations

from torch import Tensor

from facm.core.tensors import check_same_shape, check_time, expand


def interpolate(x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x_0 + t x_1. Raises ValueError on unequal shapes or t outside [0, 1]."""
    check_same_shape(x_0=x_0, x_1=x_1)
    check_time(t, x_1)
    t = expand(t, x_1)
    return (1 - t) * x_0 + t * x_1


def velocity(x_0: Tensor, x_1: Tensor) -> Tensor:
    """v = x_1 - x_0, the conditional velocity of the linear path."""
    check_same_shape(x_0=x_0, x_1=x_1)
    return x_1 - x_0


def x_1_from_velocity(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """x_1 = x_t + (1 - t) v. With the average velocity from t to 1 this is the consistency function f (Eq. 3)."""
    check_same_shape(x_t=x_t, v=v)
    return x_t + (1 - expand(t, x_t)) * v
