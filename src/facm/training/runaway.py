"""A tangent that runs away, as the log shows it: a run then ends without an error, and its samples are blobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

CLAMPED = 0.4
"""Share of the residual's elements that are clamped. Of networks that learned well it was 0.00 to 0.15, of those whose
fast time embedding spoiled the shortcut 0.5 to 0.9."""
LARGE, GROWN = 10.0, 10.0
"""A tangent_rms above the first that is also so many times the smallest of the run: a rule of thumb, for objectives
without a clamp. F itself is about 1."""


class Runaway:
    """What the log has said so far, so that a run that goes on warns where it would have warned without a stop."""

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self.warned, self.before, self.smallest = False, dict[str, Any](), float("inf")
        for record in records:
            self.warning(record)
            self.warned |= "warning" in record

    def mark(self, record: dict[str, Any]) -> None:
        """Put the warning into a line of the log, where there is one."""
        if (words := self.warning(record)) is not None:
            record["warning"] = words

    def warning(self, record: Mapping[str, Any]) -> str | None:
        """A warning with what helps, once a run: where two lines of the log in a row are beyond a bound."""
        both = (self.before, record)
        shares = [each.get("clamped") for each in both]
        sizes = [each.get("tangent_rms") for each in both]
        self.before = dict(record)
        clamped = all(isinstance(share, float) and share > CLAMPED for share in shares)
        bound = max(LARGE, GROWN * self.smallest)
        large = all(isinstance(size, float) and size > bound for size in sizes)
        if isinstance(sizes[1], float):
            self.smallest = min(self.smallest, sizes[1])
        if self.warned or not (clamped or large):
            return None
        self.warned = True
        size = f"tangent_rms {sizes[1]:.3g}" if isinstance(sizes[1], float) else ""
        share = f"clamped {shares[1]:.2f}" if isinstance(shares[1], float) else ""
        usual = "where a run that learns has below 0.15" if clamped else "ten times the smallest of the run"
        return (
            f"the tangent dF/dt runs away: {', '.join(filter(None, (share, size)))} at {record.get('images')} images, "
            f"{usual}. What causes it most often is a time embedding of high frequencies (Fourier features of a large "
            "scale, times up to 1000): smooth it (facm check shows which), lower optimizer.lr (1e-4), or start from a "
            "teacher of c_FM"
        )
