"""Samples of a student, and of its teacher from the same noise, with the milliseconds that each took."""

from __future__ import annotations

import dataclasses
import io
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm.api.model import Model
from facm.api.teacher import has_teacher, teacher_of_trained
from facm.core.cond import Cond, mapped
from facm.core.tensors import expand
from facm.data.frames import is_clip
from facm.flow.guidance import NO_GUIDANCE, Guidance
from facm.playground.request import Request
from facm.sampling.generate import noise
from facm.sampling.images import grid_png, is_image
from facm.sampling.methods import Euler, Method
from facm.sampling.source import Source

SHEET_STEPS = (1, 2, 4, 8)
COLUMNS = 8


@dataclass(frozen=True)
class Drawn:
    """One picture: a grid of samples.

    png: with ``settings`` in its text chunk "facm".
    milliseconds: that making the samples took, without decoding them.
    evaluations: of the network for each sample.
    """

    png: bytes
    milliseconds: float
    evaluations: int
    settings: dict[str, Any]


class Desk:
    """A network to ask, one request at a time. Its teacher is loaded when it is asked for first.

    model: the student, or a flow. Raises ValueError for one whose samples cannot be drawn.
    """

    def __init__(self, model: Model) -> None:
        if model.decoder is None and not (is_image(model.shape) or is_clip(model.shape)):
            raise ValueError(f"{model.path} makes samples of shape {model.shape}, expected pictures or clips")
        self.model = model
        self._lock = threading.Lock()
        self._teacher: tuple[Source, Guidance] | None = None
        self._last: tuple[tuple[int, int | None, str], tuple[Source, Cond]] | None = None

    @property
    def classes(self) -> int:
        """Number of classes; 0 for a network without."""
        return int(getattr(self.model.trained.interface.condition, "classes", 0))

    @property
    def takes_prompts(self) -> bool:
        return self.model.takes_prompts

    @property
    def has_teacher(self) -> bool:
        """Whether the run says what it was distilled from."""
        return has_teacher(self.model.trained)

    def draw(self, request: Request) -> Drawn:
        """The student's samples. Raises ValueError for what the network has not learned."""
        with self._lock:
            method = self.model.method(request.steps, request.sampler)
            source, cond = self._asked(request)
            return self._picture(source, method, cond, NO_GUIDANCE, request, "student")

    def draw_teacher(self, request: Request) -> Drawn:
        """The teacher's, from the same noise. Raises ValueError for a run without one."""
        with self._lock:
            source, cond = self._asked(request)
            if self._teacher is None:
                self._teacher = teacher_of_trained(self.model.trained, source)
            teacher, guidance = self._teacher
            same_shape = dataclasses.replace(teacher, shape=source.shape)
            return self._picture(same_shape, Euler(request.teacher_steps), cond, guidance, request, "teacher")

    def sheet(self, request: Request) -> Drawn:
        """One row for each of :data:`SHEET_STEPS`, of the same noise."""
        with self._lock:
            source, cond = self._asked(request)
            rows, spent = [], 0.0
            for steps in SHEET_STEPS:
                x, seconds = self._solve(source, self.model.method(steps, request.sampler), cond, NO_GUIDANCE, request)
                rows.append(x)
                spent += seconds
            settings = _settings(self.model, request, "student") | {"rows": list(SHEET_STEPS)}
            return _drawn(torch.cat(rows), request.images, spent, sum(SHEET_STEPS), settings)

    def between(self, request: Request, count: int = COLUMNS) -> Drawn:
        """One noise turned into another, in ``count`` steps from ``seed`` to ``other_seed``."""
        one = dataclasses.replace(request, images=1)
        with self._lock:
            method = self.model.method(one.steps, one.sampler)
            source, cond = self._asked(one)
            parts, spent = [], 0.0
            for k in range(count):
                step = dataclasses.replace(one, mix=k / (count - 1))
                x, seconds = self._solve(source, method, cond, NO_GUIDANCE, step)
                parts.append(x)
                spent += seconds
            settings = _settings(self.model, one, "student") | {"mix": [k / (count - 1) for k in range(count)]}
            return _drawn(torch.cat(parts), count, spent, method.nfe, settings)

    def _asked(self, request: Request) -> tuple[Source, Cond]:
        """What is drawn from. The last one is kept: a prompt takes a text encoder, which is opened for it."""
        key = (request.images, request.label, request.prompt.strip())
        if self._last is None or self._last[0] != key:
            self._last = key, self._opened(request)
        return self._last[1]

    def _opened(self, request: Request) -> tuple[Source, Cond]:
        labels = None if request.label is None else [request.label]
        prompts = [request.prompt] if request.prompt.strip() else None
        source, cond = self.model.asked(request.images, labels=labels, prompts=prompts)
        return source, mapped(lambda value: value.to(source.device), cond)

    def _picture(
        self, source: Source, method: Method, cond: Cond, guidance: Guidance, request: Request, who: str
    ) -> Drawn:
        x, seconds = self._solve(source, method, cond, guidance, request)
        return _drawn(x, COLUMNS, seconds, method.nfe, _settings(self.model, request, who) | {"sampler": str(method)})

    def _solve(
        self, source: Source, method: Method, cond: Cond, guidance: Guidance, request: Request
    ) -> tuple[Tensor, float]:
        """Pictures (n, C, H, W) on the CPU, and the seconds that the network took."""
        indices = range(request.images)

        def fresh(draw: int) -> Tensor:
            return noise(request.seed, indices, draw, source.shape).to(source.device)

        source.condition.check(cond, request.images)
        x_0 = _turned(request, indices, source.shape).to(source.device)
        _wait(source.device)
        begin = time.perf_counter()
        with torch.no_grad():
            x = method.solve(source.fields(cond, guidance), x_0, fresh)
        _wait(source.device)
        seconds = time.perf_counter() - begin
        decoder = self.model.decoder
        with torch.no_grad():
            shown = (x if decoder is None else decoder(x)).float().cpu()
        if not shown.isfinite().all():
            raise ValueError("the samples are not finite: the network is damaged")
        return shown, seconds


def _turned(request: Request, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """The first noise, turned towards another by ``mix`` of the angle between them, so that it stays a normal one."""
    first = noise(request.seed, indices, 0, shape)
    if not request.mix:
        return first
    other = noise(request.other_seed, indices, 0, shape)
    a, b = first.flatten(1), other.flatten(1)
    angle = torch.arccos(((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(-1, 1))
    if bool((angle < 1e-4).any()):  # the same noise
        return first
    one, two = (torch.sin(share * angle) / torch.sin(angle) for share in (1 - request.mix, request.mix))
    return expand(one, first) * first + expand(two, other) * other


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _settings(model: Model, request: Request, who: str) -> dict[str, Any]:
    return {"network": str(model.path), "images_seen": model.images_seen, "who": who, **dataclasses.asdict(request)}


def _drawn(x: Tensor, columns: int, seconds: float, evaluations: int, settings: dict[str, Any]) -> Drawn:
    settings = settings | {"scale": _scale(x)}
    return Drawn(with_settings(grid_png(x, columns, scale=_scale(x)), settings), 1000 * seconds, evaluations, settings)


def _scale(x: Tensor) -> int:
    return max(1, round(96 / x.shape[-1]))


def with_settings(png: bytes, settings: dict[str, Any]) -> bytes:
    """The same picture, with how it was made in its text chunk "facm", as JSON."""
    from PIL import Image, PngImagePlugin

    chunk = PngImagePlugin.PngInfo()
    chunk.add_itxt("facm", json.dumps(settings))
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.save(buffer, "PNG", pnginfo=chunk)
    return buffer.getvalue()
