"""The size that a study is done at: the same questions in miniature on two cores, or on CIFAR-10 with a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from facm.core.objective import Condition, Objective
from facm.core.types import Data, NetworkConfig
from facm.flow.conditions import Labels, Unconditional
from facm.flow.distances import Distance, L2Cosine
from facm.flow.times import ArctanLogNormal, TimeDistribution
from facm.objectives.flow_matching import FlowMatching
from facm.pretrained.trained import FromRun
from facm.runs.config import Intervals, Run
from facm.runs.ema import PowerEMA
from facm.runs.optim import AdamW, CosineDecay

TEACHER_EMA = 0.05


@dataclass(frozen=True)
class Setting:
    """Everything that the networks of a study share.

    name: of the size.
    network: of teachers and students, altered where an objective needs it.
    data: what they are trained on.
    condition: what they are conditioned on.
    time: of the objectives that draw ArctanLogNormal times.
    teacher_images: length of a teacher's run.
    images: length of a student's run.
    scratch_images: length of a student's run from scratch.
    teacher_optimizer: of teachers.
    optimizer: of students.
    scratch_optimizer: of students from scratch.
    every: how often runs log and save.
    label_dropout: of teachers, and of students from scratch.
    batch_size: of all runs.
    teacher_nfe: steps that teachers are measured at, apart from 1 and 2.
    n: samples measured for each number.
    anchor: distance of FACM's anchor.
    reference: what samples are measured against; None: the data.
    """

    name: str
    network: NetworkConfig
    data: Data
    condition: Condition
    time: TimeDistribution
    teacher_images: int
    images: int
    scratch_images: int
    teacher_optimizer: AdamW
    optimizer: AdamW
    scratch_optimizer: AdamW
    every: Intervals
    label_dropout: float
    batch_size: int
    teacher_nfe: int
    n: int
    anchor: Distance = L2Cosine()
    reference: Data | None = None

    def altered(self, **fields: Any) -> NetworkConfig:
        """The network with other settings, such as auxiliary_time, pixel_norm or weight_head."""
        return altered(self.network, **fields)

    def teacher(
        self,
        seed: int,
        *,
        images: int | None = None,
        network: NetworkConfig | None = None,
        mixed: float = 0.5,
    ) -> Run:
        """Flow matching; mixed: the fraction conditioned on c_FM (App. A.3 a)."""
        return Run(
            network=network or self.network,
            data=self.data,
            objective=FlowMatching(self.condition, p_flow_condition=mixed, label_dropout=self.label_dropout),
            images=images or self.teacher_images,
            batch_size=self.batch_size,
            optimizer=self.teacher_optimizer,
            ema=PowerEMA((TEACHER_EMA, 0.1)),
            every=self.every,
            seed=seed,
        )

    def student(
        self,
        objective: Objective,
        teacher: Path,
        seed: int,
        *,
        images: int | None = None,
        network: NetworkConfig | None = None,
    ) -> Run:
        """From a teacher's weights; whether the objective asks the teacher is its own affair."""
        source = FromRun(str(teacher), sigma_rel=TEACHER_EMA)
        return Run(
            network=network or self.network,
            data=self.data,
            objective=objective,
            images=images or self.images,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            ema=PowerEMA((0.05, 0.2)),
            teacher=source,
            initial=source,
            every=self.every,
            seed=seed,
        )

    def scratch(
        self, objective: Objective, seed: int, *, images: int | None = None, network: NetworkConfig | None = None
    ) -> Run:
        return Run(
            network=network or self.network,
            data=self.data,
            objective=objective,
            images=images or self.scratch_images,
            batch_size=self.batch_size,
            optimizer=self.scratch_optimizer,
            ema=PowerEMA((0.05, 0.2)),
            every=self.every,
            seed=seed,
        )


def altered(network: NetworkConfig, **fields: Any) -> NetworkConfig:
    """``network`` with fields replaced in the innermost one, inside its adapters. Raises ValueError where it has not
    got them."""
    value: Any = network
    if hasattr(value, "network"):
        return replace(value, network=altered(value.network, **fields))
    if missing := fields.keys() - {field.name for field in dataclasses.fields(value)}:
        raise ValueError(f"network = {network!r} has no {', '.join(sorted(missing))}, which this study needs")
    return replace(value, **fields)


def digits(data: str | None = None) -> Setting:
    """Scikit-learn's 1,797 handwritten digits, 8 x 8: about two minutes a network on an idle core."""
    if data is not None:
        raise ValueError(f"data = {data!r} with digits, which come with scikit-learn; expected None")
    from facm.recipes.digits import CLASSES, NETWORK, Digits

    return Setting(
        name="digits",
        network=NETWORK,
        data=Digits(),
        condition=Labels(CLASSES),
        time=ArctanLogNormal(-0.8, 1.6),
        teacher_images=128_000,
        images=38_400,
        scratch_images=102_400,
        teacher_optimizer=AdamW(lr=2e-3, warmup_images=6_400, decay=CosineDecay(0.02)),
        optimizer=AdamW(lr=2e-3, warmup_images=2_560, decay=CosineDecay(0.05)),
        scratch_optimizer=AdamW(lr=1e-3, warmup_images=6_400, decay=CosineDecay(0.05)),
        every=Intervals(log=640, checkpoint=38_400, ema_snapshots=12_800),
        label_dropout=0.1,
        batch_size=128,
        teacher_nfe=32,
        n=2_000,
    )


def cifar10(data: str | None = None) -> Setting:
    """CIFAR-10, unconditional, in pixels with DDPM++ and Table 5's settings: hours a network on one GPU; not run yet.

    Shorter runs than the recipes': to compare methods, not to reach the paper's FIDs.
    """
    from facm.data import Cifar10
    from facm.recipes.cifar10 import BATCH, NETWORK, TIME

    path = data or "data/cifar10"
    return Setting(
        name="cifar10",
        network=NETWORK,
        data=Cifar10(path, labels=False),
        reference=Cifar10(path),
        condition=Unconditional(),
        time=TIME,
        teacher_images=20_000_000,
        images=6_400_000,
        scratch_images=17_000_000,
        teacher_optimizer=AdamW(lr=2e-4, warmup_images=500_000),
        optimizer=AdamW(lr=1e-4, betas=(0.9, 0.995)),  # Table 5
        scratch_optimizer=AdamW(lr=1e-4, betas=(0.9, 0.995), warmup_images=500_000),
        every=Intervals(log=12_800, checkpoint=1_000_000, ema_snapshots=6_400_000),
        label_dropout=0.0,
        batch_size=BATCH,
        teacher_nfe=50,
        n=50_000,
    )


def fashion(data: str | None = None) -> Setting:
    """Fashion-MNIST, 28 x 28, 49 tokens: a quarter of an hour or more a network on one core.

    Shorter runs than the recipes': to compare methods.
    """
    from facm.data import Idx
    from facm.recipes.fashion import CLASSES, NETWORK

    path = data or "data/fashion_mnist"
    return Setting(
        name="fashion",
        network=NETWORK,
        data=Idx(path, num_classes=CLASSES),
        condition=Labels(CLASSES),
        time=ArctanLogNormal(-0.8, 1.6),
        teacher_images=128_000,
        images=25_600,
        scratch_images=102_400,
        teacher_optimizer=AdamW(lr=2e-3, warmup_images=12_800, decay=CosineDecay(0.02)),
        optimizer=AdamW(lr=1e-3, warmup_images=2_560, decay=CosineDecay(0.05)),
        scratch_optimizer=AdamW(lr=1e-3, warmup_images=6_400, decay=CosineDecay(0.05)),
        every=Intervals(log=640, checkpoint=25_600, ema_snapshots=12_800),
        label_dropout=0.1,
        batch_size=128,
        teacher_nfe=32,
        n=2_000,
    )


SETTINGS: dict[str, Callable[[str | None], Setting]] = {"digits": digits, "fashion": fashion, "cifar10": cifar10}


def find_setting(name: str, data: str | None = None) -> Setting:
    """data: where the data set is. Raises ValueError for a name that is none of them."""
    if name not in SETTINGS:
        raise ValueError(f"name = {name!r}, expected one of {', '.join(SETTINGS)}")
    return SETTINGS[name](data)
