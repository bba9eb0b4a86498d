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

    sums: name -> sum of the steps' values, () on the device; under names that end in _t, by quarters of time (4,), the
        sums over samples of a term, and their numbers.
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
        now = {"loss": loss.total.detach(), **means, "grad_norm": grad_norm, **by_time(loss)}
        sums = {name: self.sums[name] + value if name in self.sums else value for name, value in now.items()}
        self.sums = sums | {name: value for name, value in self.sums.items() if name not in sums}  # in the step's order
        self.count += 1

    def means(self) -> dict[str, float]:
        """Averages over the steps; of what is by quarters of time, still sums and numbers of samples a step."""
        return {name: float(value) / self.count for name, value in self.flat().items()}

    def flat(self) -> dict[str, Tensor]:
        """The sums as numbers () by name: those by quarters of time are anchor_t1, ..., anchor_t4."""
        found: dict[str, Tensor] = {}
        for name, value in self.sums.items():
            found |= {name: value} if value.ndim == 0 else {f"{name}{k + 1}": each for k, each in enumerate(value)}
        return found

    @staticmethod
    def of(sums: Mapping[str, Tensor], count: int) -> Window:
        """The window whose :meth:`flat` sums these are."""
        found = {name: value for name, value in sums.items() if _term_of(name) == name}
        for name in dict.fromkeys(f"{_term_of(name)}_t" for name in sums if _term_of(name) != name):
            found[name] = torch.stack([sums[f"{name}{k + 1}"] for k in range(QUARTERS)])
        return Window(found, count)

    def non_finite(self) -> list[str]:
        """Names of loss terms that were not finite in some step."""
        terms = {name: value for name, value in self.sums.items() if name != "grad_norm" and value.ndim == 0}
        return [name for name, value in terms.items() if not bool(value.isfinite())]

    def speed(self, batch_size: int) -> dict[str, float]:
        """Images a second, and the share of the time spent waiting for data."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        return {"images_per_s": self.count * batch_size / seconds, "data_wait": self.waited / seconds}


QUARTERS = 4
COUNT = "count_t"
LOSSES = ("anchor", "shortcut", "flow")
"""Terms that are logged by quarters of time."""


def by_time(loss: Loss) -> dict[str, Tensor]:
    """anchor_t, shortcut_t or flow_t, each (4,): sums over the samples whose t is in each quarter of [0, 1], and how
    many these are, both as parts of the batch, so that ranks may share it in any number; nothing where the objective
    does not say the times."""
    names = [name for name in LOSSES if name in loss.terms]
    if loss.t is None or not names or any(loss.terms[name].shape != loss.t.shape for name in names):
        return {}
    quarter = (loss.t * QUARTERS).long().clamp(0, QUARTERS - 1)
    every = torch.arange(QUARTERS, device=quarter.device)  # one_hot would wait for the device, to check its input
    inside = (quarter[:, None] == every).to(loss.terms[names[0]].dtype) / len(quarter)
    rows = torch.stack([*(loss.terms[name] for name in names), torch.ones_like(loss.terms[names[0]])])
    sums = (rows @ inside).unbind(0)
    named = zip([*(f"{name}_t" for name in names), COUNT], sums, strict=True)
    return dict(named)


def _term_of(name: str) -> str:
    """The term that a name in the log belongs to: anchor of anchor_t1, and any other name's own."""
    term, _, quarter = name.rpartition("_t")
    return term if quarter.isdigit() and f"{term}_t" in (*(f"{name}_t" for name in LOSSES), COUNT) else name


def averaged_by_time(numbers: Mapping[str, float]) -> dict[str, float]:
    """``numbers`` with averages over samples in place of sums and numbers of samples; a quarter without any is left
    out."""
    found = {name: value for name, value in numbers.items() if not name.startswith(COUNT)}
    for k in range(1, QUARTERS + 1):
        for name in [name for name in LOSSES if f"{name}_t{k}" in found]:
            count, total = numbers.get(f"{COUNT}{k}", 0.0), found.pop(f"{name}_t{k}")
            if count:
                found[f"{name}_t{k}"] = total / count
    return found


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
