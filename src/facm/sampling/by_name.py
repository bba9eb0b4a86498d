"""Sampling methods by the names that people type."""

from __future__ import annotations

from typing import Any

from facm.core.objective import NetworkInterface
from facm.sampling.methods import (
    Consistency,
    DPMSolverPP,
    EDMHeun,
    Euler,
    FlowThenJump,
    Heun,
    Jumps,
    Method,
    Phased,
    default_method,
)

KINDS: dict[str, Any] = {
    "consistency": Consistency,
    "flow-jump": FlowThenJump,
    "phased": Phased,
    "jumps": Jumps,
    "euler": Euler,
    "heun": Heun,
    "dpm": DPMSolverPP,
    "edm": EDMHeun,
}
FLOW_STEPS = 32
"""Steps of a flow where none are said: one step of it gives the average of all samples."""


def default_steps(interface: NetworkInterface) -> int:
    """Network evaluations of a sample where none are said: one, or one for each phase, of a network that learned to
    jump, and :data:`FLOW_STEPS` of one that has learned the flow alone."""
    if interface.learns_shortcut or interface.learns_jumps:
        return len(interface.bounds) - 1
    return FLOW_STEPS


def method_by_name(
    interface: NetworkInterface,
    sampler: str,
    num_steps: int,
    head: str = "auto",
    shift: float = 1.0,
    times: tuple[float, ...] = (),
) -> Method:
    """The method called ``sampler``, or the default one with "auto", with ``num_steps`` network evaluations.

    head: time conditions of a velocity, "native" or "anchor"; "auto": the anchor of a network that has learned it.
    shift, times: of the schedule. Raises ValueError where the network has not learned what the method needs.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps}: zero steps make no sample; expected at least 1")
    if sampler != "auto" and sampler not in KINDS:
        raise ValueError(f"sampler = {sampler!r}, expected one of auto, {', '.join(KINDS)}")
    kind: Any = type(default_method(interface, num_steps)) if sampler == "auto" else KINDS[sampler]
    name = next(name for name, value in KINDS.items() if value is kind)
    if times and kind not in (Consistency, FlowThenJump, Jumps, Phased):
        raise ValueError(
            f"times = {times} with sampler = {name}, expected them with consistency, flow-jump, phased or jumps only"
        )
    if shift != 1 and kind in (EDMHeun, FlowThenJump):
        raise ValueError(f"shift = {shift} with sampler = {name}, which has a schedule of its own; expected none")
    asked: Any = ("anchor" if interface.learns_shortcut else "native") if head == "auto" else head
    method: Any
    if kind is Phased:
        method = Phased(num_steps, interface.bounds, None, shift, times or None)
    elif kind is FlowThenJump:
        method = FlowThenJump(num_steps, times or None)
    elif kind in (Consistency, Jumps):
        method = kind(num_steps, shift, times or None)
    else:
        method = kind(num_steps, asked) if kind is EDMHeun else kind(num_steps, asked, shift)
    method.check(interface)
    checked: Method = method
    return checked
