"""CIFAR-10 in pixels, unconditional: the paper's other experiment (Table 1, left; Table 5, "Cifar-10 Value"), and its
rivals with the same network. For one GPU.

facm train cifar10-teacher
facm train cifar10-student
facm evaluate runs/cifar10-student --num-steps 1 2 --num-samples 50000

None of them has been run here; the FIDs are Table 1's. The network is EDM's DDPM++ of 55.7M parameters in the
Simple-EDM parametrisation. What the paper says of its student (Table 5) all few-step recipes share, so that they differ
in their objectives alone; the rivals' own papers have other batches, rates and dropout. What it does not say, above all
of its teacher, is EDM's (arXiv 2206.00364), whose augmentation is reduced to mirroring here. Not here: TRACT
(3.32 with two steps).
"""

from __future__ import annotations

from typing import Any

from facm.data import Cifar10
from facm.flow.conditions import Labels, Unconditional
from facm.flow.guidance import Guidance
from facm.flow.times import ArctanLogNormal
from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.networks.adapters.simple_edm import SimpleEDM
from facm.networks.ddpm_pp import DDPMpp
from facm.objectives.discrete_cm import DiscreteCM
from facm.objectives.discrete_schedules import DoublingSteps, ShrinkingGap, SignalToNoise
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.objectives.imm import IMM
from facm.objectives.mean_flow import MeanFlow
from facm.objectives.scm import SCM
from facm.objectives.shortcut_model import ShortcutModel
from facm.pretrained.trained import FromRun
from facm.runs.config import Intervals, Pretrained, Run
from facm.runs.ema import PowerEMA
from facm.runs.optim import AdamW

CLASSES = 10
BATCH = 128  # Table 5
LONG = 200_000_000
"""Images of EDM's training run, for teachers and for what starts from nothing."""
SHORT = 400_000 * BATCH
"""Images of what starts from a teacher; the paper does not say. These are ECT's 400,000 steps of 128."""
NETWORK = SimpleEDM(DDPMpp(dropout=0.1))  # Table 5
TIME = ArctanLogNormal(-1.0, 1.4)  # Table 5: P_mean, P_std
EVERY = Intervals(log=51_200, checkpoint=2_000_000, ema_snapshots=10_000_000)


def cifar10_teacher(path: str = "data/cifar10", images: int = LONG, seed: int = 0) -> Run:
    """A flow-matching teacher on CIFAR-10, unconditional, half of its samples conditioned on c_FM (App. A.3 a).

    Args:
        path: folder or archive with CIFAR-10 (see facm.data.Cifar10).
        images: length of the run in images seen.
        seed: of everything random in the run.
    """
    # The paper has no FID of its teacher. EDM itself: 2.01 with 35 evaluations; DPM-Solver++: 2.91 with 10.
    return _teacher(_network(dropout=0.13), FlowMatching(Unconditional(), label_dropout=0.0), path, images, seed)


def cifar10_student(
    path: str = "data/cifar10", teacher: str = "runs/cifar10-teacher", images: int = SHORT, seed: int = 0
) -> Run:
    """A FACM student of a CIFAR-10 teacher, unconditional.

    Args:
        path: folder or archive with CIFAR-10 (see facm.data.Cifar10).
        teacher: run folder of the teacher.
        images: length of the run in images seen.
        seed: of everything random in the run.
    """
    # FID 2.69 with one step, 1.87 with two.
    objective = FACM(Unconditional(), TeacherVelocity(Guidance(1.0)), time=TIME)  # w = 1.0
    return _few_steps(_network(), objective, path, images, seed, initial=teacher, distils=True)


def cifar10_cond_teacher(path: str = "data/cifar10", images: int = LONG, seed: int = 0) -> Run:
    """A flow-matching teacher on CIFAR-10 with its ten classes, a tenth of its labels dropped.

    Args:
        path: folder or archive with CIFAR-10 (see facm.data.Cifar10).
        images: length of the run in images seen.
        seed: of everything random in the run.
    """
    network = _network(dropout=0.13, num_classes=CLASSES)
    return _teacher(network, FlowMatching(Labels(CLASSES), label_dropout=0.1), path, images, seed)


def cifar10_cond_student(
    path: str = "data/cifar10",
    teacher: str = "runs/cifar10-cond-teacher",
    images: int = SHORT,
    guidance_scale: float = 1.0,
    seed: int = 0,
) -> Run:
    """A FACM student of a CIFAR-10 teacher with its ten classes.

    Args:
        path: folder or archive with CIFAR-10 (see facm.data.Cifar10).
        teacher: run folder of the teacher.
        images: length of the run in images seen.
        guidance_scale: guidance w baked into the student (Table 5: 1.0).
        seed: of everything random in the run.
    """
    objective = FACM(Labels(CLASSES), TeacherVelocity(Guidance(guidance_scale)), time=TIME)
    return _few_steps(_network(num_classes=CLASSES), objective, path, images, seed, initial=teacher, distils=True)


def cifar10_scratch(path: str = "data/cifar10", images: int = LONG, seed: int = 0) -> Run:
    """FACM from scratch on CIFAR-10, unconditional: no teacher, the velocity comes from the data.

    Args:
        path: folder or archive with CIFAR-10 (see facm.data.Cifar10).
        images: length of the run in images seen.
        seed: of everything random in the run.
    """
    return _few_steps(_network(), FACM(Unconditional(), DataVelocity(), time=TIME), path, images, seed)


def cifar10_mean_flow(path: str = "data/cifar10", images: int = LONG, seed: int = 0) -> Run:
    """MeanFlow from scratch on CIFAR-10, unconditional.

    Args:
        path: folder or archive with CIFAR-10 (see facm.data.Cifar10).
        images: length of the run in images seen.
        seed: of everything random in the run.
    """
    # FID 2.92 with one step.
    objective = MeanFlow(Unconditional(), DataVelocity(), time=TIME, data_proportion=0.75)  # App. A.3 c
    return _few_steps(_network(auxiliary_time=True), objective, path, images, seed)


def cifar10_scm_teacher(path: str = "data/cifar10", images: int = LONG, seed: int = 0) -> Run:
    """A flow-matching network on CIFAR-10 with sCM's normalised modulation, for cifar10-scm to start from.

    Args:
        path: folder or archive with CIFAR-10 (see facm.data.Cifar10).
        images: length of the run in images seen.
        seed: of everything random in the run.
    """
    objective = FlowMatching(Unconditional(), label_dropout=0.0, p_flow_condition=0.0)  # sCM never asks at c_FM
    return _teacher(_network(dropout=0.13, pixel_norm=True), objective, path, images, seed)


def cifar10_scm(
    path: str = "data/cifar10", start: str = "runs/cifar10-scm-teacher", images: int = SHORT, seed: int = 0
) -> Run:
    """sCM's consistency training (sCT) on CIFAR-10, unconditional, from cifar10-scm-teacher's weights.

    Args:
        path: folder or archive with CIFAR-10 (see facm.data.Cifar10).
        start: run folder of cifar10-scm-teacher.
        images: length of the run in images seen.
        seed: of everything random in the run.
    """
    # FID 2.85 with one step, 2.06 with two.
    objective = SCM(Unconditional(), DataVelocity(), time=TIME, warmup_images=10_000 * BATCH)  # its 10,000 steps
    network = _network(pixel_norm=True, weight_head=True)
    return _few_steps(network, objective, path, images, seed, initial=start)


def cifar10_ict(path: str = "data/cifar10", images: int = LONG, seed: int = 0) -> Run:
    """iCT from scratch on CIFAR-10, unconditional.

    Args:
        path: folder or archive with CIFAR-10 (see facm.data.Cifar10).
        images: length of the run in images seen, over which its steps double seven times.
        seed: of everything random in the run.
    """
    # FID 2.83 with one step; iCT-deep, of twice the blocks (--run.network.network.blocks 8), 2.24 with two.
    objective = DiscreteCM(Unconditional(), DoublingSteps(images), DataVelocity())
    return _few_steps(_network(), objective, path, images, seed)


def cifar10_ect(
    path: str = "data/cifar10", start: str = "runs/cifar10-teacher", images: int = SHORT, seed: int = 0
) -> Run:
    """ECT on CIFAR-10, unconditional: a flow-matching network, tuned.

    Args:
        path: folder or archive with CIFAR-10 (see facm.data.Cifar10).
        start: run folder of the flow-matching network to tune.
        images: length of the run in images seen; its pairs close in eight times.
        seed: of everything random in the run.
    """
    # FID 3.60 with one step, 2.11 with two.
    schedule = ShrinkingGap(stage=max(1, images // 8))
    objective = DiscreteCM(Unconditional(), schedule, DataVelocity(), weight=SignalToNoise())
    return _few_steps(_network(), objective, path, images, seed, initial=start)


def cifar10_imm(path: str = "data/cifar10", images: int = LONG, seed: int = 0) -> Run:
    """Inductive moment matching from scratch on CIFAR-10, unconditional.

    Args:
        path: folder or archive with CIFAR-10 (see facm.data.Cifar10).
        images: length of the run in images seen.
        seed: of everything random in the run.
    """
    # FID 3.20 with one step, 1.98 with two.
    objective = IMM(Unconditional(), label_dropout=0.0)  # 4 particles: a batch has 32 groups
    return _few_steps(_network(auxiliary_time=True), objective, path, images, seed)


def cifar10_shortcut(path: str = "data/cifar10", images: int = LONG, seed: int = 0) -> Run:
    """A shortcut model from scratch on CIFAR-10, unconditional; sampled with --sampler jumps.

    Args:
        path: folder or archive with CIFAR-10 (see facm.data.Cifar10).
        images: length of the run in images seen.
        seed: of everything random in the run.
    """
    # Table 1 has no FID of it on CIFAR-10.
    objective = ShortcutModel(Unconditional(), label_dropout=0.0)
    return _few_steps(_network(auxiliary_time=True), objective, path, images, seed)


def cifar10_cd(
    path: str = "data/cifar10", teacher: str = "runs/cifar10-teacher", images: int = SHORT, seed: int = 0
) -> Run:
    """Consistency distillation of a CIFAR-10 teacher in 18 steps, unconditional.

    Args:
        path: folder or archive with CIFAR-10 (see facm.data.Cifar10).
        teacher: run folder of the teacher.
        images: length of the run in images seen.
        seed: of everything random in the run.
    """
    # FID 2.93 with two steps, with LPIPS.
    # Here: Euler's steps, pseudo-Huber distance and iCT's density of steps in place of Heun's, LPIPS and equal chances.
    schedule = DoublingSteps(images, first=18, last=18)
    objective = DiscreteCM(Unconditional(), schedule, TeacherVelocity(Guidance(1.0)))
    return _few_steps(_network(), objective, path, images, seed, initial=teacher, distils=True)


def _network(dropout: float = 0.1, **options: Any) -> SimpleEDM:
    """dropout: 0.1 is Table 5's. options: fields of DDPMpp."""
    return SimpleEDM(DDPMpp(dropout=dropout, **options))


def _teacher(network: SimpleEDM, objective: Any, path: str, images: int, seed: int) -> Run:
    """EDM's settings: dropout 0.13, 200M images, batch 512, learning rate 1e-3 after 10M images."""
    return Run(
        network=network,
        data=Cifar10(path, labels=isinstance(objective.condition, Labels)),
        objective=objective,
        images=images,
        batch_size=512,
        optimizer=AdamW(lr=1e-3, warmup_images=10_000_000),
        ema=PowerEMA((0.05, 0.1)),
        every=EVERY,
        seed=seed,
    )


def _few_steps(
    network: SimpleEDM,
    objective: Any,
    path: str,
    images: int,
    seed: int,
    initial: str | None = None,
    distils: bool = False,
) -> Run:
    """The CIFAR-10 column of Table 5. initial: run folder to start from. distils: it is the teacher as well."""
    source: Pretrained | None = None if initial is None else FromRun(initial, sigma_rel=0.05)
    return Run(
        network=network,
        data=Cifar10(path, labels=isinstance(objective.condition, Labels)),
        objective=objective,
        images=images,
        batch_size=BATCH,
        optimizer=AdamW(lr=1e-4, betas=(0.9, 0.995)),  # weight decay 0
        ema=PowerEMA((0.2, 0.05)),  # sigma_rel 0.2 is the one that is sampled
        teacher=source if distils else None,
        initial=source,
        every=EVERY,
        seed=seed,
    )
