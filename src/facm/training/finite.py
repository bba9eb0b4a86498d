"""Nothing is kept of a run but finite numbers; and where a run's numbers ceased to be, in words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from facm.core.finite import buffers_of, listed, non_finite
from facm.core.torch_private import tree_leaves
from facm.distributed.collectives import gathered
from facm.distributed.process_group import World
from facm.distributed.wrap import local


class NonFiniteError(RuntimeError):
    """Weights, averages or moments that are not finite, or too many steps in a row without a finite gradient."""


def check_finite_state(tensors: Mapping[str, Tensor], network: nn.Module, world: World, what: str) -> None:
    """Raise NonFiniteError on all ranks if weights, averages or moments hold a NaN or an infinity on any of them.

    tensors: by their names in a checkpoint, sharded or whole. The network's buffers may hold infinities, as masks do.
    what: how the message begins.
    """
    buffers = buffers_of(network)
    kept = {name: local(value) for name, value in tensors.items()}
    masks = {name for name in kept if _weight(name) in buffers and not name.startswith("optimizer/")}
    found = gathered(world, non_finite(kept, masks))
    bad = [f"{name}{f' on rank {rank}' * (world.ranks > 1)}" for rank, names in enumerate(found) for name in names]
    if bad:
        raise NonFiniteError(f"{what}: {listed(bad)} hold NaN or infinity")


def _weight(name: str) -> str:
    """network/a.b, self_teacher/a.b and ema/0.05/a.b -> a.b."""
    return name.split("/", 1 if name.startswith(("network/", "self_teacher/")) else 2)[-1]


def origin(
    networks: Mapping[str, nn.Module], inputs: Mapping[str, Any], again: Callable[[], object] | None, world: World
) -> str:
    """Where a step's numbers first cease to be finite: in an input, a weight, or what a module returns.

    networks: by what they are called ("the teacher").
    inputs: of this rank, by what they are called ("x_1 of the batch"), tensors or None.
    again: computes this rank's losses of the step again, without waiting for other ranks; None where that cannot be.
    Empty where nothing is found. All ranks call this together.
    """
    answers = gathered(world, _in_numbers(networks, inputs) or ("" if again is None else _in_passes(networks, again)))
    said = [f"{answer}{f' on rank {rank}' * (world.ranks > 1)}" for rank, answer in enumerate(answers) if answer]
    return said[0] if said else ""


def _in_numbers(networks: Mapping[str, nn.Module], inputs: Mapping[str, Any]) -> str:
    if bad := non_finite({name: value for name, value in inputs.items() if isinstance(value, Tensor)}):
        return f"{bad[0]} holds NaN or infinity"
    for called, network in networks.items():
        weights = {name: local(value) for name, value in network.state_dict().items()}
        if bad := non_finite(weights, buffers_of(network)):
            return f"{called} holds NaN or infinity in {listed(bad)}"
    return ""


def _in_passes(networks: Mapping[str, nn.Module], again: Callable[[], object]) -> str:
    seen: list[str] = []
    with _watched(networks, seen), contextlib.suppress(Exception):  # it must not hide the error that it explains
        again()
    return seen[0] if seen else ""


@contextlib.contextmanager
def _watched(networks: Mapping[str, nn.Module], seen: list[str]) -> Iterator[None]:
    """Append to ``seen`` which module returns something that is not finite, in the order in which that happens."""

    def watch(where: str) -> Any:
        def look(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if not _finite(outputs):
                seen.append(f"{where} returns NaN or infinity" + " for finite inputs" * _finite(inputs))

        return look

    with contextlib.ExitStack() as stack:
        for called, network in networks.items():
            for name, module in network.named_modules():
                where = f"{called} ({type(module).__name__}{f' {name}' * bool(name)})"
                handle = module.register_forward_hook(watch(where))
                stack.callback(handle.remove)
        yield


def _finite(values: Any) -> bool:
    tensors = [local(x) for x in tree_leaves(values) if isinstance(x, Tensor) and x.is_floating_point()]
    return all(bool(torch.isfinite(x.detach()).all()) for x in tensors)
