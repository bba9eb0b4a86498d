"""Teachers of a student that is a diffusers model: the model itself, or the base inside a student with adapters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from facm.core.component import component
from facm.core.cond import Cond
from facm.core.types import Scale
from facm.foundation.network import DiffusersModel, DiffusersNetwork
from facm.runs.config import Pretrained, WithinStudent


class InModelsFiles:
    """What a teacher whose weights are those of one model answers for its files: see
    :class:`facm.core.types.InFiles`."""

    model: DiffusersModel

    def files(self) -> tuple[Path, ...]:
        """As of the model."""
        return self.model.files()

    def files_sha256(self) -> str:
        """As of the model."""
        return self.model.files_sha256()

    def check_files(self) -> None:
        """As of the model."""
        self.model.check_files()


@dataclass(frozen=True)
@component
class FromModel(InModelsFiles, Pretrained):
    """A second copy of a model, for a student all of whose weights are trained."""

    model: DiffusersModel
    """The model, without adapters."""

    def load(self) -> nn.Module:
        return self.model.build()


@dataclass(frozen=True)
class OwnBase(WithinStudent):
    """The student's own base, its adapters and its smoothing off: one copy of the weights is teacher and student."""

    def within(self, network: nn.Module) -> Base:
        if not isinstance(network, DiffusersNetwork) or not network.has_lora:
            raise ValueError(
                f"teacher = OwnBase() with network = {type(network).__name__}, expected a DiffusersModel with lora: "
                "without adapters the student's weights move, and its base is nowhere; use FromModel(...)"
            )
        return Base(network)


class Base:
    """F(x, t, cond) of the base inside a network with adapters."""

    auxiliary_time = False

    def __init__(self, network: DiffusersNetwork) -> None:
        self.network = network

    def __call__(self, x: Tensor, t: Tensor, cond: Cond = None) -> Any:
        with self.network.as_base():
            return self.network(x, t, cond)

    def guide_velocity(self, v_c: Tensor, v_u: Tensor, scale: Scale) -> Tensor:
        """As :meth:`facm.foundation.network.DiffusersNetwork.guide_velocity`."""
        return self.network.guide_velocity(v_c, v_u, scale)
