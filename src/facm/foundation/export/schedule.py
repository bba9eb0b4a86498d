"""Which scheduler an exported folder has, and how its pipeline is called for N steps.

A student is sampled at noise levels 1, (N - 1)/N, ..., 1/N with fresh noise between. diffusers' own
FlowMatchEulerDiscreteScheduler does that with stochastic_sampling and no shift, where the pipeline hands it these
levels. Most pipelines do; some do where the caller says ``sigmas=``; Wan's never does, and has the scheduler make them.
"""

from __future__ import annotations

from typing import Any, Literal

STOCK = ("diffusers", "FlowMatchEulerDiscreteScheduler")
"""Library and class name in model_index.json."""
Kind = Literal["stock", "facm"]
"""diffusers' own scheduler, or this package's, which must then be installed where the folder is opened."""
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


def stock_settings(pipeline: str, num_steps: int) -> dict[str, Any]:
    """Settings of diffusers' scheduler for ``num_steps``. Only where the scheduler makes the levels do they depend on
    that number: it spaces them evenly from 1 to ``shift_terminal``, which is not defined for a single one."""
    terminal = 1 / num_steps if levels_by(pipeline) == "scheduler" and num_steps > 1 else None
    return {
        "shift": 1.0,
        "use_dynamic_shifting": False,
        "shift_terminal": terminal,
        "stochastic_sampling": True,
    }


def call_arguments(pipeline: str, num_steps: int, kind: Kind = "stock") -> dict[str, Any]:
    """Arguments of the pipeline's call for ``num_steps``, beside those that keep it from guiding."""
    arguments: dict[str, Any] = {"num_inference_steps": num_steps}
    if levels_by(pipeline) == "caller" and kind == "stock":
        arguments["sigmas"] = [1 - i / num_steps for i in range(num_steps)]
    return arguments


def new_scheduler(pipeline: str, num_steps: int, kind: Kind, num_train_timesteps: int = 1000) -> Any:
    """The scheduler that an exported folder has."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    settings = stock_settings(pipeline, num_steps)
    if kind == "stock":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=num_train_timesteps, **settings)
    from facm.foundation.export.scheduler import FewStepScheduler

    return FewStepScheduler(num_train_timesteps=num_train_timesteps, shift=1.0, stochastic_sampling=True)
