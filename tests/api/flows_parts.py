"""The exact flow to normal data, with a fault of choice: what facm check has to find."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MEAN, STD, SHAPE = 0.3, 0.6, (2, 6)


def normal_data(n: int = 256, labels: int = 0) -> Any:
    """N(MEAN + label, STD^2) of SHAPE, with its labels where there are some."""
    rng = torch.Generator().manual_seed(1)
    x = MEAN + STD * torch.randn(n, *SHAPE, generator=rng)
    if not labels:
        return x
    y = torch.arange(n) % labels
    return x + y[:, None, None], y


class Flow(nn.Module):
    """E[x_1 - x_0 | x_t], and with ``predicts`` another expectation; ``extra`` (B, ...) is added to it."""

    def __init__(self, predicts: str = "velocity") -> None:
        super().__init__()
        self.predicts, self.mean = predicts, nn.Parameter(torch.tensor(MEAN))

    def ends(self, x: Tensor, t: Tensor, mean: Any) -> tuple[Tensor, Tensor]:
        """E[x_0 | x_t] and E[x_1 | x_t]."""
        a = t.clamp(0, 1)[:, None, None]
        b = 1 - a
        rest = (x - a * mean) / (a * a * STD**2 + b * b)
        return b * rest, mean + a * STD**2 * rest

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x_0, x_1 = self.ends(x, t, self.mean)
        known = {"velocity": x_1 - x_0, "negated": x_0 - x_1, "noise": x_0, "data": x_1}
        return known[self.predicts] + self.extra(x, t)

    def extra(self, x: Tensor, t: Tensor) -> Any:
        return 0.0


class Reversed(Flow):
    """Its time runs from 0 at data to 1000 at noise."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return -super().forward(x, 1 - t / 1000)


class DDPM(Flow):
    """Noise at the timesteps of DDPM's linear schedule."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[t.round().long().clamp(0, 999)]
        signal, noise = alpha_bar.sqrt()[:, None, None], (1 - alpha_bar).sqrt()[:, None, None]
        return noise * (x - signal * self.mean) / (signal**2 * STD**2 + noise**2)


class Labelled(Flow):
    """``rows`` labels, of which ``used`` have a mean of their own."""

    def __init__(self, rows: int, ignored: bool = False, null: float = 1.0) -> None:
        super().__init__()
        self.table, self.ignored = nn.Embedding(rows, 1), ignored
        with torch.no_grad():
            self.table.weight[:, 0] = torch.tensor([0.0, 1.0, 2.0, null][:rows])

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        mean = MEAN + (1.0 if self.ignored else self.table(y)[:, :, None])
        x_0, x_1 = self.ends(x, t, mean)
        return x_1 - x_0


class Fast(Flow):
    """A time embedding of 2000 radians per unit of t."""

    def extra(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.02 * torch.sin(2000 * t)[:, None, None] + 0 * x


class Rounded(Flow):
    """A table of 1000 times."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        at = (torch.linspace(0, 1, 1000)[(999 * t).long()]).to(x)
        return super().forward(x, at)


class Normed(Flow):
    """A norm over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)

    def extra(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.01 * self.norm(x)


class Counting(Flow):
    """A buffer that each pass writes into."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def extra(self, x: Tensor, t: Tensor) -> float:
        self.passes += 1
        return 0.0


class Noisy(Flow):
    """Random numbers in eval mode."""

    def extra(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.1 * torch.randn_like(x)


class _Wrong(torch.autograd.Function):
    """tanh, whose jvp is twice what it should be."""

    generate_vmap_rule = False

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_forward(x)
        return x.tanh()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * tangent / x.cosh().square()


class _Missing(torch.autograd.Function):
    """tanh without a jvp."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.tanh()


class Own(nn.Module):
    """A layer of somebody's own kernel."""

    def __init__(self, kernel: Any) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.kernel.apply(x)
        return out


class WithKernel(Flow):
    """One layer inside is of a kernel, ``_Wrong`` or ``_Missing``."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.middle = nn.Sequential(nn.Linear(6, 6), Own(_Wrong if wrong else _Missing), nn.Linear(6, 6))

    def extra(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = 0.3 * self.middle(x)
        return out
