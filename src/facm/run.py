"""A run: one frozen object that holds everything that changes the numbers, to and from JSON."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import importlib
import json
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from facm.ema import PowerEMA
from facm.optim import AdamW
from facm.types import Data, NetworkConfig, Objective


@runtime_checkable
class Pretrained(Protocol):
    """A trained network to be loaded: a teacher, or where to start from. Its weights' hash goes into checkpoints."""

    def load(self) -> torch.nn.Module: ...


@dataclass(frozen=True)
class Every:
    """How often things are written, in images seen.

    keep: how many of the newest checkpoints stay. ema_snapshots: EMA weights kept for post-hoc synthesis; 0 is none.
    """

    log: int = 2_000
    checkpoint: int = 100_000
    ema_snapshots: int = 100_000
    keep: int = 2

    def __post_init__(self) -> None:
        for name, least in (("log", 1), ("checkpoint", 1), ("ema_snapshots", 0), ("keep", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"every.{name} = {getattr(self, name)}, expected at least {least}")


@dataclass(frozen=True)
class Run:
    """All that changes the numbers of a training run.

    network, data, objective: frozen components, the package's or your own.
    images: length of the run in images seen; batch_size: images a step.
    teacher: what the objective distils from; initial: weights to start from (strict), or None for a random start.
    precision: "fp32", "bf16" (autocast), or "auto": bf16 where the device has it, which a CPU has not.
    max_nonfinite: a step with a non-finite gradient is skipped and counted; so many in a row stop the run.
    seed: of everything random in the run.
    """

    network: NetworkConfig
    data: Data
    objective: Objective
    images: int
    batch_size: int = 128
    optimizer: AdamW = AdamW()
    ema: PowerEMA = PowerEMA()
    teacher: Pretrained | None = None
    initial: Pretrained | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    max_nonfinite: int = 10
    every: Every = Every()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images = {self.images}: zero steps train nothing; expected at least 1")
        if self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size}, expected at least 1")
        if self.max_nonfinite < 1:
            raise ValueError(f"max_nonfinite = {self.max_nonfinite}, expected at least 1")
        if self.seed < 0:
            raise ValueError(f"seed = {self.seed}, expected 0 or more")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision = {self.precision!r}, expected 'auto', 'fp32' or 'bf16'")
        for name, protocol in (("network", NetworkConfig), ("data", Data), ("objective", Objective)):
            if not isinstance(getattr(self, name), protocol):
                raise TypeError(f"{name} = {getattr(self, name)!r} is not a {protocol.__name__}: {protocol.__doc__}")
        for name in ("teacher", "initial"):
            if not isinstance(getattr(self, name), Pretrained | None):
                raise TypeError(f"{name} = {getattr(self, name)!r}, expected FromRun(folder), or an object with load()")


def to_json(value: Any) -> Any:
    """Frozen dataclasses, enums, tuples and scalars as JSON, each object with the type that rebuilds it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if "<locals>" in type(value).__qualname__:
            raise TypeError(
                f"{type(value).__qualname__} is defined inside a function, where resuming could not find it: "
                "move it to the top level of its file"
            )
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"type": f"{type(value).__module__}:{type(value).__qualname__}", **fields}
    if isinstance(value, enum.Enum):
        return {"type": f"{type(value).__module__}:{type(value).__qualname__}", "value": value.value}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        if "type" in value or not all(isinstance(key, str) for key in value):
            raise TypeError(f"{value!r} cannot be recorded: expected text keys, none of them 'type'")
        return {key: to_json(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{value!r} of type {type(value).__name__} cannot be recorded in run.json: a component is a dataclass of "
        "numbers, text, tuples and other components"
    )


def from_json(value: Any) -> Any:
    """The inverse of :func:`to_json`; sequences come back as tuples."""
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {key: from_json(item) for key, item in value.items() if key != "type"}
    if "type" not in value:
        return fields
    cls = _find(str(value["type"]))
    return cls(fields["value"]) if issubclass(cls, enum.Enum) else cls(**fields)


def _find(name: str) -> type:
    module, _, qualified = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualified.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"cannot find the component {name} ({error}): is the file that defines it still there?"
        ) from error
    if not (isinstance(found, type) and (dataclasses.is_dataclass(found) or issubclass(found, enum.Enum))):
        raise ValueError(f"{name} is not a dataclass: refused")
    return found


def fingerprint(value: Any) -> str:
    """sha256 of a component's JSON: two runs with the same one would give the same numbers.

    Fields at their defaults are left out, so that a run made before a component got a new field is still itself.
    """
    return hashlib.sha256(json.dumps(_told(value), sort_keys=True).encode()).hexdigest()


def _told(value: Any) -> Any:
    """As :func:`to_json`, of a component only what differs from its defaults."""
    if isinstance(value, tuple | list):
        return [_told(item) for item in value]
    if isinstance(value, dict):
        return to_json(value) and {key: _told(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        told = [f for f in dataclasses.fields(value) if f.init and not _at_default(f, getattr(value, f.name))]
        return {"type": to_json(value)["type"], **{f.name: _told(getattr(value, f.name)) for f in told}}
    return to_json(value)


def _at_default(field: dataclasses.Field[Any], value: Any) -> bool:
    """As recorded: a list is its tuple, and what takes no part in comparisons still counts."""
    if field.default_factory is not dataclasses.MISSING:
        return bool(to_json(value) == to_json(field.default_factory()))
    return field.default is not dataclasses.MISSING and bool(to_json(value) == to_json(field.default))
