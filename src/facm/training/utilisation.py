"""Model FLOPs utilisation (MFU): operations that a step needs, of those that its device could have done meanwhile."""

from __future__ import annotations

import torch

from facm.distributed.engine import Engine
from facm.runs.config import Run
from facm.training.precision import resolved_precision

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}
"""Dense bf16 operations a second by data sheets, of SXM parts, by a word of the device's name."""


def utilisation(run: Run, engine: Engine, device: torch.device) -> float | None:
    """The share of a device's peak that one image a second takes; None on an unknown device, in another precision than
    bf16, and where the operations cannot be counted. Checkpointing's second forward is not counted, as MFU has it."""
    if device.type != "cuda" or resolved_precision(run, device) != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    peak = next((value for word, value in PEAKS.items() if word in name), None)
    if peak is None:
        return None
    from facm.training.memory_plan.work import work

    try:
        return work(run, Engine(blocks=engine.blocks)).flops / run.batch_size / peak
    except Exception:  # counting is a courtesy: a network of the user's own may do anything on the meta device
        return None
