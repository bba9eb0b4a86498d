"""The memory of one training step, counted without running it."""

from __future__ import annotations

from facm.api.checkup.finding import Finding
from facm.api.checkup.subject import Subject
from facm.training.memory_plan import plan
from facm.training.memory_plan.predict import GB


def memory_found(subject: Subject, gpu_memory: float) -> Finding:
    """Of one GPU with ``gpu_memory`` bytes, at the run's batch size."""
    if subject.run is None:
        return Finding("memory", "note", "unknown: of a published file, facm plan RECIPE says it")
    shape = tuple(subject.batch.x_1.shape[1:])
    try:
        found = plan(subject.run, 1, gpu_memory, shape=None if subject.has_data else shape)
    except Exception as error:  # of a forward that reads numbers off its tensors, which have none here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return Finding(
            "memory", "note", f"cannot be counted without running it ({type(error).__name__}: {reason:.100})"
        )
    said = (
        f"one step of {found.batch} takes {found.total / GB:.2f} GB of {gpu_memory / GB:.0f} GB on a GPU: weights and "
        f"averages {(found.parameters + found.gradients + found.optimizer + found.ema + found.teacher) / GB:.2f}, "
        f"activations {(found.activations + found.cast) / GB:.2f}, tangent {found.tangent / GB:.2f}"
    )
    if found.fits:
        return Finding("memory", "good", said)
    said += "; " + "; ".join(found.advice) if found.advice else ""
    return Finding("memory", "wrong", said, "engine=facm.Engine(checkpointing=True, accumulate=...)")
