"""What the next line of the log will say, kept on the device until it is written."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from facm.core.types import Loss


@dataclass
class Window:
    """Sums over the steps since the last record.

    sums: name -> sum of the steps' values, () on the device.
    count: number of steps.
    began: when the window began, in seconds of the monotonic clock.
    waited: seconds spent waiting for data.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    began: float = field(default_factory=time.monotonic)
    waited: float = 0.0

    def add(self, loss: Loss, grad_norm: Tensor) -> None:
        """Add one step's loss, its terms and the norm of its gradient."""
        means: Mapping[str, Tensor] = {name: value.mean() for name, value in loss.terms.items()}
        now = {"loss": loss.total.detach(), **means, "grad_norm": grad_norm}
        sums = {name: self.sums[name] + value if name in self.sums else value for name, value in now.items()}
        self.sums = sums | {name: value for name, value in self.sums.items() if name not in sums}  # in the step's order
        self.count += 1

    def means(self) -> dict[str, float]:
        return {name: float(value) / self.count for name, value in self.sums.items()}

    def non_finite(self) -> list[str]:
        """Names of loss terms that were not finite in some step."""
        return [name for name, value in self.sums.items() if name != "grad_norm" and not bool(value.isfinite())]

    def speed(self, batch_size: int) -> dict[str, float]:
        """Images a second, and the share of the time spent waiting for data."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        return {"images_per_s": self.count * batch_size / seconds, "data_wait": self.waited / seconds}


def memory(device: torch.device) -> dict[str, float]:
    """Memory now and at its peak since the last call, in GB: of the GPU, or of this process where there is none."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return {"memory_gb": torch.cuda.memory_allocated(device) / 1e9, "peak_memory_gb": peak / 1e9}
    return _resident()


def _resident() -> dict[str, float]:
    fields: dict[str, Any] = {}
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            fields = dict(line.split(":", 1) for line in status if line.startswith(("VmRSS", "VmHWM")))
    except OSError:  # no Linux
        return {}
    names = {"memory_gb": "VmRSS", "peak_memory_gb": "VmHWM"}
    return {name: int(fields[key].split()[0]) * 1024 / 1e9 for name, key in names.items() if key in fields}
