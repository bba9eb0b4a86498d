"""Prompts of ``facm sample``, and what they ask a text-to-image model for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from facm.distributed.process_group import World
    from facm.flow.guidance import Guidance
    from facm.foundation.prompted import Prompts
    from facm.pretrained.trained import Trained
    from facm.sampling.methods import Method
    from facm.sampling.source import Source


@dataclasses.dataclass(frozen=True)
class PromptOptions:
    """What a text-to-image model is to show."""

    prompt: tuple[str, ...] = ()
    """Prompts of a text-to-image model, one picture each; default: the first ones of its data."""
    prompts: Path | None = None
    """Text file with one prompt a line."""
    beside_teacher: int = 0
    """Draw the teacher below, from the same noise, with this many steps; 0: do not."""
    height: int = 0
    """Height of the pictures in pixels; 0: as in the data."""
    width: int = 0
    """Width of the pictures in pixels; 0: as in the data."""
    frames: int = 0
    """Frames of each clip of a text-to-video model; 0: as in the data."""

    def check(self) -> None:
        """Raise ValueError for values that cannot be, and prompts from two places."""
        if self.prompt and self.prompts is not None:
            raise ValueError(f"--prompt with --prompts {self.prompts}, expected one of them")
        if any(not text.strip() for text in self.prompt):
            raise ValueError("--prompt '' is empty, expected words; the null prompt is drawn by guidance alone")
        for name in ("beside_teacher", "height", "width", "frames"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"--{name.replace('_', '-')} {value}, expected 0 or more")
        if bool(self.height) != bool(self.width):
            raise ValueError(f"--height {self.height} and --width {self.width}, expected both or neither")

    def texts(self) -> list[str]:
        """The prompts that are given. Raises ValueError for a file without any."""
        if self.prompts is None:
            return list(self.prompt)
        from facm.foundation.prepare.sources import source_at

        return list(source_at(self.prompts).prompts)

    def of(self, trained: Trained, n: int | None, world: World) -> Prompts | None:
        """``n`` prompts in turn (None: each once) with their embeddings; None for a network of another kind.

        Raises ValueError for prompts to such a network.
        """
        from facm.foundation.network import DiffusersModel

        if not isinstance(trained.config, DiffusersModel):
            if self != PROMPTS:
                given = next(field.name for field in dataclasses.fields(self) if getattr(self, field.name))
                option = f"--{given.replace('_', '-')}"
                raise ValueError(f"{option} with {trained.path}, which takes no prompts; expected a model that does")
            return None
        from facm.foundation.prompted import prompted

        sizes = (self.height, self.width, self.frames)
        return prompted(trained.config, trained.dataset, self.texts(), n, world, *sizes)


PROMPTS = PromptOptions()


def teacher_beside(trained: Trained, source: Source, steps: int) -> tuple[Source, Method, Guidance]:
    """The teacher of the run, its sampler and its guidance. Raises ValueError for a run without one."""
    from facm.api.teacher import has_teacher, teacher_of_trained
    from facm.sampling.methods import Euler

    if not has_teacher(trained):
        raise ValueError(f"--beside-teacher {steps} with {trained.path}, which has no teacher; expected 0")
    teacher, guidance = teacher_of_trained(trained, source)
    return teacher, Euler(steps), guidance
