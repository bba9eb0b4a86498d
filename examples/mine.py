"""Your own network, data and objective in one file.  facm train examples/mine.py:teacher --out runs/moons-teacher
then facm train examples/mine.py:student --out runs/moons-student
and facm evaluate runs/moons-student --num-steps 1 2"""

from dataclasses import dataclass

import numpy as np
import torch

from facm import FACM, FromRun, Guidance, InMemory, Loss, Run, TeacherVelocity, Unconditional


class MoonNet(torch.nn.Module):  # a network: (x, t, cond) -> velocity of x's shape
    def __init__(self, width):
        super().__init__()
        self.inward, self.outward = torch.nn.Linear(4, width), torch.nn.Linear(width, 2)

    def forward(self, x, t, cond=None):
        h = self.inward(torch.cat([x, t[:, None].sin(), t[:, None].cos()], dim=1))
        return self.outward(torch.nn.functional.silu(h))


@dataclass(frozen=True)
class MoonNetConfig:  # its configuration: frozen, with build()
    width: int = 256

    def build(self):
        return MoonNet(self.width)


@dataclass(frozen=True)
class TwoMoons:  # data: frozen, with open()
    def open(self):
        rng, n = np.random.default_rng(0), 4096
        angle, upper = rng.uniform(0, np.pi, n), np.arange(n) % 2
        x = np.stack([np.cos(angle) - upper + 0.5, np.sin(angle) * (1 - 2 * upper)], axis=1)
        return InMemory((x + 0.05 * rng.standard_normal(x.shape)).astype(np.float32))


@dataclass(frozen=True)
class PlainFlowMatching:  # an objective: (network, batch, rng, teacher) -> Loss; all draws from rng
    condition: Unconditional = Unconditional()

    def __call__(self, network, batch, rng, teacher=None):
        x_0 = torch.randn(batch.x_1.shape, generator=rng, device=rng.device)
        t = torch.rand(len(x_0), generator=rng, device=rng.device)
        F = network((1 - t[:, None]) * x_0 + t[:, None] * batch.x_1, t)
        return Loss((F - (batch.x_1 - x_0)).square().mean())


def teacher(images: int = 200_000) -> Run:  # a recipe returns a Run; its arguments are the command's options
    return Run(MoonNetConfig(), TwoMoons(), PlainFlowMatching(), images)


def student(teacher: str = "runs/moons-teacher", images: int = 200_000) -> Run:
    source, objective = FromRun(teacher), FACM(Unconditional(), TeacherVelocity(Guidance(1.0)))
    return Run(MoonNetConfig(), TwoMoons(), objective, images, teacher=source, initial=source)
