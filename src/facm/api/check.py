"""facm.check: what is wrong with a teacher, or with a network of one's own, before hours are spent on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm.api.checkup.condition import condition_found
from facm.api.checkup.data import data_found, samples_found, sheet
from facm.api.checkup.finding import Checkup, Finding
from facm.api.checkup.forward_mode import forward_mode_found
from facm.api.checkup.memory import memory_found
from facm.api.checkup.opened import Asked, opened
from facm.api.checkup.state import state_found
from facm.api.checkup.subject import Subject
from facm.api.checkup.tangent import tangent_found
from facm.api.device import placed
from facm.core.component import shown
from facm.core.cond import size, taken
from facm.core.objective import Condition
from facm.core.terminal import say_text
from facm.data.given import Item
from facm.distributed.process_group import ALONE
from facm.flow.guidance import NO_GUIDANCE
from facm.sampling.images import save_grid
from facm.sampling.in_blocks import sample_in_blocks
from facm.sampling.methods import Euler
from facm.sampling.source import Head
from facm.training.memory_plan.predict import GB

DRAWN, STEPS, COLUMNS = 32, 32, 8


def check(
    network: Any,
    data: Any = None,
    *,
    shape: tuple[int, ...] = (),
    out: str | os.PathLike[str] | None = None,
    classes: int | None = None,
    condition: Condition | None = None,
    item: Item | None = None,
    noise_at: float | None = None,
    time_scale: float | None = None,
    predicts: str = "velocity",
    input_name: str = "",
    time_name: str = "",
    cond_name: str | None = None,
    guidance_scale: float = 1.0,
    batch_size: int = 128,
    gpu_memory: float = 80.0,
    seed: int = 0,
    device: str = "auto",
    ema: float | None = None,
    trust_recipe: bool = False,
    quiet: bool = False,
) -> Checkup:
    """What is wrong with ``network`` as a teacher, and the line to write; nothing in it is changed or trained.

    >>> import torch, facm
    >>> class Flow(torch.nn.Module):  # the exact flow to data that are all 2, with noise at t = 0
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.mean = torch.nn.Parameter(torch.tensor(2.0))
    ...     def forward(self, x, t):
    ...         return (self.mean - x) / (1 - 0.9 * t[:, None])
    >>> found = facm.check(Flow(), 2 + 0.5 * torch.randn(256, 2), quiet=True)
    >>> found.of("convention").verdict, found.of("forward mode").verdict
    ('good', 'good')

    network: a trained nn.Module, a network's configuration, a :class:`facm.Run` (of which the network is looked at that
        it starts from), the folder of a run or of a text-to-image pipeline, or a file of weights.
    data: what it was trained on, as for :func:`facm.distill`; of a run, its own. shape: of one sample, where there are
        no data; then what needs data is left out.
    out: new PNG file for samples by the flow, below a row of data; None draws none.
    classes, condition, item, input_name, time_name, cond_name: as for :func:`facm.distill`.
    noise_at, time_scale, predicts: what is held against the measured convention; None: nothing is.
    guidance_scale: that the student is to learn; above 1 a null that was not learned is wrong.
    batch_size: of the step whose memory is counted. gpu_memory: GB of a GPU that it is held against.
    ema, trust_recipe: of a run, as for :func:`facm.load`. seed: of the noise. quiet: print nothing.
    Returns findings in the order of the report; ``str`` of them is the report. Raises ValueError for anything that is
    no network, a network that cannot be called, and a file that exists.
    """
    path = None if out is None else Path(out)
    if path is not None and path.suffix.lower() != ".png":
        raise ValueError(f"out = {path}, expected a name that ends in .png")
    if path is not None and path.exists():
        raise ValueError(f"out = {path} exists and is not overwritten; choose another name")
    if predicts not in ("velocity", "noise"):
        raise ValueError(f"predicts = {predicts!r}, expected 'velocity' or 'noise'")
    if not gpu_memory > 0:
        raise ValueError(f"gpu_memory = {shown(gpu_memory)}, expected a positive number of GB")
    asked = Asked(
        data,
        tuple(shape),
        classes,
        condition,
        item,
        noise_at,
        time_scale,
        predicts,
        input_name,
        time_name,
        cond_name,
        guidance_scale,
        batch_size,
        seed,
        placed(ALONE, device).device,
        ema,
        trust_recipe,
    )
    subject, convention = opened(network, asked)
    samples, drawn = _samples(subject, seed)
    if path is not None and samples is not None:
        picture = sheet(samples, subject.batch.x_1 if subject.has_data else None, COLUMNS)
        save_grid(path, picture, COLUMNS, new=True)
    findings = [data_found(subject), *drawn, *_rest(subject, gpu_memory * GB)]
    if convention.verdict == "wrong":
        findings = [_later(finding, "mend the convention first") for finding in findings]
    if not subject.has_learned:
        findings = [_later(finding, "it has learned nothing yet") for finding in findings]
    found = Checkup(subject.name, (convention, *findings), path if samples is not None else None)
    if not quiet:
        say_text(f"{found}\n")
    return found


def _later(finding: Finding, cause: str) -> Finding:
    """What another fault may be the cause of is none of its own."""
    if finding.verdict != "wrong" or finding.what not in ("samples", "condition", "null", "time", "clamped"):
        return finding
    return Finding(finding.what, "note", f"{finding.found}; {cause}")


def _rest(subject: Subject, gpu_memory: float) -> Iterator[Finding]:
    yield from condition_found(subject)
    yield from state_found(subject)
    yield from tangent_found(subject)
    yield forward_mode_found(subject)
    yield memory_found(subject, gpu_memory)


def _samples(subject: Subject, seed: int) -> tuple[Tensor | None, list[Finding]]:
    """Samples by the flow, decoded where they are latents of an autoencoder at hand, and what they are like."""
    cond = subject.batch.cond
    if (there := size(cond)) is not None:
        cond = taken(cond, torch.arange(DRAWN, device=subject.device) % there)
    if not subject.interface.learns_flow:
        return None, [Finding("samples", "note", "none: the network has learned no flow")]
    head: Head = "anchor" if subject.interface.learns_shortcut else "native"
    try:
        x = sample_in_blocks(subject.source(), Euler(STEPS, head), DRAWN, cond, seed, NO_GUIDANCE)
    except ValueError as error:
        if "not finite" not in str(error):
            raise
        line = "a teacher that is trained; see the line on its convention"
        return None, [Finding("samples", "wrong", str(error), line)]
    assert x is not None
    x = x.float().cpu()
    return x, [samples_found(subject, x)]
