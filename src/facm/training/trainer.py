"""One optimiser step: micro-batches, backward, clip, update; a step without a finite gradient is skipped and counted.

The step itself never waits for the device, and no rank waits for another but to reduce gradients: whether a gradient is
finite stays on the device, and is looked at every few steps.

A teacher that is guided in a small part of [0, 1] does wait, once a micro-batch: facm.flow.guidance asks it only for
samples whose times are guided.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from facm.core.cond import taken
from facm.core.objective import Objective
from facm.core.rng import derive, seed_generators
from facm.core.types import Batch, Dataset, Loss
from facm.data.stream import Stream
from facm.distributed.collectives import any_of, gathered, means
from facm.distributed.engine import Engine
from facm.distributed.gradients import check_gradients, clipping_divisor, gradient_norm, reducing
from facm.distributed.process_group import World
from facm.flow.conditions import Labels
from facm.runs.config import Run
from facm.training.finite import NonFiniteError, origin
from facm.training.precision import autocast
from facm.training.state import TrainState
from facm.training.window import Window, averaged_by_time, memory

LOOK_EVERY = 8
"""Steps between two looks at what the device counts and at what other ranks were asked."""


@dataclass
class Trainer:
    """A run in motion.

    run: its configuration.
    objective: its objective.
    stream: its data, indexed by images seen.
    state: all that moves.
    teacher: the frozen network that it distils from, or None.
    teacher_record: the teacher's identity and hash, for checkpoints.
    engine: how it is executed.
    world: the ranks that train together.
    device: where this rank computes.
    rng: generator of all draws of the objective.
    utilisation: share of a device's peak that one image a second takes; None where that is not known.
    """

    run: Run
    objective: Objective
    stream: Stream
    state: TrainState
    teacher: Any | None
    teacher_record: dict[str, str] | None
    engine: Engine
    world: World
    device: torch.device
    rng: torch.Generator
    utilisation: float | None = None

    @property
    def dataset(self) -> Dataset:
        return self.stream.dataset

    @property
    def finished(self) -> bool:
        return self.state.images >= self.run.images

    def step(self, batch: Batch) -> None:
        """One step on this rank's part of the batch that starts at the clock."""
        run, state = self.run, self.state
        if self.world.ranks > 1:
            seed_generators(derive(run.seed, 2, state.images, self.world.rank))
        state.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(self._micro_batches(batch.to(self.device)))
        grad_norm = gradient_norm(state.network)

        state.images += run.batch_size
        state.steps += 1
        for group in state.optimizer.param_groups:
            group["lr"] = run.optimizer.learning_rate(state.images, run.images)
        self._update(clipping_divisor(grad_norm, run.optimizer.clip), ~torch.isfinite(grad_norm))
        state.ema.update(state.images, run.batch_size)
        if state.self_teacher is not None:
            state.self_teacher.update(state.network, state.steps)
        state.window.add(loss, grad_norm)

    def _update(self, divisor: Tensor, skip: Tensor) -> None:
        """The optimiser's step on the gradient over ``divisor`` (), or none where ``skip`` () is true; done and decided
        on the device by the fused kernel."""
        optimizer = self.state.optimizer
        optimizer.grad_scale = divisor  # type: ignore[attr-defined]  # both as torch.amp.GradScaler does
        optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
        optimizer.step()
        self.state.skips.add(skip.to(self.state.skips.total.device), self.state.images)

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        """This rank's part of the step in ``engine.accumulate`` parts, each with its place in the whole."""
        stream = self.stream
        if stream.parts == 1 and stream.ranks == 1:
            return [batch]
        size = len(batch.x_1) // stream.parts
        return [
            Batch(
                batch.x_1[k * size : (k + 1) * size],
                taken(batch.cond, slice(k * size, (k + 1) * size)),
                start,
                stream.batch_size,
            )
            for k, start in enumerate(stream.starts)
        ]

    def _backward(self, micro_batches: list[Batch]) -> Loss:
        """Add the gradient of the mean over the whole step to the network's; the loss over this rank's part of it.

        The terms of a loss come one after the other, each freed by its backward pass before the next is computed.
        """
        run, count = self.run, len(micro_batches)
        total, terms = torch.zeros((), device=self.device), dict[str, list[Tensor]]()
        times: list[Tensor | None] = []
        for index, batch in enumerate(micro_batches):
            pending = self._loss_terms(batch, self.state.images)
            while pending:
                term = pending.pop(0)
                with reducing(self.state.wrapped, last=index == count - 1 and not pending):
                    with autocast(run, self.device), _labels_explained(self.objective, self.state.network):
                        loss = term()
                    (_poisoned(loss.total) / count).backward()
                total = total + loss.total.detach() / count
                first = len(times) == index
                times += [loss.t] if first else []
                for name, value in loss.terms.items():
                    terms.setdefault(name, []).append(value)
                del term, loss  # and what their graphs still hold, before the next term's forward
        joined = {name: values[0] if len(values) == 1 else torch.cat(values) for name, values in terms.items()}
        known = [t for t in times if t is not None]
        return Loss(total, joined, torch.cat(known) if len(known) == count else None)

    def _loss_terms(self, batch: Batch, images: int) -> list[Callable[[], Loss]]:
        """The terms of the loss on a micro-batch of the step that begins at ``images``, each still to be computed."""
        shared = self.objective.draws_for_whole_step or batch.of is None
        self.rng.manual_seed(derive(self.run.seed, 1, images, *(() if shared else (1 + batch.start,))))
        with autocast(self.run, self.device), _labels_explained(self.objective, self.state.network):
            objective = self.objective.at(images)
            if self.state.self_teacher is not None:
                objective = objective.asking(self.state.self_teacher.network)
            return list(objective.loss_terms(self.state.wrapped, batch, self.rng, self.teacher))

    def check_first_step(self) -> None:
        """Raise RuntimeError unless the first backward pass reduced every gradient over the ranks."""
        if self.world.ranks > 1:
            check_gradients(self.state.network, self.world, self.engine.find_unused)

    def look(self) -> None:
        """Raise NonFiniteError where too many steps in a row were skipped. This waits for the device."""
        state, limit = self.state, self.run.max_nonfinite
        in_a_row = int(state.skips.longest)
        if in_a_row >= limit:
            terms = ", ".join(state.window.non_finite()) or "none, only the gradient"
            cause = self._origin(int(state.skips.last))
            raise NonFiniteError(
                f"{in_a_row} steps in a row had a non-finite loss or gradient, of at most {limit} (max_nonfinite), the "
                f"last at {int(state.skips.last)} images; non-finite terms: {terms}{f': {cause}' * bool(cause)}. "
                "Checkpoints from before, if any, are untouched; what helps: a lower optimizer.lr, a clamp, QK-norm, "
                "precision = 'fp32'"
            )
        state.skips.longest.copy_(state.skips.in_a_row)

    def _origin(self, images: int) -> str:
        """Where the numbers of the step that ended at ``images`` cease to be finite, in words; empty if unknown."""
        begin = images - self.run.batch_size
        batch = self.stream.at(begin).to(self.device)
        named = {"the teacher": self.teacher, "the network": self.state.network}
        networks = {called: network for called, network in named.items() if network is not None}

        def again() -> None:
            with torch.no_grad():
                for part in self._micro_batches(batch):
                    for term in self._loss_terms(part, begin):
                        with autocast(self.run, self.device):
                            term()

        inputs = {"x_1 of the batch": batch.x_1, "cond of the batch": batch.cond}
        sharded = self.engine.kind(self.world.ranks) == "fsdp"  # whose passes wait for each other
        return origin(networks, inputs, None if sharded else again, self.world)

    def asked_to_stop(self, stop: list[str]) -> bool:
        """Whether some rank got a signal. With several ranks the answer is looked for every few steps, by all."""
        if self.world.ranks == 1:
            return bool(stop)
        return self.state.steps % LOOK_EVERY == 0 and any_of(self.world, bool(stop))

    def record(self) -> dict[str, Any]:
        """The line of the log for the steps since the last one, averaged over the ranks; begins a new window."""
        state, window = self.state, self.state.window
        numbers = means(self.world, window.means())
        numbers = averaged_by_time(numbers)
        record = {"images": state.images, **numbers, "lr": state.optimizer.param_groups[0]["lr"]}
        record |= {"skipped": int(state.skips.total), **self._speed(), **memory(self.device)}
        state.window = Window()
        return record

    def _speed(self) -> dict[str, float]:
        """Images a second, of all and of each rank, time left, waiting for data, and utilisation where it is known."""
        speed = self.state.window.speed(self.run.batch_size)
        a_second, ranks = speed["images_per_s"], self.world.ranks
        speed["seconds_left"] = max(self.run.images - self.state.images, 0) / max(a_second, 1e-9)
        if ranks > 1:
            speed["images_per_s_per_rank"] = a_second / ranks
        if self.utilisation is not None:
            speed["mfu"] = self.utilisation * a_second / ranks
        return speed

    def next_of(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; the time spent waiting for it is added to the window."""
        began = time.monotonic()
        batch = next(batches)
        self.state.window.waited += time.monotonic() - began
        return batch

    def due(self, every: int) -> bool:
        """Whether the step that just ended crossed a multiple of ``every`` images, or was the last one."""
        images = self.state.images
        return self.finished or images // every > (images - self.run.batch_size) // every


@contextlib.contextmanager
def _labels_explained(objective: Objective, network: torch.nn.Module) -> Iterator[None]:
    """A network of a user's own may have a row for each class and none for the null."""
    try:
        yield
    except IndexError as error:
        if not isinstance(objective.condition, Labels):
            raise
        classes = objective.condition.classes
        raise ValueError(
            f"a lookup failed ({error}): with condition = {objective.condition} the network "
            f"({type(network).__name__}) and the teacher get labels 0 .. {classes}, {classes} being the null, expected "
            f"tables of {classes + 1} rows"
        ) from error


def signals_of_all(world: World, stop: list[str]) -> list[str]:
    """Names of the signals that the ranks got."""
    return [name for names in gathered(world, list(stop)) for name in names]


def _poisoned(total: Tensor) -> Tensor:
    """``total`` itself, or NaN with a NaN gradient where it is not finite.

    A non-finite loss may have a finite gradient on one rank. This way the gradient's norm, which is the same on all
    ranks, says everything.
    """
    return total * torch.where(torch.isfinite(total.detach()), 1.0, torch.nan)
