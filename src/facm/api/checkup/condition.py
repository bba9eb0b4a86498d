"""Whether the condition changes what the network predicts, and whether it knows a null to be guided with."""

from __future__ import annotations

import copy

import torch

from facm.api.checkup.finding import Finding
from facm.api.checkup.subject import Subject, relative
from facm.api.convention import LEARNED, POINTS
from facm.core.cond import Cond, mapped
from facm.flow.conditions import Labels, Unconditional

LEAST = 1e-4
"""Relative change of the output below which the condition has no effect."""


@torch.no_grad()
def condition_found(subject: Subject) -> list[Finding]:
    """Findings about the condition, and about the null."""
    condition, cond = subject.condition, subject.batch.cond
    if isinstance(condition, Unconditional) or cond is None:
        said = "none: the network is called without one"
        if subject.guidance_scale > 1:
            return [Finding("condition", "wrong", said, "guidance_scale=1")]
        return [Finding("condition", "good", said)]
    flow = subject.flow(cond)
    x_t, t = subject.point(0.5)
    out = flow(x_t, t)
    other = mapped(lambda value: value.roll(1, 0), cond)
    if isinstance(condition, Labels) and isinstance(cond, torch.Tensor):
        other = (cond + 1) % condition.classes
    change = relative(subject.flow(other)(x_t, t) - out, out)
    name = f"{condition.classes} labels" if isinstance(condition, Labels) else type(condition).__name__
    if change < LEAST:
        found = Finding(
            "condition",
            "wrong",
            f"{name}: another one changes nothing (relative change {change:.1g} at t = 0.5)",
            "cond_name='...'  # the argument that the labels belong to, or cond_name='' without any",
        )
    else:
        found = Finding("condition", "good", f"{name}: another one changes the output by {change:.0%} at t = 0.5")
    return [found, _null(subject, condition, cond)]


def _null(subject: Subject, condition: Labels | object, cond: Cond) -> Finding:
    guided = subject.guidance_scale > 1
    remedy = "guidance_scale=1" if guided else ""
    on_cpu = subject.device.type == "cpu"
    network = subject.network if on_cpu else copy.deepcopy(subject.network).cpu()  # on a GPU it would end the process
    small = mapped(lambda value: value[:2].cpu(), cond)
    x_t, t = (value.cpu() for value in subject.point(0.5, 2))
    try:
        null = subject.condition.null(small)
        subject.flow(null, network)(x_t, t)
    except (IndexError, ValueError, RuntimeError, AssertionError) as error:
        what = f"the label {condition.classes}" if isinstance(condition, Labels) else "it"
        said = f"{what} is out of the network's range ({str(error).strip().splitlines()[0]:.80})"
        rows = f"torch.nn.Embedding({condition.classes + 1}, ...)" if isinstance(condition, Labels) else "a null"
        return Finding(
            "null",
            "wrong" if guided else "note",
            f"{said}: no guidance without it",
            f"{remedy}  # or {rows} in the teacher, with a tenth of its labels dropped in training" if guided else "",
        )
    if not subject.has_data:
        return Finding("null", "note", "in the network's range; whether it was learned needs data")
    with_cond, with_null = (_error(subject, value) for value in (cond, subject.condition.null(cond)))
    said = f"error of the velocity {with_null:.2f} under the null, {with_cond:.2f} under the condition"
    if with_null >= LEARNED or with_null > 2 * with_cond + 0.1:
        return Finding("null", "wrong" if guided else "note", f"in range, and not learned: {said}", remedy)
    return Finding("null", "good", f"in range, and learned: {said}")


def _error(subject: Subject, cond: Cond) -> float:
    v = subject.v
    squares = [(subject.flow(cond)(*subject.point(t)) - v).square().mean() for t in POINTS]
    return float(torch.stack(squares).mean() / v.square().mean())
