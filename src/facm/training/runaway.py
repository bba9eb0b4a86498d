"""A tangent that runs away, as the log shows it: a run then ends without an error, and its samples are blobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLAMPED = 0.4
"""Share of the residual's elements that are clamped. Of networks that learned well it was 0.00 to 0.15, of those whose
fast time embedding spoiled the shortcut 0.5 to 0.9."""


def running_away(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """A warning with what helps, where two lines of the log in a row have more than that clamped; else None."""
    shares = [record.get("clamped") for record in (before, now)]
    if not all(isinstance(share, float) and share > CLAMPED for share in shares):
        return None
    tangent = now.get("tangent_rms")
    size = f", tangent_rms {tangent:.3g}" if isinstance(tangent, float) else ""
    return (
        f"the tangent dF/dt runs away: clamped {shares[1]:.2f}{size} at {now.get('images')} images, where a run that "
        "learns has below 0.15. What causes it most often is a time embedding of high frequencies (Fourier features of "
        "a large scale, times up to 1000): smooth it, lower optimizer.lr (1e-4), or start from a teacher of c_FM"
    )
