"""Guidance of a model of two experts, as its pipeline takes it."""

from __future__ import annotations

import math

from facm.foundation.folder import ModelFolder


def check_second(guidance_scale: float, guidance_scale_2: float | None, model: ModelFolder) -> float | None:
    """guidance_scale_2 of a pipeline's call, as it takes it; None for a model of one transformer. Raises ValueError for
    a number that this pipeline would not follow."""
    if model.boundary is None:
        if guidance_scale_2 is not None:
            raise ValueError(
                f"guidance_scale_2 = {guidance_scale_2}, and {model.path} has one transformer; expected None"
            )
        return None
    second = guidance_scale if guidance_scale_2 is None else guidance_scale_2
    if not (math.isfinite(second) and second > 0):
        raise ValueError(f"guidance_scale_2 = {second}, expected a number above 0")
    if guidance_scale <= 1 < second:
        raise ValueError(
            f"guidance_scale = {guidance_scale} with guidance_scale_2 = {second}: {model.pipeline} guides neither of "
            "its experts where guidance_scale is at most 1; expected guidance_scale above 1, or guidance_scale_2 = 1"
        )
    return second
