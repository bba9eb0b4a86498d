"""Which scheduler an exported folder has, and how its pipeline is called for N steps.

A student is sampled at noise levels 1, (N - 1)/N, ..., 1/N with fresh noise between. diffusers' own
FlowMatchEulerDiscreteScheduler does that with stochastic_sampling and no shift, where the pipeline hands it these
levels. Most pipelines do; some do where the caller says ``sigmas=``; Wan's never does, and has the scheduler make them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from facm.flow.phases import WHOLE
from facm.foundation.folder import FLOW_JUMP_SCHEDULER, OWN_SCHEDULER, PHASED_SCHEDULER

STOCK = ("diffusers", "FlowMatchEulerDiscreteScheduler")
"""Library and class name in model_index.json."""
Kind = Literal["stock", "facm", "flow-jump"]
"""diffusers' own scheduler, or one of this package's, which must then be installed where the folder is opened: that of
jumps, or that of steps along the flow before them."""
MOST_STEPS = 8

Levels = Literal["pipeline", "caller", "scheduler"]
"""Who says the noise levels: the pipeline by itself, the caller by ``sigmas=``, or the scheduler."""
BY_CALLER = frozenset({"StableDiffusion3Pipeline", "SanaPipeline"})
BY_SCHEDULER = frozenset({"WanPipeline"})
BY_PIPELINE = frozenset(
    {
        *("FluxPipeline", "Flux2Pipeline", "Flux2KleinPipeline", "ChromaPipeline", "QwenImagePipeline"),
        *("ZImagePipeline", "LTXPipeline", "Lumina2Pipeline"),
    }
)


def levels_by(pipeline: str) -> Levels:
    """Who says the noise levels in a pipeline. Raises ValueError for one that is not known."""
    for levels, names in (("pipeline", BY_PIPELINE), ("caller", BY_CALLER), ("scheduler", BY_SCHEDULER)):
        if pipeline in names:
            return levels  # type: ignore[return-value]
    raise ValueError(
        f"{pipeline}: how it comes by its noise levels is not known; a line in facm/foundation/export/schedule.py says "
        "it, which its test in tests/foundation holds against the pipeline"
    )


def stock_settings(pipeline: str, num_steps: int, bounds: Sequence[float] = WHOLE) -> dict[str, Any]:
    """Settings of diffusers' scheduler for ``num_steps``. Only where the scheduler makes the levels do they depend on
    that number: it spaces them evenly from 1 to ``shift_terminal``, which is not defined for a single one.

    bounds: times where phases begin and end. Raises ValueError for phases that this scheduler cannot do: with a step in
    each, at levels that it makes, there is no noise to add, and it takes steps of Euler's method.
    """
    terminal = 1 / num_steps if levels_by(pipeline) == "scheduler" and num_steps > 1 else None
    if tuple(bounds) != WHOLE:
        terminal = _terminal_of_phases(pipeline, num_steps, bounds)
    return {
        "shift": 1.0,
        "use_dynamic_shifting": False,
        "shift_terminal": terminal,
        "stochastic_sampling": tuple(bounds) == WHOLE,
    }


def _terminal_of_phases(pipeline: str, num_steps: int, bounds: Sequence[float]) -> float | None:
    """shift_terminal for a step in each phase."""
    phases, by_scheduler = len(bounds) - 1, levels_by(pipeline) == "scheduler"
    made = [k / phases for k in range(phases)]
    if by_scheduler:  # evenly spaced, up to where the last phase begins
        made = [bounds[-2] * k / (phases - 1) for k in range(phases)]
    fits = all(abs(bound - level) < 1e-9 for bound, level in zip(bounds, made, strict=False))
    if num_steps != phases or not fits:
        steps = f"num_steps = {phases}, a step in each phase, or " if fits else ""
        raise ValueError(
            f"num_steps = {num_steps} with scheduler = 'stock' and a student of the phases {tuple(bounds)}: diffusers' "
            f"own scheduler cannot take these steps; expected {steps}scheduler = 'facm'"
        )
    return 1 - bounds[-2] if by_scheduler else None


def check_steps(num_steps: int, kind: Kind, pipeline: str, bounds: Sequence[float]) -> None:
    """Raise ValueError for a number of steps that a student of these phases does not have, or not with this kind of
    scheduler."""
    phases = len(bounds) - 1
    if num_steps < phases:
        raise ValueError(
            f"num_steps = {num_steps} with a student of {phases} phases, expected {phases} to {MOST_STEPS}: a step in "
            "each of them"
        )
    if kind == "flow-jump" and tuple(bounds) != WHOLE:
        raise ValueError(
            f"scheduler = 'flow-jump' with a student of the phases {tuple(bounds)}, which does not jump to data from "
            "all noise levels; expected scheduler = 'facm'"
        )
    if kind == "stock":
        stock_settings(pipeline, num_steps, bounds)


def call_arguments(pipeline: str, num_steps: int, kind: Kind = "stock") -> dict[str, Any]:
    """Arguments of the pipeline's call for ``num_steps``, beside those that keep it from guiding."""
    arguments: dict[str, Any] = {"num_inference_steps": num_steps}
    if levels_by(pipeline) == "caller" and kind == "stock":
        arguments["sigmas"] = [1 - i / num_steps for i in range(num_steps)]
    return arguments


def class_of(kind: Kind, bounds: Sequence[float] = WHOLE) -> tuple[str, str]:
    """Library and class name of the scheduler, as model_index.json has them."""
    own = OWN_SCHEDULER if tuple(bounds) == WHOLE else PHASED_SCHEDULER
    return {"stock": STOCK, "facm": own, "flow-jump": FLOW_JUMP_SCHEDULER}[kind]


def new_scheduler(
    pipeline: str,
    num_steps: int,
    kind: Kind,
    num_train_timesteps: int = 1000,
    bounds: Sequence[float] = WHOLE,
) -> Any:
    """The scheduler that an exported folder has. Raises ValueError as :func:`stock_settings` does."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    if kind == "stock":
        settings = stock_settings(pipeline, num_steps, bounds)
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=num_train_timesteps, **settings)
    if kind == "flow-jump":
        from facm.foundation.export.flow_jump_scheduler import FlowJumpScheduler

        return FlowJumpScheduler(num_train_timesteps)
    if tuple(bounds) != WHOLE:
        from facm.foundation.export.phased_scheduler import PhasedScheduler

        return PhasedScheduler(num_train_timesteps, list(bounds))
    from facm.foundation.export.scheduler import FewStepScheduler

    return FewStepScheduler(num_train_timesteps=num_train_timesteps, shift=1.0, stochastic_sampling=True)
