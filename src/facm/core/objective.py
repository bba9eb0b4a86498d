"""What training and sampling may ask an objective for, with the answers that hold where it does not say.

The objectives of this package are subclasses of :class:`Objective`. A user's own may be one as well, or any object that
can be called, even a bare function: :func:`as_objective` wraps it where it enters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from facm.core.component import ComponentError, shown
from facm.core.public_names import is_public
from facm.core.types import Batch, Loss

Times = dict[str, Tensor]
"""A network's time arguments by name, each (B,): ``t``, and ``r`` for a network with a second time."""


@runtime_checkable
class Condition(Protocol):
    """What a network is conditioned on besides time, and its null."""

    def null(self, cond: Any) -> Any:
        """The null condition for as many samples as ``cond``."""
        ...

    def check(self, cond: Any, n: int) -> None:
        """Raise ValueError unless ``cond`` fits n samples."""
        ...

    def drop(self, cond: Any, dropped: Tensor) -> Any:
        """``cond`` with the null where ``dropped`` (B,) bool is true."""
        ...


@runtime_checkable
class Task(Protocol):
    """How a network is told which velocity to predict at x_t (Sec. 3.2.2): t (B,) -> its time arguments."""

    def shortcut(self, t: Tensor) -> Times:
        """c_CM: ask for the average velocity from t to 1."""
        ...

    def anchor(self, t: Tensor) -> Times:
        """c_FM: ask for the instantaneous velocity at t."""
        ...


class VelocityTarget:
    """Algorithm 1, line 4: the velocity v that anchors the flow and drives the shortcut. It never has a graph.

    needs_teacher: whether it asks a teacher, so that a run without one is refused before it starts.
    guidance_scale: w; 1 is no guidance.
    """

    needs_teacher: bool = False

    @property
    def guidance_scale(self) -> float:
        return 1.0

    def __call__(self, network: Any, teacher: Any | None, point: Any, condition: Condition, task: Task) -> Tensor:
        """v (B, ...) at ``point``, a :class:`facm.flow.interpolant.Interpolant`."""
        raise NotImplementedError(f"{type(self).__name__} does not say what the velocity is")


def guidance_scale(velocity: Any) -> float:
    """w of a velocity target; 1 for a user's own that is no :class:`VelocityTarget`, or none at all."""
    return velocity.guidance_scale if isinstance(velocity, VelocityTarget) else 1.0


def needs_teacher(velocity: Any) -> bool:
    """Whether a velocity target asks a teacher; False for a user's own that is no :class:`VelocityTarget`."""
    return isinstance(velocity, VelocityTarget) and velocity.needs_teacher


@dataclass(frozen=True)
class NetworkInterface:
    """How a trained network is called, and what it has learned: all that sampling needs to know of an objective.

    condition: what it is conditioned on; None where the objective does not say.
    task: how it is told which velocity to predict; None: by t alone.
    learns_shortcut: average velocities from any time to 1, which consistency sampling jumps along.
    learns_jumps: average velocities between any two times.
    learns_flow: the instantaneous velocity, which ODE solvers follow.
    check_nfe: raises ValueError for a number of jumps that was not trained.
    bounds: times that it was trained at, from the first to the last, and where it jumps to from each: the next of them.
    """

    condition: Condition | None
    task: Task | None = None
    learns_shortcut: bool = False
    learns_jumps: bool = False
    learns_flow: bool = True
    check_nfe: Callable[[int], None] = lambda nfe: None
    bounds: tuple[float, ...] = (0.0, 1.0)

    @property
    def knows_all_times(self) -> bool:
        """Whether it was trained from 0 to 1, in however many phases; half of a pair was not, and makes no samples."""
        return (self.bounds[0], self.bounds[-1]) == (0.0, 1.0)


class Objective:
    """A training objective: it draws its noise and times from ``rng`` and nothing else.

    A subclass defines ``__call__``, or ``loss_terms`` and ``__call__``; the rest has defaults.

    condition: what the network is conditioned on, and its null; None where the objective does not say.
    velocity: where the velocity v comes from, for objectives that have such a target.
    task: how the network is told which velocity to predict; None: by t alone.
    derivative: how the total derivative is computed, for objectives that need one.
    label_dropout: fraction of samples trained at the null condition; None where the objective does not say.
    learns_shortcut, learns_jumps, learns_flow: as in :class:`NetworkInterface`.
    draws_for_whole_step: whether the draws are made for all samples of a step, of which a batch is a part
        (``Batch.start``, ``Batch.of``); then the numbers do not depend on how many ranks or micro-batches share it.
    group_size: samples that must be together in one batch.
    bounds: as in :class:`NetworkInterface`.
    average_momentum: momentum of the exponential average of the network that its targets ask, kept with the run; None:
        it asks none.
    """

    condition: Condition | None
    velocity: Any = None
    task: Task | None = None
    derivative: Any = None
    label_dropout: float | None = None
    learns_shortcut: bool = False
    learns_jumps: bool = False
    learns_flow: bool = True
    draws_for_whole_step: bool = False
    group_size: int = 1
    bounds: tuple[float, ...] = (0.0, 1.0)
    average_momentum: float | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Not a class attribute of this class: a dataclass would take it for the default of its own field.
        if "condition" not in cls.__annotations__ and not hasattr(cls, "condition"):
            cls.condition = None

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None) -> Loss:
        """The loss of one batch; ``teacher`` is the frozen network that the run distils from, if any."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its loss is")

    def loss_terms(
        self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None
    ) -> tuple[Callable[[], Loss], ...]:
        """The terms of the loss, each computed when it is called, in this order; their totals add up to the loss.

        The backward pass of one frees its graph before the next is computed: the peak of one instead of their sum.
        """
        return (lambda: self(network, batch, rng, teacher),)

    def at(self, images_seen: int) -> Objective:
        """This objective at the training clock ``images_seen``, for objectives with a schedule."""
        return self

    def asking(self, average: Any) -> Objective:
        """This objective with targets from ``average``, a network with averaged weights, in eval mode and frozen."""
        return self

    def check_nfe(self, nfe: int) -> None:
        """Raise ValueError for a number of sampling steps along jumps that this objective does not train."""

    def check_network(self, network: Any) -> None:
        """Raise ValueError where ``network`` lacks something that this objective needs, such as a head."""

    @property
    def interface(self) -> NetworkInterface:
        """How a network that this objective trained is called."""
        return NetworkInterface(
            self.condition,
            self.task,
            self.learns_shortcut,
            self.learns_jumps,
            self.learns_flow,
            self.check_nfe,
            self.bounds,
        )


class _Wrapped(Objective):
    """A user's own objective that is not a subclass: what it says holds, and the defaults where it says nothing."""

    def __init__(self, own: Any) -> None:
        self.own = own
        for name in (
            *("condition", "velocity", "task", "derivative", "label_dropout", "learns_shortcut", "learns_jumps"),
            *("learns_flow", "draws_for_whole_step", "group_size", "bounds", "average_momentum"),
            *("check_nfe", "check_network", "loss_terms"),
        ):
            if hasattr(own, name):
                setattr(self, name, getattr(own, name))

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any | None = None) -> Loss:
        loss: Loss = self.own(network, batch, rng, teacher)
        return loss

    def __repr__(self) -> str:
        return repr(self.own)

    def at(self, images_seen: int) -> Objective:
        at = getattr(self.own, "at", None)
        return self if at is None else as_objective(at(images_seen))

    def asking(self, average: Any) -> Objective:
        asking = getattr(self.own, "asking", None)
        return self if asking is None else as_objective(asking(average))


def as_objective(value: Any) -> Objective:
    """``value`` itself, or wrapped where it is a user's own that is no subclass. Raises ComponentError for anything
    that cannot be called, and for another component of this package."""
    if isinstance(value, Objective):
        return value
    if not callable(value) or isinstance(value, type) or is_public(type(value)):
        raise ComponentError(
            f"Run: objective = {shown(value)}, expected a facm.Objective, or a function of (network, batch, rng, "
            "teacher)"
        )
    return _Wrapped(value)
