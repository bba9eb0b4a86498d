"""Large networks, to plan for before there are GPUs or data:

facm plan examples/plan.py:xl --gpus 1 --gpu-memory 80
facm plan examples/plan.py:wan --gpus 64 --gpu-memory 80 --engine.parallel fsdp --engine.checkpointing
"""

from dataclasses import dataclass

import torch

from facm import FACM, AdamW, FromRun, Guidance, Labels, PowerEMA, Run, TeacherVelocity
from facm.data import Noise
from facm.networks.lightning_dit import lightning_dit


def xl(batch_size: int = 256) -> Run:
    """LightningDiT-XL/1 on 16 x 16 x 32 latents (675M parameters), distilled as in Table 5."""
    data, objective = Noise((32, 16, 16), num_classes=1000), FACM(Labels(1000), TeacherVelocity(Guidance()))
    teacher = FromRun("a run that is not there yet")  # planned as a network like the student
    network = lightning_dit("XL/1", num_classes=1000)
    return Run(network, data, objective, 1_000_000, batch_size, AdamW(), PowerEMA((0.2,)), teacher, precision="bf16")


@dataclass(frozen=True)
class Text:
    """A text's embedding (B, tokens, dim) as the condition; its null is the embedding of nothing, here zeros."""

    def null(self, cond):
        return torch.zeros_like(cond)

    def check(self, cond, n):
        if cond is None or len(cond) != n:
            raise ValueError(f"expected {n} texts")

    def drop(self, cond, dropped):
        return torch.where(dropped[:, None, None], self.null(cond), cond)


class WanVelocity(torch.nn.Module):
    """Wan predicts x_0 - x_1 at noise level 1000 (1 - t): (x, t, cond) -> velocity towards the data."""

    stochastic = False

    def __init__(self, layers):
        super().__init__()
        from diffusers import WanTransformer3DModel

        self.inner = WanTransformer3DModel(num_layers=layers)  # its defaults are those of the 14B model

    def forward(self, x, t, cond=None):
        return -self.inner(x, 1000 * (1 - t), cond, return_dict=False)[0]


@dataclass(frozen=True)
class Wan:
    layers: int = 40

    def build(self):
        return WanVelocity(self.layers)


def wan(batch_size: int = 64, frames: int = 21) -> Run:
    """A 14B Wan transformer on 81 frames of 480 x 832 (latents 16 x 21 x 60 x 104: 32,760 tokens)."""
    data = Noise((16, frames, 60, 104), cond_shape=(512, 4096))
    objective = FACM(Text(), TeacherVelocity(Guidance(5.0)))
    teacher = FromRun("a run that is not there yet")
    return Run(Wan(), data, objective, 100_000, batch_size, AdamW(), PowerEMA((0.2,)), teacher, precision="bf16")
