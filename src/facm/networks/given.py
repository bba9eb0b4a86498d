"""A network that was given from Python as an object, so that a run can be made of it without a configuration.

A run records what the object was, never the object: nothing is pickled. Whoever opens the run later gives an object of
the same architecture again, or has it rebuilt where it is one of diffusers' models, which are described by JSON.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from facm.core.component import component, refused, shown
from facm.core.modules import unwrapped
from facm.core.types import NetworkConfig

_given: dict[tuple[str, str], nn.Module] = {}
"""(kind, tensors) -> the network of that architecture that this process was given last."""


@dataclass(frozen=True)
@component
class GivenNetwork(NetworkConfig):
    """An nn.Module that was given from Python: ``build`` makes a copy of it, with its weights.

    Raises ComponentError for settings that are no JSON object."""

    kind: str
    """Its class, as in torchcfm.models.unet.unet:UNetModelWrapper."""
    tensors: str
    """Hash of the names, shapes and types of its weights."""
    settings: str = ""
    """Of one of diffusers' models: its configuration as JSON, from which it can be built anew; empty for any other."""

    def __post_init__(self) -> None:
        if self.settings and not isinstance(_parsed(self.settings), dict):
            raise refused(self, "settings", "a JSON object, or nothing")

    def build(self) -> nn.Module:
        """A copy of the object. Raises ValueError where this process was given none of this architecture."""
        given = _given.get((self.kind, self.tensors))
        if given is not None:
            return _copy(given)
        if self.settings:
            return self._of_diffusers()
        raise ValueError(
            f"network = an object of {shown(self.kind)} that was given from Python and is not here: expected an object "
            "of the same class and sizes, given again as in facm.load(path, network=net); its weights do not matter"
        )

    def _of_diffusers(self) -> nn.Module:
        """A new network of diffusers' class of that name, and of no other module's."""
        import diffusers

        settings = _parsed(self.settings)
        name = self.kind.rpartition(":")[2]
        cls = getattr(diffusers, name, None)
        if not (isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin)):
            raise ValueError(f"GivenNetwork: kind = {shown(self.kind)}, expected a model of diffusers, or no settings")
        made: nn.Module = cls.from_config(settings)
        if tensors_of(made) != self.tensors:
            raise ValueError(f"this version of diffusers builds {name} with other weights than the run was made with")
        return made


def given_network(network: nn.Module) -> GivenNetwork:
    """The configuration of ``network``, which this process remembers. Raises ValueError for anything but an nn.Module
    with weights."""
    network = unwrapped(network)
    if not isinstance(network, nn.Module):
        raise ValueError(f"network = {shown(network)}, expected a torch.nn.Module, or a configuration with build()")
    if not any(True for _ in network.parameters()):
        raise ValueError(
            f"network = {type(network).__name__} has no parameters, expected a network that can be trained"
        )
    kind = f"{type(network).__module__}:{type(network).__qualname__}"
    found = GivenNetwork(kind, tensors_of(network), _settings(network))
    _given[found.kind, found.tensors] = network
    return found


def tensors_of(network: nn.Module) -> str:
    """16 hex digits that say which weights a network has, not their values."""
    said = [f"{name} {tuple(value.shape)} {value.dtype}" for name, value in network.state_dict().items()]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:16]


def _settings(network: Any) -> str:
    """The configuration of one of diffusers' models as JSON; empty for any other network."""
    if not type(network).__module__.startswith("diffusers."):
        return ""
    try:
        return json.dumps(dict(network.config), sort_keys=True, default=str)
    except (AttributeError, TypeError, ValueError):
        return ""


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _copy(network: nn.Module) -> nn.Module:
    """A copy that can be trained; without memory where tensors are made without it."""
    memo: dict[int, Any] = {}
    if torch.get_default_device().type == "meta":
        memo = {
            id(value): nn.Parameter(torch.empty_like(value, device="meta"), value.requires_grad)
            if isinstance(value, nn.Parameter)
            else torch.empty_like(value, device="meta")
            for value in (*network.parameters(), *network.buffers())
        }
    try:
        copied = copy.deepcopy(network, memo)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"network = {type(network).__name__} cannot be copied ({error}), as a teacher and its student must be: "
            "expected a network outside a training step, without results of one among its attributes"
        ) from error
    return copied.requires_grad_(True)
