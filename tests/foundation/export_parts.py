"""Students of tiny pipelines as if trained, drawn from by this package and by the pipelines themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm.foundation.export.schedule import Kind, call_arguments
from facm.foundation.export.student import Student
from facm.foundation.families.flux2 import Flux2
from facm.foundation.folder import TRANSFORMER, load_transformer, open_model
from facm.foundation.lora import LoRA, add_lora, lora_parameters
from facm.foundation.network import DiffusersNetwork
from facm.foundation.smoothing import Smoothing
from facm.sampling.methods import FlowThenJump
from facm.sampling.moves import follow
from facm.sampling.solvers import consistency, uniform_times

PROMPTS = ["a red fox", "snow"]
TOLD = 3.5


def student(path: Path, lora: bool = True, few_step: bool = True) -> Student:
    """Of the pipeline in ``path``: random adapters beside its weights, or other weights; smoothed in either case."""
    model = open_model(path)
    transformer: Any = load_transformer(model)
    embedding = model.family.time_embedding(transformer)
    told = TOLD if getattr(transformer.config, "guidance_embeds", False) else None
    cut = float(embedding.frequencies.max()) / 5
    rng = torch.Generator().manual_seed(1)
    if lora:
        add_lora(transformer, LoRA(3, alpha=2), model.family.lora_targets)
        for name, parameter in lora_parameters(transformer):
            if ".lora_B." in name:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=rng)
    smoothing = Smoothing(transformer, embedding, cut)
    if not lora:
        for parameter in transformer.parameters():
            if parameter.requires_grad:
                parameter.data += 0.02 * torch.randn(parameter.shape, generator=rng)
    network = DiffusersNetwork(transformer, model.family, told, smoothing, lora).eval().requires_grad_(False)
    origin = {
        "facm": "0",
        "run": "z",
        "weights": "EMA 0.05",
        "images_seen": 64,
        "checkpoint_sha256": "0" * 64,
        "base": path.name,
        "base_pipeline": model.pipeline,
        "base_transformer": model.identity(TRANSFORMER)[TRANSFORMER],
        "lora_rank": 3 if lora else None,
        "smooth": cut,
        "embedded_guidance": told,
    }
    return Student(network, model, few_step, origin)


@dataclass(frozen=True)
class Drawn:
    """Two prompts' latents from one noise, in ``n`` steps: by the pipeline, and by this package's sampler."""

    student: Student
    pipe: Any

    @property
    def size(self) -> int:
        return 64 if self.student.model.pipeline == "Lumina2Pipeline" else 32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.student.model.family.shape(self.pipe, self.size, self.size, self.student.frames)

    def noise(self) -> Tensor:
        return torch.randn(len(PROMPTS), *self.shape, generator=torch.Generator().manual_seed(5))

    def cond(self) -> Mapping[str, Tensor]:
        with torch.no_grad():
            return self.student.model.family.encode(self.pipe, PROMPTS)

    def network(self) -> DiffusersNetwork:
        """The pipeline's transformer as this package calls it."""
        told = self.student.network.embedded_guidance
        return DiffusersNetwork(self.pipe.transformer, self.student.model.family, told).eval().requires_grad_(False)

    def by_pipeline(self, n: int, kind: Kind = "stock", **changes: Any) -> Tensor:
        family = self.student.model.family
        arguments = self.student.unguided | family.call_arguments(self.student.frames)
        arguments |= call_arguments(self.student.model.pipeline, n, kind) | changes
        torch.manual_seed(0)
        drawn = self.pipe(
            prompt=list(PROMPTS),
            latents=family.packed(self.noise()),
            height=self.size,
            width=self.size,
            output_type="latent",
            **arguments,
        )
        return family.from_pipeline(self.pipe, drawn[0], self.shape)

    def by_sampler(self, n: int) -> Tensor:
        cond, network = self.cond(), self.network()
        torch.manual_seed(0)
        return consistency(
            lambda x, t: network(x, t, cond), self.noise(), uniform_times(n), lambda _: self._fresh_noise()
        )

    def by_flow_then_jump(self, n: int) -> Tensor:
        cond, network, method = self.cond(), self.network(), FlowThenJump(n)
        torch.manual_seed(0)
        return follow(
            lambda x, t: network(x, 2 - t, cond),
            lambda x, t: network(x, t, cond),
            self.noise(),
            method.schedule(),
            method.moves,
            lambda _: self._fresh_noise(),
        )

    def _fresh_noise(self) -> Tensor:
        """From PyTorch's generator, in the order in which the pipeline's scheduler draws it."""
        family = self.student.model.family
        if isinstance(family, Flux2):  # which takes squares, and has tokens inside
            channels, height, width = self.shape
            return torch.randn(len(PROMPTS), height * width, channels).transpose(1, 2).unflatten(2, (height, width))
        return family.unpacked(torch.randn(family.packed(self.noise()).shape), self.shape)


def relative(a: Tensor, b: Tensor) -> float:
    """The largest difference over the largest entry."""
    return float((a - b).abs().max() / b.abs().max())
