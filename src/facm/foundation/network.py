"""A diffusers transformer as the network of a run: F(x, t, cond) with t = 0 noise, whole or through adapters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from facm.core.component import Range, Seed, component
from facm.core.cond import Cond
from facm.core.types import NetworkConfig, Scale
from facm.distributed.parts_of_files import read_parts
from facm.distributed.wrap import parameters_are_left_out
from facm.foundation.families.base import Family
from facm.foundation.folder import TRANSFORMER, ModelFolder, Part, load_transformer, open_model
from facm.foundation.lora import LoRA, add_lora, begin_lora, lora_off, lora_parameters
from facm.foundation.smoothing import Smoothing

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
INSIDE_PEFT = ".base_layer"
"""What peft puts into the name of a layer's own weight."""
Cutoff = Annotated[float, Range("[1e-3, 1e6]")]
"""Radians per unit of t."""


@dataclass(frozen=True)
@component
class DiffusersModel(NetworkConfig):
    """The transformer of a model in diffusers' layout, with the weights in its folder.

    ``build`` raises ValueError for a folder that is no model, of a family that is not known, or that is not the one
    that ``sha256`` names.
    """

    path: str
    """Folder of the model, with model_index.json."""
    lora: LoRA | None = None
    """Train adapters and keep the weights as they are; None: train all weights."""
    smooth: Cutoff | None = None
    """Highest frequency of the time embedding that is kept, in radians per unit of t; None: all of them."""
    embedded_guidance: Annotated[float, Range("[0, 1000]")] | None = None
    """Guidance that the transformer is told, where its family has that (FLUX.1-dev: 3.5)."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the base weights; adapters are always in float32. bf16 without adapters rounds updates away."""
    sha256: str | None = None
    """Hash of the transformer's files, held against them when they are loaded; None: not held against anything."""
    seed: Seed = 0
    """Seed of the adapters' first weights."""
    part: Part = TRANSFORMER
    """Which transformer of a model of two experts: transformer is that of high noise, transformer_2 of low noise."""

    @property
    def partly_elsewhere(self) -> bool:
        """Whether weights are only in the model's folder, and in no checkpoint."""
        return self.lora is not None or self.smooth is not None

    def build(self) -> DiffusersNetwork:
        model = self._model()
        if torch.get_default_device().type != "meta" and not parameters_are_left_out():
            self.check_files()
        if self.part not in model.transformers:
            raise ValueError(
                f"DiffusersModel: part = {self.part!r}, and {self.path!r} has one transformer; expected {TRANSFORMER!r}"
            )
        transformer = load_transformer(model, DTYPES[self.dtype], self.part)
        smoothing = None
        if self.lora is not None:
            add_lora(transformer, self.lora, model.family.lora_targets, self.seed)
        if self.smooth is not None:
            with torch.device("cpu"):  # which columns there are is known without weights, too
                smoothing = Smoothing(transformer, model.family.time_embedding(transformer), self.smooth)
        return DiffusersNetwork(
            transformer,
            model.family,
            self.embedded_guidance,
            smoothing,
            self.lora is not None,
            self.part,
            model.path / self.part,
            self.seed,
        )

    def files(self) -> tuple[Path, ...]:
        """The transformer's safetensors."""
        return tuple(sorted((self._model().path / self.part).glob("*.safetensors")))

    def files_sha256(self) -> str:
        """A hash of the transformer's files."""
        return self._model().identity(self.part)[self.part]

    def check_files(self) -> None:
        """Raise ValueError where the transformer's files are not those that ``sha256`` names."""
        if self.sha256 is not None and (found := self.files_sha256()) != self.sha256:
            raise ValueError(
                f"DiffusersModel: path = {self.path!r} holds a transformer with the hash {found}, expected the one "
                f"with {self.sha256} that the run began with"
            )

    def _model(self) -> ModelFolder:
        return open_model(Path(self.path).expanduser())


class DiffusersNetwork(nn.Module):
    """F(x, t, cond) = data - noise in float32. Its state dict holds what can be trained, so that checkpoints and
    averages of adapters hold the adapters alone; the rest is in the model's folder.

    transformer: the module of diffusers.
    family: how it is called.
    embedded_guidance: the guidance that it is told, or None.
    smoothing: the mask on its time embedding, or None.
    has_lora: whether its trained parameters are adapters.
    part: which transformer of its model it is.
    folder: where its weights are; None where it is not filled from there.
    seed: of the adapters' first weights.
    """

    auxiliary_time = False

    def __init__(
        self,
        transformer: nn.Module,
        family: Family,
        embedded_guidance: float | None = None,
        smoothing: Smoothing | None = None,
        has_lora: bool = False,
        part: Part = TRANSFORMER,
        folder: Path | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.family = family
        self.embedded_guidance = embedded_guidance
        self.smoothing = smoothing
        self.has_lora = has_lora
        self.part: Part = part
        self.folder = folder
        self.seed = seed
        # Fixed here: whoever freezes the network later still wants its weights.
        self.trained = frozenset(name for name, p in self.named_parameters(remove_duplicate=False) if p.requires_grad)
        self._register_state_dict_hook(_only_trained)
        self.register_load_state_dict_post_hook(_ignore_untrained)

    def forward(self, x: Tensor, t: Tensor, cond: Cond = None) -> Tensor:
        """x (B, C, H, W) or (B, C, frames, H, W), t (B,) in [0, 2] -> like x.

        Raises ValueError without a mapping of embeddings.
        """
        if not isinstance(cond, Mapping):
            raise ValueError(f"cond = {type(cond).__name__}, expected a mapping with the prompts' embeddings")
        return self.family.velocity(self.transformer, x, t, cond, self.embedded_guidance)

    def fill(self) -> None:
        """Read the weights of a network that was built without them, and begin its adapters."""
        if self.folder is None:
            raise ValueError("folder = None, expected the files that the network is filled from")
        state = self.transformer.state_dict(keep_vars=True)
        adapters = {name for name, _ in lora_parameters(self.transformer)}
        own = {name.replace(INSIDE_PEFT, ""): value.detach() for name, value in state.items() if name not in adapters}
        read_parts(self.folder, own)
        if self.has_lora:
            begin_lora(self.transformer, self.seed)

    def guide_velocity(self, v_c: Tensor, v_u: Tensor, scale: Scale) -> Tensor:
        """The guided velocity as the model's pipeline computes it."""
        return self.family.guide(v_c, v_u, scale)

    @contextlib.contextmanager
    def as_base(self) -> Iterator[None]:
        """The model as it is in its folder, without adapters and smoothing, inside the context."""
        with contextlib.ExitStack() as stack:
            if self.has_lora:
                stack.enter_context(lora_off(self.transformer))
            if self.smoothing is not None:
                self.smoothing.on = False
            try:
                yield
            finally:
                if self.smoothing is not None:
                    self.smoothing.on = True


def _only_trained(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(prefix) and name[len(prefix) :] not in module.trained]:
        del state[name]


def _ignore_untrained(module: Any, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name in module.trained]
