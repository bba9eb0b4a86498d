"""Scikit-learn's handwritten digits (1,797 scans of 8 x 8): runs that are small enough for two CPU cores."""

from __future__ import annotations

from facm.data import Digits
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.times import ArctanLogNormal
from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.networks.lightning_dit import LightningDiT
from facm.objectives.continuous_cm import ContinuousCM
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.pretrained.trained import FromRun
from facm.runs.config import Intervals, Run
from facm.runs.ema import PowerEMA
from facm.runs.optim import AdamW, CosineDecay

CLASSES = 10
NETWORK = LightningDiT(
    input_size=8,
    patch_size=4,
    in_channels=1,
    hidden_size=128,
    depth=3,
    num_heads=4,
    num_classes=CLASSES,
    rope=False,  # the position embedding is enough for four tokens; rope would cost a fifth of a step
)
EVERY = Intervals(log=2_560, checkpoint=51_200, ema_snapshots=25_600)


def digits_teacher(images: int = 192_000, seed: int = 0) -> Run:
    """A flow-matching teacher on digits, with half of the samples conditioned on c_FM (App. A.3 a).

    Args:
        images: Length of the run in images seen.
        seed: Seed of all random numbers of the run.
    """
    return Run(
        network=NETWORK,
        data=Digits(),
        objective=FlowMatching(Labels(CLASSES)),
        images=images,
        optimizer=AdamW(lr=2e-3, warmup_images=6_400, decay=CosineDecay(0.02)),
        ema=PowerEMA((0.05, 0.1)),
        every=EVERY,
        seed=seed,
    )


def digits_student(
    teacher: str = "runs/digits-teacher", images: int = 76_800, guidance_scale: float = 1.0, seed: int = 0
) -> Run:
    """A FACM student distilled from a digits teacher.

    Args:
        teacher: Run folder of the teacher.
        images: Length of the run in images seen.
        guidance_scale: Guidance scale w that the student learns; digits need none (the paper: 1.75 on ImageNet).
        seed: Seed of all random numbers of the run.
    """
    return _distilled(FACM(Labels(CLASSES), TeacherVelocity(Guidance(guidance_scale))), teacher, images, seed)


def digits_plain_cm(
    teacher: str = "runs/digits-teacher", images: int = 76_800, guidance_scale: float = 1.0, seed: int = 0
) -> Run:
    """An ablation of digits_student: the shortcut without its anchor (Sec. 3.1.2).

    Args:
        teacher: Run folder of the teacher.
        images: Length of the run in images seen.
        guidance_scale: Guidance scale w of the teacher's velocity.
        seed: Seed of all random numbers of the run.
    """
    return _distilled(ContinuousCM(Labels(CLASSES), TeacherVelocity(Guidance(guidance_scale))), teacher, images, seed)


def _distilled(objective: FACM | ContinuousCM, teacher: str, images: int, seed: int) -> Run:
    source = FromRun(teacher, sigma_rel=0.05)
    return Run(
        network=NETWORK,
        data=Digits(),
        objective=objective,
        images=images,
        optimizer=AdamW(lr=2e-3, warmup_images=2_560, decay=CosineDecay(0.05)),
        ema=PowerEMA((0.05, 0.2)),
        teacher=source,
        initial=source,
        every=EVERY,
        seed=seed,
    )


def digits_scratch(images: int = 307_200, guidance_scale: float = 1.0, seed: int = 0) -> Run:
    """FACM from scratch on digits: without a teacher, the velocity comes from the data.

    Args:
        images: Length of the run in images seen.
        guidance_scale: Guidance scale w, with the network at its null condition.
        seed: Seed of all random numbers of the run.
    """
    return Run(
        network=NETWORK,
        data=Digits(),
        objective=FACM(
            Labels(CLASSES),
            DataVelocity(Guidance(guidance_scale)),
            time=ArctanLogNormal(-0.8, 1.6),
            label_dropout=0.1,
        ),
        images=images,
        optimizer=AdamW(lr=1e-3, warmup_images=6_400, decay=CosineDecay(0.05)),
        ema=PowerEMA((0.05, 0.2)),
        every=EVERY,
        seed=seed,
    )
