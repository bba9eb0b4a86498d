"""Fashion-MNIST (28 x 28, 10 classes) in pixels: a teacher and its student with guidance, in an hour on one core.

Put the data set's four idx files into one folder, plain or gzipped: https://github.com/zalandoresearch/fashion-mnist.
"""

from __future__ import annotations

from facm.data import Idx
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.velocity import TeacherVelocity
from facm.networks.lightning_dit import LightningDiT
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.pretrained.trained import FromRun
from facm.runs.config import Intervals, Run
from facm.runs.ema import PowerEMA
from facm.runs.optim import AdamW, CosineDecay

CLASSES = 10
NETWORK = LightningDiT(
    input_size=28, patch_size=4, in_channels=1, hidden_size=128, depth=4, num_heads=4, num_classes=CLASSES, rope=False
)
EVERY = Intervals(log=6_400, checkpoint=51_200, ema_snapshots=51_200)


def fashion_teacher(path: str = "data/fashion_mnist", images: int = 384_000, seed: int = 0) -> Run:
    """A flow-matching teacher on Fashion-MNIST, with half of the samples conditioned on c_FM (App. A.3 a).

    Args:
        path: Folder of the idx files.
        images: Length of the run in images seen.
        seed: Seed of all random numbers of the run.
    """
    return Run(
        network=NETWORK,
        data=Idx(path, num_classes=CLASSES),
        objective=FlowMatching(Labels(CLASSES)),
        images=images,
        optimizer=AdamW(lr=2e-3, warmup_images=12_800, decay=CosineDecay(0.02)),
        ema=PowerEMA((0.05, 0.1)),
        every=EVERY,
        seed=seed,
    )


def fashion_student(
    path: str = "data/fashion_mnist",
    teacher: str = "runs/fashion-teacher",
    images: int = 102_400,
    guidance_scale: float = 1.5,
    seed: int = 0,
) -> Run:
    """A FACM student distilled from a Fashion-MNIST teacher.

    Args:
        path: Folder of the idx files.
        teacher: Run folder of the teacher.
        images: Length of the run in images seen.
        guidance_scale: Guidance scale w that the student learns.
        seed: Seed of all random numbers of the run.
    """
    source = FromRun(teacher, sigma_rel=0.05)
    return Run(
        network=NETWORK,
        data=Idx(path, num_classes=CLASSES),
        objective=FACM(Labels(CLASSES), TeacherVelocity(Guidance(guidance_scale))),
        images=images,
        optimizer=AdamW(lr=1e-3, warmup_images=6_400, decay=CosineDecay(0.05)),
        ema=PowerEMA((0.05, 0.2)),
        teacher=source,
        initial=source,
        every=EVERY,
        seed=seed,
    )
