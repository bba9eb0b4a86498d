"""How each family's tiny pipeline is called for the conformance tests, and what its transformer is called with."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from facm.foundation.families.base import Family
from facm.foundation.folder import TRANSFORMER, VAE, load_pipeline, open_model
from facm.sampling.solvers import euler

PROMPTS = ["a fox", "a red fox in deep snow, at dusk, seen from above"]
NEGATIVE = ["blurred", "a drawing"]
STEPS = 2


@dataclass(frozen=True)
class Case:
    """How a pipeline guides.

    size: height and width of its pictures, in pixels. told: the guidance that its transformer is told, where it is;
    1000 times as much is exact in bfloat16. unguided: arguments of the call beside the family's. guided: arguments with
    which it guides, None where it cannot. scale: the guidance in them. negative: the prompts that it guides away from.
    """

    size: int = 16
    told: float | None = None
    unguided: Mapping[str, Any] = field(default_factory=dict)
    guided: Mapping[str, Any] | None = None
    scale: float = 3.0
    negative: tuple[str, ...] = tuple(NEGATIVE)


USUAL = {"guidance_scale": 3.0, "negative_prompt": NEGATIVE}
TRUE = {"true_cfg_scale": 3.0, "negative_prompt": NEGATIVE}
CASES = {
    "wan": Case(32, guided=USUAL),
    "z_image": Case(guided=USUAL),
    "qwen_image": Case(32, guided=TRUE),
    "sd3": Case(guided=USUAL),
    "flux-dev": Case(told=2.0, unguided={"guidance_scale": 2.0}, guided={"guidance_scale": 2.0, **TRUE}),
    "flux-schnell": Case(guided=TRUE),
    "flux2": Case(told=2.0, unguided={"guidance_scale": 2.0}),
    "flux2-klein": Case(guided={"guidance_scale": 3.0}, negative=("", "")),
    "sana": Case(32, guided=USUAL),
    "lumina2": Case(32, guided=USUAL),
    "ltx": Case(64, guided=USUAL),
}
UNLIKE = ("wan", "z_image", "flux-dev")
"""Families of which any two differ in everything that is not their own: what holds of these is among the fast tests."""
SOME_FAST = [pytest.param(kind, marks=() if kind in UNLIKE else pytest.mark.slow) for kind in CASES]


@dataclass(frozen=True)
class Opened:
    """A tiny pipeline out of its folder, its family and how it is called."""

    kind: str
    path: Path
    pipe: Any
    family: Family
    case: Case

    @property
    def shape(self) -> tuple[int, ...]:
        return self.family.shape(self.pipe, self.case.size, self.case.size)

    def noise(self, n: int = 2) -> Tensor:
        return torch.randn(n, *self.shape, generator=torch.Generator().manual_seed(1))

    def call(self, prompts: list[str], guided: bool = False, latent: bool = True, **arguments: Any) -> Tensor:
        """What the pipeline itself makes of the noise in two steps: x_1, or pictures in [0, 1]."""
        how = self.case.guided if guided else {**self.family.unguided(), **self.case.unguided}
        assert how is not None
        how = {
            name: list(value) if isinstance(value, list) else value for name, value in how.items()
        }  # some write there
        out = self.pipe(
            prompt=list(prompts),
            height=self.case.size,
            width=self.case.size,
            num_inference_steps=STEPS,
            latents=self.family.packed(self.noise(len(prompts))),
            output_type="latent" if latent else "pt",
            **self.family.call_arguments(),
            **how,
            **arguments,
        )[0]
        assert isinstance(out, Tensor)
        return self.family.from_pipeline(self.pipe, out, self.shape) if latent else out

    def times(self) -> list[float]:
        """Our times of the steps of the pipeline's last call."""
        return [1 - float(sigma) for sigma in self.pipe.scheduler.sigmas[:-1]]

    def velocity(self, cond: Mapping[str, Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, t: self.family.velocity(self.pipe.transformer, x, t, cond, self.case.told)

    @torch.no_grad()
    def solved(self, prompts: list[str], guided: bool = False) -> Tensor:
        """The same by the family and our Euler steps, at the times of the pipeline's last call."""
        v_c = self.velocity(self.family.encode(self.pipe, prompts))
        if not guided:
            return euler(v_c, self.noise(len(prompts)), self.times())
        v_u = self.velocity(self.family.encode(self.pipe, list(self.case.negative[: len(prompts)]), negative=True))
        w = self.family.scale(self.case.scale)
        return euler(lambda x, t: self.family.guide(v_c(x, t), v_u(x, t), w), self.noise(len(prompts)), self.times())


def opened(kind: str, path: Path, dtype: torch.dtype = torch.float32) -> Opened:
    """The pipeline in ``path``."""
    model = open_model(path)
    pipe = load_pipeline(model, (*model.encoders, TRANSFORMER, VAE), dtype)
    return Opened(kind, path, pipe, model.family, CASES[kind])


@contextlib.contextmanager
def recorded(transformer: Any) -> Iterator[list[dict[str, Any]]]:
    """What the transformer is called with inside the context: its arguments by name, one entry for each call."""
    calls: list[dict[str, Any]] = []
    forward = transformer.forward
    signature = inspect.signature(forward)

    def record(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        calls.append({name: _kept(value) for name, value in arguments.items() if value is not None and value != {}})
        return forward(*args, **kwargs)

    transformer.forward = record
    try:
        yield calls
    finally:
        del transformer.forward


def _kept(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [_kept(entry) for entry in value]
    return value


def relative(got: Tensor, want: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((got - want).detach().abs().max() / want.detach().abs().max())
