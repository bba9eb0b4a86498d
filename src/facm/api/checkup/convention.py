"""Direction and scale of time, and what the network predicts: each kind of prediction is held against the data."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from facm.api.checkup.finding import Finding
from facm.api.checkup.subject import Subject
from facm.api.convention import LEARNED, POINTS, Convention, predictions, stands_out
from facm.core.modules import unwrapped
from facm.core.types import Batch
from facm.networks.adapters.variance_preserving import VariancePreserving
from facm.networks.given import GivenNetwork, given_network

VELOCITY, NEGATED, NOISE, DATA, DDPM = "velocity", "negated velocity", "noise", "data", "noise of a DDPM"
WRITE = {
    NEGATED: "return -out  # in the network's forward: its velocity has the sign of the other direction of time",
    NOISE: "return (x - out) / {to_data}  # in the network's forward: a velocity in place of the noise",
    DATA: "return (out - x) / {to_noise}  # in the network's forward: a velocity in place of the data",
    DDPM: 'facm.distill(net, data, predicts="noise")',
}
"""By what is predicted; the divisor is the share of data, or of noise, in x."""


@dataclass(frozen=True)
class Guess:
    """One reading of a network: how its time runs, and what it predicts."""

    convention: Convention
    predicts: str = VELOCITY

    def __str__(self) -> str:
        return f"{self.predicts}, {self.convention}"


@torch.no_grad()
def guesses(own: GivenNetwork, batch: Batch, x_0: Tensor, names: tuple[str, str, str]) -> dict[Guess, Tensor]:
    """The error (B,) of each reading, the least first: mean square of what is left of the velocity, in parts of it.

    Whatever it predicts is turned into a velocity first. Of all functions of (x_t, t) a flow that has been learned
    leaves least of it, so that no wrong reading of a right network can win.
    """
    network = own.build().to(batch.x_1.device).eval()
    x_1, v, found = batch.x_1, batch.x_1 - x_0, dict[Guess, list[Tensor]]()

    def add(guess: Guess, velocity: Tensor) -> None:
        squares = (velocity - v).square().flatten(1).mean(1) / v.square().mean()
        found.setdefault(guess, []).append(squares.float().cpu())

    for at in predictions(network, x_0, x_1, batch.cond, names):
        along = at.predicted if at.convention.noise_at == 0 else -at.predicted
        add(Guess(at.convention, VELOCITY), along)
        add(Guess(at.convention, NEGATED), -along)
        add(Guess(at.convention, NOISE), (at.x_t - at.predicted) / at.t)
        add(Guess(at.convention, DATA), (at.predicted - at.x_t) / (1 - at.t))
    ddpm = VariancePreserving(Convention(0.0, 1.0, *names).adapted(own)).build().to(x_1.device).eval()
    with contextlib.suppress(IndexError, RuntimeError, AssertionError):
        for t in POINTS:
            times = torch.full((len(x_1),), t, device=x_1.device, dtype=x_1.dtype)
            velocity = ddpm((1 - t) * x_0 + t * x_1, times, batch.cond if names[2] else None)
            add(Guess(Convention(1000.0, 1000.0, *names), DDPM), velocity)
    errors = {guess: torch.stack(parts).mean(0) for guess, parts in found.items()}
    return dict(sorted(errors.items(), key=lambda item: float(item[1].mean().nan_to_num(torch.inf))))


def check_predicts_velocity(network: nn.Module, batch: Batch, names: tuple[str, str, str], seed: int = 0) -> None:
    """Raise ValueError, with the line to write, where ``network`` clearly predicts something else, such as noise, or a
    velocity of the other sign. names: of its arguments, see :func:`facm.api.convention.arguments_of`."""
    parameter = next(unwrapped(network).parameters())
    few = batch.to(parameter.device)
    few = Batch(few.x_1.to(parameter.dtype), few.cond)
    noise = torch.randn(few.x_1.shape, generator=torch.Generator().manual_seed(seed)).to(few.x_1)
    errors = guesses(given_network(network), few, noise, names)
    (best, least), *_ = errors.items()
    if best.predicts == VELOCITY or not stands_out(errors):
        return
    ends = _ends(best.convention)
    raise ValueError(
        f"network {type(unwrapped(network)).__name__} predicts the {best.predicts}, with {best.convention}: so read it "
        f"misses {float(least.mean()):.2f} of the data's velocity; expected one that predicts the velocity. Write: "
        f"{WRITE[best.predicts].format(to_data=ends[1], to_noise=ends[0])}; or say noise_at and "
        "time_scale, if you know better"
    )


def convention_found(errors: dict[Guess, Tensor], given: Convention | None, predicts: str) -> Finding:
    """What the network follows. given: what the user says of it."""
    (best, least), (_, next_), *_ = errors.items()
    measured = f"error {float(least.mean()):.2f} of the velocity's; the next reading has {float(next_.mean()):.2f}"
    if not stands_out(errors):
        listed = "; ".join(f"{guess}: {float(error.mean()):.2f}" for guess, error in list(errors.items())[:4])
        return Finding(
            "convention",
            "wrong",
            f"no reading of its output fits the data, or two fit as well: {listed}",
            "facm.distill(net, data, noise_at=0, time_scale=1)  # where you know it; otherwise train it first, on data "
            "of this scale",
        )
    convention = best.convention
    if best.predicts == DDPM:
        said = f"predicts the noise of a DDPM, timesteps 0 (data) to 999 (noise): {measured}"
        good = predicts == "noise"
        return Finding("convention", "good" if good else "wrong", said, "" if good else WRITE[DDPM])
    said = f"{convention}, predicts the {best.predicts}: {measured}"
    if best.predicts != VELOCITY:
        ends = _ends(convention)
        return Finding("convention", "wrong", said, WRITE[best.predicts].format(to_data=ends[1], to_noise=ends[0]))
    line = f"facm.distill(net, data, noise_at={convention.noise_at:g}, time_scale={convention.time_scale:g})"
    if predicts != "velocity":
        return Finding("convention", "wrong", f"{said}; predicts = {predicts!r} was said", line)
    if given is not None and given != convention:
        return Finding("convention", "wrong", f"{said}; {given} was said", line)
    return Finding("convention", "good", said)


def _ends(convention: Convention) -> tuple[str, str]:
    """The shares of noise and of data in x, by the network's own time."""
    t = convention.time_name if convention.time_scale == 1 else f"({convention.time_name} / {convention.time_scale:g})"
    return (f"(1 - {t})", t) if convention.noise_at == 0 else (t, f"(1 - {t})")


@torch.no_grad()
def known_convention(subject: Subject) -> Finding:
    """The same of a network whose convention this package knows: whether its velocity is that of the data."""
    total, squares, negated = 0.0, 0.0, 0.0
    v = subject.v
    for t in POINTS:
        out = subject.flow(subject.batch.cond)(*subject.point(t))
        squares += float((out - v).square().mean())
        negated += float((out + v).square().mean())
        total += float(v.square().mean())
    error = squares / total
    said = f"t from 0 (noise) to 1 (data), predicts the velocity: error {error:.2f} of the velocity's"
    if error < LEARNED:
        return Finding("convention", "good", said)
    if negated < squares and negated / total < LEARNED:
        return Finding("convention", "wrong", f"the sign is turned round: error {error:.2f}", WRITE[NEGATED])
    return Finding(
        "convention",
        "wrong",
        f"{said}: no better than predicting nothing",
        "images=...  # more of them, for it has learned nothing; or, of another's network, the adapter that it needs",
    )
