"""The noise levels that a model's pipeline samples with, for its size, shift and number of steps."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch


class _Set(Exception):
    """The scheduler is set, and nothing more is wanted of the pipeline."""


@torch.no_grad()
def sigmas_of(pipe: Any, steps: int, height: int, width: int, frames: int = 1) -> tuple[float, ...]:
    """sigma = 1 - t from the first (noise) to the last, one more than steps.

    The pipeline's own call is followed up to where it has set its scheduler, so that shifts that depend on the size are
    as it makes them; its transformer and VAE may be without memory (meta).
    Raises ValueError where the scheduler has no such levels, as flow matching has.
    """
    scheduler = pipe.scheduler
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)  # pipelines look at its arguments
    def stop(*arguments: Any, **named: Any) -> None:
        set_timesteps(*arguments, **named)
        raise _Set

    arguments: dict[str, Any] = {"prompt": "", "num_inference_steps": steps, "height": height, "width": width}
    if "num_frames" in inspect.signature(type(pipe).__call__).parameters:
        arguments["num_frames"] = frames
    scheduler.set_timesteps = stop
    try:
        with _placed(pipe, pipe.text_encoder.device), contextlib.suppress(_Set):
            pipe(**arguments, output_type="latent")
    finally:
        del scheduler.set_timesteps
    found = tuple(float(sigma) for sigma in getattr(scheduler, "sigmas", ()))
    if len(found) != steps + 1 or found[0] > 1 + 1e-6 or found[-1] < 0 or any(a <= b for a, b in pairwise(found)):
        raise ValueError(
            f"steps = {steps}: {type(scheduler).__name__} has the noise levels {found!r:.80}, expected {steps + 1} "
            "that fall from 1 to 0, as flow matching has them"
        )
    return found


@contextlib.contextmanager
def _placed(pipe: Any, device: torch.device) -> Iterator[None]:
    """Let the pipeline take ``device`` for the one that it computes on: it would ask its first module, which may be on
    no device at all."""
    kind = type(pipe)
    pipe.__class__ = type(kind.__name__, (kind,), {"_execution_device": device})
    try:
        yield
    finally:
        pipe.__class__ = kind


def default_size(pipe: Any) -> tuple[int, int]:
    """Height and width in pixels of the pictures that the pipeline makes where it is not told."""
    named = inspect.signature(type(pipe).__call__).parameters
    sides = tuple(getattr(named.get(side), "default", None) for side in ("height", "width"))
    if isinstance(sides[0], int) and isinstance(sides[1], int):
        return sides[0], sides[1]
    latent = getattr(pipe, "default_sample_size", None) or getattr(pipe.transformer.config, "sample_size", None)
    factor = getattr(pipe, "vae_scale_factor", None)
    side = latent * factor if isinstance(latent, int) and isinstance(factor, int) else 1024
    return side, side
