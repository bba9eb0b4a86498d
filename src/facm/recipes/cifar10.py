"""CIFAR-10 in pixels, unconditional: the paper's other experiment (Table 1, left; Table 5, "Cifar-10 Value"), and its
rivals with the same network. For one GPU.

facm train cifar10-teacher
facm train cifar10-student
facm evaluate runs/cifar10-student --num-steps 1 2 --num-samples 50000

None of them has been run yet; the FIDs are those of Table 1. The network is EDM's DDPM++ of 55.7M parameters in the
Simple-EDM parametrisation. All few-step recipes share the settings of the paper's student (Table 5), so that they
differ in their objectives alone; the rivals' papers use other batch sizes, learning rates and dropout. Settings that
the paper does not give, above all those of the teacher, are EDM's (arXiv 2206.00364), with augmentation reduced to
mirroring. TRACT (3.32 with two steps) is missing.
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
"""Images of EDM's training run, for teachers and for runs from scratch."""
SHORT = 400_000 * BATCH
"""Images of runs that start from a teacher, which the paper does not give: ECT's 400,000 steps of 128."""
NETWORK = SimpleEDM(DDPMpp(dropout=0.1))  # Table 5
TIME = ArctanLogNormal(-1.0, 1.4)  # Table 5: P_mean, P_std
EVERY = Intervals(log=51_200, checkpoint=2_000_000, ema_snapshots=10_000_000)


def cifar10_teacher(path: str = "data/cifar10", images: int = LONG, seed: int = 0) -> Run:
    """A flow-matching teacher on CIFAR-10, unconditional, with half of the samples conditioned on c_FM (App. A.3 a).

    Args:
        path: Folder or archive of CIFAR-10 (see facm.data.Cifar10).
        images: Length of the run in images seen.
        seed: Seed of all random numbers of the run.
    """
    # The paper has no FID of its teacher. EDM itself: 2.01 with 35 evaluations; DPM-Solver++: 2.91 with 10.
    return _teacher(_network(dropout=0.13), FlowMatching(Unconditional(), label_dropout=0.0), path, images, seed)


def cifar10_student(
    path: str = "data/cifar10", teacher: str = "runs/cifar10-teacher", images: int = SHORT, seed: int = 0
) -> Run:
    """A FACM student of a CIFAR-10 teacher, unconditional.

    Args:
        path: Folder or archive of CIFAR-10 (see facm.data.Cifar10).
        teacher: Run folder of the teacher.
        images: Length of the run in images seen.
        seed: Seed of all random numbers of the run.
    """
    # FID 2.69 with one step, 1.87 with two.
    objective = FACM(Unconditional(), TeacherVelocity(Guidance(1.0)), time=TIME)  # w = 1.0
    return _few_steps(_network(), objective, path, images, seed, initial=teacher, distils=True)


def cifar10_cond_teacher(path: str = "data/cifar10", images: int = LONG, seed: int = 0) -> Run:
    """A flow-matching teacher on CIFAR-10 with ten classes and a label dropout of 0.1.

    Args:
        path: Folder or archive of CIFAR-10 (see facm.data.Cifar10).
        images: Length of the run in images seen.
        seed: Seed of all random numbers of the run.
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
    """A FACM student of a CIFAR-10 teacher with ten classes.

    Args:
        path: Folder or archive of CIFAR-10 (see facm.data.Cifar10).
        teacher: Run folder of the teacher.
        images: Length of the run in images seen.
        guidance_scale: Guidance scale w that the student learns (Table 5: 1.0).
        seed: Seed of all random numbers of the run.
    """
    objective = FACM(Labels(CLASSES), TeacherVelocity(Guidance(guidance_scale)), time=TIME)
    return _few_steps(_network(num_classes=CLASSES), objective, path, images, seed, initial=teacher, distils=True)


def cifar10_scratch(path: str = "data/cifar10", images: int = LONG, seed: int = 0) -> Run:
    """FACM from scratch on CIFAR-10, unconditional: without a teacher, the velocity comes from the data.

    Args:
        path: Folder or archive of CIFAR-10 (see facm.data.Cifar10).
        images: Length of the run in images seen.
        seed: Seed of all random numbers of the run.
    """
    return _few_steps(_network(), FACM(Unconditional(), DataVelocity(), time=TIME), path, images, seed)


def cifar10_mean_flow(path: str = "data/cifar10", images: int = LONG, seed: int = 0) -> Run:
    """MeanFlow from scratch on CIFAR-10, unconditional.

    Args:
        path: Folder or archive of CIFAR-10 (see facm.data.Cifar10).
        images: Length of the run in images seen.
        seed: Seed of all random numbers of the run.
    """
    # FID 2.92 with one step.
    objective = MeanFlow(Unconditional(), DataVelocity(), time=TIME, data_proportion=0.75)  # App. A.3 c
    return _few_steps(_network(auxiliary_time=True), objective, path, images, seed)


def cifar10_scm_teacher(path: str = "data/cifar10", images: int = LONG, seed: int = 0) -> Run:
    """A flow-matching network on CIFAR-10 with sCM's normalised modulation, for cifar10-scm to start from.

    Args:
        path: Folder or archive of CIFAR-10 (see facm.data.Cifar10).
        images: Length of the run in images seen.
        seed: Seed of all random numbers of the run.
    """
    objective = FlowMatching(Unconditional(), label_dropout=0.0, p_flow_condition=0.0)  # sCM never uses c_FM
    return _teacher(_network(dropout=0.13, pixel_norm=True), objective, path, images, seed)


def cifar10_scm(
    path: str = "data/cifar10", start: str = "runs/cifar10-scm-teacher", images: int = SHORT, seed: int = 0
) -> Run:
    """sCM's consistency training (sCT) on CIFAR-10, unconditional, from cifar10-scm-teacher's weights.

    Args:
        path: Folder or archive of CIFAR-10 (see facm.data.Cifar10).
        start: Run folder of cifar10-scm-teacher.
        images: Length of the run in images seen.
        seed: Seed of all random numbers of the run.
    """
    # FID 2.85 with one step, 2.06 with two.
    objective = SCM(Unconditional(), DataVelocity(), time=TIME, warmup_images=10_000 * BATCH)  # its 10,000 steps
    network = _network(pixel_norm=True, weight_head=True)
    return _few_steps(network, objective, path, images, seed, initial=start)


def cifar10_ict(path: str = "data/cifar10", images: int = LONG, seed: int = 0) -> Run:
    """iCT from scratch on CIFAR-10, unconditional.

    Args:
        path: Folder or archive of CIFAR-10 (see facm.data.Cifar10).
        images: Length of the run in images seen, over which the number of steps doubles seven times.
        seed: Seed of all random numbers of the run.
    """
    # FID 2.83 with one step; iCT-deep, with twice the blocks (DDPMpp.blocks = 8), 2.24 with two.
    objective = DiscreteCM(Unconditional(), DoublingSteps(images), DataVelocity())
    return _few_steps(_network(), objective, path, images, seed)


def cifar10_ect(
    path: str = "data/cifar10", start: str = "runs/cifar10-teacher", images: int = SHORT, seed: int = 0
) -> Run:
    """ECT on CIFAR-10, unconditional: consistency tuning of a flow-matching network.

    Args:
        path: Folder or archive of CIFAR-10 (see facm.data.Cifar10).
        start: Run folder of the flow-matching network to tune.
        images: Length of the run in images seen, over which the gap of the pairs shrinks eight times.
        seed: Seed of all random numbers of the run.
    """
    # FID 3.60 with one step, 2.11 with two.
    schedule = ShrinkingGap(stage=max(1, images // 8))
    objective = DiscreteCM(Unconditional(), schedule, DataVelocity(), weight=SignalToNoise())
    return _few_steps(_network(), objective, path, images, seed, initial=start)


def cifar10_imm(path: str = "data/cifar10", images: int = LONG, seed: int = 0) -> Run:
    """Inductive moment matching from scratch on CIFAR-10, unconditional.

    Args:
        path: Folder or archive of CIFAR-10 (see facm.data.Cifar10).
        images: Length of the run in images seen.
        seed: Seed of all random numbers of the run.
    """
    # FID 3.20 with one step, 1.98 with two.
    objective = IMM(Unconditional(), label_dropout=0.0)  # 4 particles: a batch has 32 groups
    return _few_steps(_network(auxiliary_time=True), objective, path, images, seed)


def cifar10_shortcut(path: str = "data/cifar10", images: int = LONG, seed: int = 0) -> Run:
    """A shortcut model from scratch on CIFAR-10, unconditional; the sampler jumps takes its steps.

    Args:
        path: Folder or archive of CIFAR-10 (see facm.data.Cifar10).
        images: Length of the run in images seen.
        seed: Seed of all random numbers of the run.
    """
    # Table 1 has no FID of it on CIFAR-10.
    objective = ShortcutModel(Unconditional(), label_dropout=0.0)
    return _few_steps(_network(auxiliary_time=True), objective, path, images, seed)


def cifar10_cd(
    path: str = "data/cifar10", teacher: str = "runs/cifar10-teacher", images: int = SHORT, seed: int = 0
) -> Run:
    """Consistency distillation of a CIFAR-10 teacher in 18 steps, unconditional.

    Args:
        path: Folder or archive of CIFAR-10 (see facm.data.Cifar10).
        teacher: Run folder of the teacher.
        images: Length of the run in images seen.
        seed: Seed of all random numbers of the run.
    """
    # FID 2.93 with two steps, with LPIPS.
    # This recipe has Euler's steps, the pseudo-Huber distance and iCT's density of steps; the original has Heun's
    # steps, LPIPS and a uniform density.
    schedule = DoublingSteps(images, first=18, last=18)
    objective = DiscreteCM(Unconditional(), schedule, TeacherVelocity(Guidance(1.0)))
    return _few_steps(_network(), objective, path, images, seed, initial=teacher, distils=True)


def _network(dropout: float = 0.1, **options: Any) -> SimpleEDM:
    """The network of Table 5, whose dropout is 0.1; ``options`` are fields of DDPMpp."""
    return SimpleEDM(DDPMpp(dropout=dropout, **options))


def _teacher(network: SimpleEDM, objective: Any, path: str, images: int, seed: int) -> Run:
    """A teacher with EDM's settings: batches of 512 and a learning rate of 1e-3 after a warm-up of 10M images."""
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
    """A run with the settings of Table 5 for CIFAR-10.

    initial: Run folder of the network to start from, if any.
    distils: Whether that network is the teacher as well.
    """
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
