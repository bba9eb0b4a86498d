"""CIFAR-10 in pixels with a LightningDiT of about 30M parameters, class-conditional. For one GPU; not yet run on one.

The paper's CIFAR-10 numbers (FID 2.69 with one step, Table 1) are unconditional, with a U-Net and another
parametrisation: they are not this recipe's.
"""

from __future__ import annotations

from facm.conditions import Labels
from facm.data import Cifar10
from facm.ema import PowerEMA
from facm.guidance import Guidance, TeacherVelocity
from facm.networks.lightning_dit import lightning_dit
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.optim import AdamW
from facm.run import Every, Run
from facm.times import ArctanLogNormal
from facm.trained import FromRun

CLASSES = 10
NETWORK = lightning_dit("S/2", input_size=32, in_channels=3, num_classes=CLASSES)
EVERY = Every(log=50_000, checkpoint=1_000_000, ema_snapshots=1_000_000)


def cifar10_teacher(path: str = "data/cifar10", images: int = 40_000_000, seed: int = 0) -> Run:
    """A flow-matching teacher on CIFAR-10, 32 x 32 pixels.

    Args:
        path: folder or archive with CIFAR-10 (see facm.data.Cifar10).
        images: length of the run in images seen.
        seed: of everything random in the run.
    """
    return Run(
        network=NETWORK,
        data=Cifar10(path),
        objective=FlowMatching(Labels(CLASSES)),
        images=images,
        batch_size=512,
        optimizer=AdamW(lr=4e-4, warmup_images=500_000),
        ema=PowerEMA((0.05, 0.1)),
        every=EVERY,
        seed=seed,
    )


def cifar10_student(
    path: str = "data/cifar10",
    teacher: str = "runs/cifar10-teacher",
    images: int = 10_000_000,
    guidance_scale: float = 1.0,
    seed: int = 0,
) -> Run:
    """A FACM student distilled from a CIFAR-10 teacher, with the paper's CIFAR-10 column of Table 5.

    Args:
        path: folder or archive with CIFAR-10 (see facm.data.Cifar10).
        teacher: run folder of the teacher.
        images: length of the run in images seen.
        guidance_scale: guidance w baked into the student (Table 5: 1.0 on CIFAR-10).
        seed: of everything random in the run.
    """
    source = FromRun(teacher, sigma_rel=0.05)
    return Run(
        network=NETWORK,
        data=Cifar10(path),
        objective=FACM(
            Labels(CLASSES),
            TeacherVelocity(Guidance(guidance_scale)),
            time=ArctanLogNormal(-1.0, 1.4),  # Table 5
        ),
        images=images,
        batch_size=128,  # Table 5
        optimizer=AdamW(lr=1e-4, betas=(0.9, 0.995)),  # Table 5
        ema=PowerEMA((0.05, 0.2)),  # Table 5: 0.2
        teacher=source,
        initial=source,
        every=EVERY,
        seed=seed,
    )
