"""The relaxed consistency target, shared by every objective that learns the shortcut (Eq. 11-13)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from facm.core.tensors import expand


@dataclass(frozen=True)
class ShortcutTarget:
    """v_bar, g and v_tar, all (B, ...) and without graph."""

    v_bar: Tensor
    g: Tensor
    v_tar: Tensor


def shortcut_target(
    F_CM: Tensor, dF: Tensor, v: Tensor, t: Tensor, alpha: Tensor, clamp: float | None
) -> ShortcutTarget:
    """One relaxation step of the fixed-point iteration F = v + (1 - t) dF/dt.

    F_CM, dF, v: (B, ...); t, alpha: (B,); clamp: bound of the residual g, or None. alpha = 1 is no interpolation.
    """
    F_sg = F_CM.detach()
    v_bar = v + (1 - expand(t, v)) * dF.detach()  # Alg. 1, line 7
    g = F_sg - v_bar  # Eq. 11
    g_clamped = g if clamp is None else g.clamp(-clamp, clamp)
    return ShortcutTarget(v_bar, g, F_sg - expand(alpha, v) * g_clamped)  # Eq. 12


def check_clamp(clamp: float | None) -> None:
    if clamp is not None and not clamp > 0:
        raise ValueError(f"clamp = {clamp}, expected a positive bound, or None for no clamp")
