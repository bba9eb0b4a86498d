"""Forward mode of the network and of each of its modules, against differences of the values in double precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from facm.api.checkup.finding import Finding
from facm.api.checkup.subject import Subject
from facm.core.cond import taken
from facm.core.rng import borrowed_generators
from facm.derivative import ForwardModeError
from facm.derivative.dual_mode import op_level_pair
from facm.derivative.errors import explained
from facm.networks.adapters.foreign import tensor_of

STEPS = (1e-4, 1e-6, 1e-5, 1e-3, 1e-2, 1e-7)
"""Steps of the differences: the first that agrees counts, for one of them fits every scale of time and precision."""
RIGHT, ROUGH = 1e-3, 0.03
"""Relative difference of a right derivative, and of one of a network that computes in half or single precision."""
MOST_WEIGHTS = 50_000_000
"""Of larger networks the modules are looked at one by one only where the whole is wrong."""
SAMPLES = 2


@dataclass(frozen=True)
class Failure:
    """A module whose derivative is missing or wrong.

    name: in the network. why: PyTorch's reason, or the relative error.
    """

    name: str
    kind: str
    why: str


Call = tuple[tuple[Any, ...], dict[str, Any]]


def forward_mode_found(subject: Subject) -> Finding:
    """Whether the derivative that training takes is right, and which module is to blame where it is not."""
    cond = taken(subject.batch.cond, slice(0, SAMPLES))
    x_t, t = subject.point(0.4, SAMPLES)
    network = subject.copy()
    try:
        double = subject.copy().double()
        with torch.no_grad():
            subject.shortcut(cond, double)(x_t.double(), t.double())
        network, x_t, t = double, x_t.double(), t.double()
    except (RuntimeError, TypeError):  # types that are set inside of the network
        pass
    with torch.no_grad():
        v = subject.flow(cond, network)(x_t, t).to(x_t)
    function = subject.shortcut(cond, network)
    error = compared(network, function, (x_t, t), (v, torch.ones_like(t)))
    whole_is_right = isinstance(error, float) and error < RIGHT
    weights = sum(p.numel() for p in network.parameters())
    if whole_is_right and weights > MOST_WEIGHTS:
        return Finding("forward mode", "good", f"right to {error:.0e}")
    looked_at, failures = modules(network, lambda: function(x_t, t))
    if not failures and isinstance(error, float) and error < ROUGH:
        rough = "" if whole_is_right else ", as exact as its own precision allows"
        return Finding("forward mode", "good", f"right to {error:.0e}{rough}; each of {looked_at} modules too")
    said = "; ".join(f"{subject.named(f.name)} ({f.kind}): {f.why}" for f in failures[:3])
    if whole_is_right:
        return Finding("forward mode", "note", f"right to {error:.0e} in all, and not in each module: {said}")
    line = f"derivative=facm.derivative.FiniteDifference({_step(subject):g})"
    why = f"off by {error:.0%}" if isinstance(error, float) else error
    return Finding(
        "forward mode",
        "wrong",
        said or why,
        f"objective=facm.FACM(facm.{subject.condition}, {line})",
    )


def compared(
    network: Any,
    asked: Callable[..., Tensor],
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor],
) -> float | str:
    """Relative error of the forward-mode derivative of the function ``asked``, or why there is none."""

    def function(*given: Tensor) -> Tensor:
        with borrowed_generators(0):  # what it draws is the same each time
            return asked(*given)

    try:
        with torch.no_grad(), explained(network, "OpLevel()"):
            _, tangent = op_level_pair(function, tuple(primals), tuple(tangents))
    except ForwardModeError as error:
        return str(error).partition(" Expected ")[0]
    except Exception as error:  # of an operation that takes no dual numbers, in the user's own words
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    best = torch.inf
    for h in STEPS:
        with torch.no_grad():
            after = function(*(p + h * d for p, d in zip(primals, tangents, strict=True)))
            before = function(*(p - h * d for p, d in zip(primals, tangents, strict=True)))
        difference = (after.double() - before.double()) / (2 * h)
        scale = difference.square().mean().sqrt().clamp(min=1e-12)
        best = min(best, float((tangent.double() - difference).square().mean().sqrt() / scale))
        if best < RIGHT:
            break
    return best


def modules(network: nn.Module, run: Callable[[], Any]) -> tuple[int, list[Failure]]:
    """How many modules were looked at, and those that fail and hold no other one that does."""
    calls: dict[str, Call] = {}
    handles = []
    for name, module in network.named_modules():
        if name:

            def keep(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                calls.setdefault(name, (args, kwargs))

            handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    found = dict[str, Failure]()
    for name, call in reversed(calls.items()):  # from the inside out
        module = network.get_submodule(name)
        if any(inner.startswith(f"{name}.") for inner in found):
            continue
        error = _of_module(module, call)
        if isinstance(error, str) or (error is not None and error > ROUGH):
            why = f"silently off by {error:.0%}" if isinstance(error, float) else error
            found[name] = Failure(name, type(module).__name__, why)
    return len(calls), list(found.values())


def _of_module(module: nn.Module, call: Call) -> float | str | None:
    """Its relative error at the inputs that it was called with; None for one that takes or gives no numbers."""
    args, kwargs = call
    keys: list[int | str] = [i for i, value in enumerate(args) if _moves(value)]
    keys += [name for name, value in kwargs.items() if _moves(value)]
    if not keys:
        return None
    primals = [args[key] if isinstance(key, int) else kwargs[key] for key in keys]
    rng = torch.Generator().manual_seed(0)
    tangents = [torch.randn(p.shape, generator=rng).to(p) for p in primals]

    def function(*given: Tensor) -> Tensor:
        values = dict(zip(keys, given, strict=True))
        out = module(
            *(values.get(i, value) for i, value in enumerate(args)),
            **{name: values.get(name, value) for name, value in kwargs.items()},
        )
        return tensor_of(out, type(module).__name__)

    try:
        with torch.no_grad():
            out = function(*primals)
    except Exception:  # it was called by itself, which some modules are not made for
        return None
    return compared(module, function, primals, tangents) if out.is_floating_point() else None


def _moves(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _step(subject: Subject) -> float:
    """A step of the differences that fits the network's scale of time."""
    scale = abs(getattr(getattr(subject.network, "config", None), "time_scale", 1.0))
    return 1e-3 / max(1.0, scale / 10)
