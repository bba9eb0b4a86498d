"""What a page may ask for, checked as it comes: a page is open to whoever reaches it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from facm.core.component import shown

MOST_IMAGES = 16
MOST_STEPS = 8
MOST_TEACHER_STEPS = 100
MOST_PROMPT = 1000
"""Characters."""
MOST_SEED = 2**31 - 1
SAMPLERS = ("auto", "consistency", "flow-jump", "phased", "jumps", "euler", "heun", "dpm")


@dataclass(frozen=True)
class Request:
    """One click. Raises ValueError naming what is out of bounds.

    images: how many samples, of noises (seed, 0), (seed, 1), ...
    seed: of the noise. other_seed, mix: the noise is turned towards that of another seed, by mix of the way.
    steps, sampler: of the student. teacher_steps: of the teacher beside it; 0: none.
    label: a class; None: all in turn. prompt: of a text-to-image model.
    """

    images: int = 8
    seed: int = 0
    steps: int = 1
    sampler: str = "auto"
    teacher_steps: int = 0
    label: int | None = None
    prompt: str = ""
    other_seed: int = 1
    mix: float = 0.0

    def __post_init__(self) -> None:
        bounds = {
            "images": (1, MOST_IMAGES),
            "seed": (0, MOST_SEED),
            "other_seed": (0, MOST_SEED),
            "steps": (1, MOST_STEPS),
            "teacher_steps": (0, MOST_TEACHER_STEPS),
        }
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ValueError(f"{name} = {shown(value)}, expected an integer from {least} to {most}")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler = {shown(self.sampler)}, expected one of {', '.join(SAMPLERS)}")
        if not isinstance(self.mix, int | float) or not math.isfinite(self.mix) or not 0 <= self.mix <= 1:
            raise ValueError(f"mix = {shown(self.mix)}, expected a number from 0 to 1")
        if self.label is not None and (not isinstance(self.label, int) or isinstance(self.label, bool)):
            raise ValueError(f"label = {shown(self.label)}, expected a class, or None")
        if not isinstance(self.prompt, str) or len(self.prompt) > MOST_PROMPT:
            raise ValueError(f"prompt of {len(str(self.prompt)):,} characters, expected at most {MOST_PROMPT:,}")


def whole(value: Any, name: str) -> int:
    """A number from a form, which may come as text or as 3.0. Raises ValueError for one that is no integer."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} = {shown(value)}, expected an integer") from None
    if not math.isfinite(number) or number != int(number):
        raise ValueError(f"{name} = {shown(value)}, expected an integer")
    return int(number)
