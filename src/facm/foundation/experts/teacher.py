"""Teachers of two experts: both loaded, or one of them inside a student with adapters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from facm.core.component import component, refused
from facm.foundation.experts.residence import Residence, Room, sized
from facm.foundation.experts.switch import Resident, TwoExperts
from facm.foundation.folder import SECOND, TRANSFORMER, open_model
from facm.foundation.network import DiffusersModel, DiffusersNetwork
from facm.foundation.teacher import InModelsFiles, OwnBase
from facm.runs.config import BesideStudent, Pretrained


@dataclass(frozen=True)
@component
class FromExperts(Pretrained):
    """The two experts of a model, each asked for the times that its pipeline asks it for.

    ``load`` raises ValueError for a model of one transformer.
    """

    high: DiffusersModel
    """The expert of high noise, without adapters."""
    low: DiffusersModel
    """The expert of low noise, of the same model, without adapters."""
    resident: Resident = "both"
    """Which of them are on the device: both, or one, and the other in host memory until it is asked."""

    def __post_init__(self) -> None:
        for name, part in (("high", TRANSFORMER), ("low", SECOND)):
            config = getattr(self, name)
            if config.part != part or config.lora is not None or config.smooth is not None:
                raise refused(self, name, f"part = {part!r} without lora and smooth")
        if self.low.path != self.high.path:
            raise refused(self, "low", f"the other expert of path = {self.high.path!r}")

    def load(self) -> nn.Module:
        high, low = self.high.build(), self.low.build()
        residence = Residence({"high": high, "low": low}) if self.resident == "one" else None
        return TwoExperts(high, low, boundary_of(self.high.path), residence)

    def resting(self) -> FromExperts:
        """With ``resident`` = one."""
        return replace(self, resident="one")

    def files(self) -> tuple[Path, ...]:
        """Of both experts."""
        return (*self.high.files(), *self.low.files())

    def files_sha256(self) -> str:
        """A hash of both experts' files."""
        return f"{self.high.files_sha256()} {self.low.files_sha256()}"

    def check_files(self) -> None:
        """As of the models."""
        self.high.check_files()
        self.low.check_files()


@dataclass(frozen=True)
@component
class OtherExpert(InModelsFiles, BesideStudent):
    """The student's own base, its adapters off, as one expert, and the other expert of its model beside it: for a
    student that began as one of them and learns all times. The base is in memory once."""

    model: DiffusersModel
    """The expert that the student is not, without adapters."""
    resident: Resident = "both"
    """both: it stays on the device; one: it is in host memory but while it is asked, when the base is there."""

    def __post_init__(self) -> None:
        if self.model.lora is not None or self.model.smooth is not None:
            raise refused(self, "model", "a model without lora and smooth")

    def load(self) -> nn.Module:
        network = self.model.build()
        return Visiting(network) if self.resident == "one" else network

    def resting(self) -> OtherExpert:
        """With ``resident`` = one."""
        return replace(self, resident="one")

    def beside(self, network: nn.Module, loaded: Any) -> TwoExperts:
        base = OwnBase().within(network)
        if isinstance(loaded, Visiting):
            loaded = Visiting(loaded.network, (p for p in network.parameters() if not p.requires_grad))
        assert isinstance(network, DiffusersNetwork)  # or it would have no base
        if network.part == self.model.part:
            raise ValueError(
                f"teacher = OtherExpert(part = {self.model.part!r}) of a student of the same part, expected the other "
                "expert"
            )
        high, low = (base, loaded) if network.part == TRANSFORMER else (loaded, base)
        return TwoExperts(high, low, boundary_of(self.model.path))


class Visiting(nn.Module):
    """A frozen network that is in host memory, but while it is called.

    network: F(x, t, cond).
    displaced: frozen tensors that are in host memory meanwhile.
    """

    auxiliary_time = False

    def __init__(self, network: nn.Module, displaced: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.network = network
        self.residence = Residence({"network": network})
        self.room = Room(displaced)

    def forward(self, x: Any, t: Any, cond: Any = None) -> Any:
        """As the network; on x's device."""
        if x.is_meta:  # what it displaces is as large as it is
            return self.network(x, t, cond)
        with self.room.made():
            self.residence.bring("network", x.device)
            try:
                return self.network(x, t, cond)
            finally:
                self.residence.leave()

    def resting_bytes(self) -> int:
        """Bytes of all of the network."""
        return sized(self.network)

    def guide_velocity(self, v_c: Any, v_u: Any, scale: Any) -> Any:
        """As the network."""
        return self.network.guide_velocity(v_c, v_u, scale)  # type: ignore[operator]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return self


def boundary_of(path: str) -> float:
    """The noise level where the experts of a model meet. Raises ValueError for a model of one transformer."""
    boundary = open_model(Path(path).expanduser()).boundary
    if boundary is None:
        raise ValueError(f"{path} has one transformer, expected a model of two experts, such as Wan 2.2 A14B")
    return boundary
