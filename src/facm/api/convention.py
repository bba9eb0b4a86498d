"""Which convention a network follows that somebody else trained: measured on its own data.

A network that has learned the flow predicts v = x_1 - x_0 better than a constant does, under its own convention and no
other: time that runs from noise to data or back, from 0 to 1 or to 1000, and the sign that goes with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from facm.core.cond import Cond
from facm.core.tensors import expand
from facm.core.types import Batch, NetworkConfig
from facm.networks.adapters.foreign import Foreign, tensor_of

TIMES = ("t", "timestep", "timesteps", "time", "sigma", "noise_level")
"""Names of a network's time argument, in this order."""
INPUTS = ("x", "sample", "hidden_states", "xt", "x_t", "input", "inputs", "inp")
CONDS = ("cond", "y", "class_labels", "class_label", "labels", "label", "c", "context")
POINTS = (0.2, 0.4, 0.6, 0.8)
"""Times at which the conventions are compared; those of one direction are those of the other."""
LEARNED = 0.95
"""The error of the right convention is below this part of that of v = 0."""
SURE = 4.0
"""Standard errors by which it is below the next one's, sample by sample."""


@dataclass(frozen=True)
class Convention:
    """How a network that predicts a velocity is called.

    noise_at: its time at noise, 0 or the time scale; data are at the other end.
    time_scale: its time runs from 0 to this.
    input_name, time_name, cond_name: its arguments; cond_name is empty where it takes no condition.
    """

    noise_at: float = 0.0
    time_scale: float = 1.0
    input_name: str = "x"
    time_name: str = "t"
    cond_name: str = ""

    def adapted(self, network: NetworkConfig) -> NetworkConfig:
        """``network`` seen in this package's convention."""
        return Foreign(
            network,
            reversed_time=self.noise_at != 0,
            time_scale=self.time_scale,
            time_name=self.time_name,
            cond_name=self.cond_name or "cond",
            input_name=self.input_name,
        )

    def __str__(self) -> str:
        ends = ("noise", "data") if self.noise_at == 0 else ("data", "noise")
        return f"{self.time_name} from 0 ({ends[0]}) to {self.time_scale:g} ({ends[1]})"


def arguments_of(network: nn.Module, input_name: str, time_name: str, cond_name: str | None) -> tuple[str, str, str]:
    """Names of the arguments for x, the time and the condition, the last empty where there is none.

    Names that are given are kept; cond_name: None: look for it. Raises ValueError where one is not to be found.
    """
    parameters = inspect.signature(network.forward).parameters
    kind = type(network).__name__
    names = [name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]

    def found(what: str, given: str, known: Sequence[str]) -> str:
        name = given or next((name for name in known if name in names), "")
        if name not in names:
            raise ValueError(
                f"network {kind} has the arguments {', '.join(names)}, and {what} = {given!r}: expected {what}, the "
                "name of one of them"
            )
        return name

    time = found("time_name", time_name, TIMES)
    cond = found("cond_name", cond_name, CONDS) if cond_name else ""
    if cond_name is None:
        cond = next((name for name in CONDS if name in names and name != time), "")
    return found("input_name", input_name, INPUTS), time, cond


def stated(noise_at: float | None, time_scale: float | None, names: tuple[str, str, str]) -> Convention | None:
    """The convention that is given by both, None by neither. Raises ValueError for one of them, and where they do not
    fit."""
    if noise_at is None and time_scale is None:
        return None
    if noise_at is None or time_scale is None:
        given, missing = ("time_scale", "noise_at") if noise_at is None else ("noise_at", "time_scale")
        value = time_scale if noise_at is None else noise_at
        raise ValueError(f"{given} = {value} without {missing}: expected {missing}, too, or neither")
    if noise_at not in (0, time_scale) or time_scale == 0:
        raise ValueError(f"noise_at = {noise_at}, expected 0, or time_scale = {time_scale}, and that not 0")
    return Convention(float(noise_at), float(time_scale), *names)


@torch.no_grad()
def measured(network: nn.Module, batch: Batch, names: tuple[str, str, str], seed: int = 0) -> dict[Convention, Tensor]:
    """The errors (B,) of each convention, the least first: the mean square of prediction - v of each sample, in parts
    of that of v over all of them.

    network: as it was given, in eval mode meanwhile. batch: a few dozen samples of its data.
    """
    rng = torch.Generator().manual_seed(seed)
    parameter = next(network.parameters())
    x_1 = batch.x_1.to(parameter.device, parameter.dtype)
    x_0 = torch.randn(x_1.shape, generator=rng).to(x_1)
    training = network.training
    network.eval()
    try:
        return _errors(network, x_0, x_1, batch.cond, names)
    finally:
        network.train(training)


def _errors(
    network: nn.Module, x_0: Tensor, x_1: Tensor, cond: Cond, names: tuple[str, str, str]
) -> dict[Convention, Tensor]:
    v, errors = x_1 - x_0, dict[Convention, Tensor]()
    totals: dict[Convention, list[Tensor]] = {}
    for at in predictions(network, x_0, x_1, cond, names):
        sign = 1 if at.convention.noise_at == 0 else -1
        squares = (sign * at.predicted - v).square().flatten(1).mean(1) / v.square().mean()
        totals.setdefault(at.convention, []).append(squares.float().cpu())
    for convention, squares_at in totals.items():
        errors[convention] = torch.stack(squares_at).mean(0)
    return dict(sorted(errors.items(), key=lambda item: float(item[1].mean())))


@dataclass(frozen=True, eq=False)
class At:
    """What a network makes of x_t (B, ...) at t, called by one convention.

    predicted: (B, ...), as it returned it.
    """

    convention: Convention
    t: float
    x_t: Tensor
    predicted: Tensor


def predictions(network: nn.Module, x_0: Tensor, x_1: Tensor, cond: Cond, names: tuple[str, str, str]) -> Iterator[At]:
    """The network's output at the times of POINTS under each convention that it can be called by.

    Raises ValueError for an output of another shape than x's, and where it can be called by none: one with a table of
    times has no entry beyond its end, which is passed over.
    """
    failed: list[Exception] = []
    for scale in (1.0, 1000.0):
        for noise_at in (0.0, scale):
            try:
                yield from list(_called_by(Convention(noise_at, scale, *names), network, x_0, x_1, cond))
            except (IndexError, RuntimeError, AssertionError, TypeError) as error:
                failed.append(error)
    if len(failed) == 4:
        raise cannot_be_called(type(network).__name__, x_1, cond if names[2] else None, failed[0]) from failed[0]


def cannot_be_called(name: str, x: Tensor, cond: Cond, error: Exception) -> ValueError:
    """The error of a network that fails with ``error`` for x, a time of its own and ``cond``."""
    given = "no condition" if cond is None else "a condition"
    return ValueError(
        f"network {name} fails for x of shape {tuple(x.shape)}, a time and {given} ({type(error).__name__}: {error}): "
        "expected one that can be called so; classes, cond_name, input_name and time_name say otherwise"
    )


def _called_by(convention: Convention, network: nn.Module, x_0: Tensor, x_1: Tensor, cond: Cond) -> Iterator[At]:
    given = {convention.cond_name: _on(cond, x_1.device)} if convention.cond_name and cond is not None else {}
    for t in POINTS:
        times = torch.full((len(x_1),), t, device=x_1.device, dtype=x_1.dtype)
        x_t = (1 - expand(times, x_1)) * x_0 + expand(times, x_1) * x_1
        tau = convention.time_scale * (times if convention.noise_at == 0 else 1 - times)
        out = network(**{convention.input_name: x_t, convention.time_name: tau}, **given)
        predicted = tensor_of(out, type(network).__name__)
        if predicted.shape != x_1.shape:
            raise ValueError(
                f"network {type(network).__name__} returned {tuple(predicted.shape)} for x of shape "
                f"{tuple(x_1.shape)}, expected a velocity of the same shape"
            )
        yield At(convention, t, x_t, predicted)


def stands_out(errors: Mapping[Any, Tensor]) -> bool:
    """Whether the first and least of the errors (B,) is below that of nothing learned, and surely below the next."""
    least, second, *_ = errors.values()
    more = second - least  # of the same samples and noise
    return bool(least.mean() < LEARNED and more.mean() > SURE * more.std() / len(more) ** 0.5)


def clearest(errors: Mapping[Convention, Tensor]) -> Convention:
    """The convention that the network follows. Raises ValueError with all errors where none stands out."""
    if stands_out(errors):
        return next(iter(errors))
    listed = "; ".join(f"{convention}: {error.mean():.2f}" for convention, error in errors.items())
    raise ValueError(
        "the network's convention cannot be told from its errors, in parts of the velocity's mean square: "
        f"{listed}. Expected one below 1 and clearly below the others, as of a trained flow; where you know it, say "
        "time_scale and noise_at, such as noise_at = 0, time_scale = 1"
    )


def _on(cond: Any, device: torch.device) -> Any:
    return {k: v.to(device) for k, v in cond.items()} if isinstance(cond, Mapping) else cond.to(device)
