"""The networks that several studies share, each with its settings in one place: one name, one run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from facm.core.objective import Objective
from facm.flow.distances import Scaled
from facm.flow.guidance import Guidance
from facm.flow.time_conditioning import AuxiliaryTime
from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.flow.weighting import Cosine, OneMinusPower, Weight
from facm.objectives.align_your_flow import AlignYourFlow
from facm.objectives.continuous_cm import ContinuousCM
from facm.objectives.facm import FACM
from facm.objectives.mean_flow import MeanFlow
from facm.objectives.scm import SCM
from facm.objectives.tract import TRACT
from facm.studies.scales import Setting
from facm.studies.study import Entry

UNGUIDED = TeacherVelocity(Guidance(1.0))
ALPHA, BETA = OneMinusPower(0.5), Cosine()  # Table 4's best


@dataclass(frozen=True)
class Bench:
    """What the entries of a study are made with.

    setting: the size of the study.
    folder: of its runs, each in ``folder``/NAME.
    seed: of all runs.
    """

    setting: Setting
    folder: Path
    seed: int

    def teacher(self, images: int | None = None, pixel_norm: bool = False, mixed: float = 0.5) -> Entry:
        """A teacher; by default adapted to both conditions, and as long as the setting says."""
        setting = self.setting
        name = "teacher" + (f"-{images}" if images else "") + "-pixel-norm" * pixel_norm + "-unadapted" * (mixed == 0)
        label = "teacher" + (f", {images:,} images" if images else "")
        label += ", pixel norm" * pixel_norm + ", not adapted" * (mixed == 0)
        network = setting.altered(pixel_norm=True) if pixel_norm else setting.network
        run = setting.teacher(self.seed, images=images, network=network, mixed=mixed)
        return Entry(name, label, run, nfe=(1, 2, setting.teacher_nfe))

    def facm(
        self,
        name: str = "facm",
        label: str = "FACM",
        *,
        teacher: str = "teacher",
        alpha: Weight = ALPHA,
        beta: Weight = BETA,
        anchor_weight: float = 1.0,
        objective: FACM | None = None,
        images: int | None = None,
    ) -> Entry:
        anchor = self.setting.anchor if anchor_weight == 1 else Scaled(self.setting.anchor, anchor_weight)
        made = objective or FACM(
            self.setting.condition, UNGUIDED, time=self.setting.time, anchor=anchor, alpha=alpha, beta=beta
        )
        return Entry(name, label, self.setting.student(made, self.folder / teacher, self.seed, images=images))

    def facm_auxiliary(self) -> Entry:
        objective = FACM(self.setting.condition, UNGUIDED, time=self.setting.time, task=AuxiliaryTime())
        return self.distilled("facm-auxiliary", "FACM, auxiliary condition", objective, auxiliary_time=True)

    def facm_pixel_norm(self) -> Entry:
        """With sCM's network and sCM's teacher, so that the two differ in the objective alone."""
        objective = FACM(self.setting.condition, UNGUIDED, time=self.setting.time, anchor=self.setting.anchor)
        return self.distilled(
            "facm-pixel-norm", "FACM, pixel norm", objective, teacher="teacher-pixel-norm", pixel_norm=True
        )

    def mean_flow(self, name: str = "mean-flow", label: str = "MeanFlow", images: int | None = None) -> Entry:
        objective = MeanFlow(self.setting.condition, UNGUIDED, time=self.setting.time)
        return self.distilled(name, label, objective, images=images, auxiliary_time=True)

    def scm(
        self,
        name: str = "scm",
        label: str = "sCM",
        *,
        images: int | None = None,
        teacher: str = "teacher-pixel-norm",
        pixel_norm: bool = True,
        warmup: float = 0.1,
    ) -> Entry:
        """warmup: fraction of the run over which the tangent is warmed up."""
        length = images or self.setting.images
        objective = SCM(self.setting.condition, UNGUIDED, time=self.setting.time, warmup_images=round(warmup * length))
        return self.distilled(
            name, label, objective, teacher=teacher, images=images, pixel_norm=pixel_norm, weight_head=True
        )

    def tract(self) -> Entry:
        """The teacher's steps at which it is measured become one, in one phase."""
        steps = self.setting.teacher_nfe
        return self.distilled("tract", f"TRACT, {steps} to 1", TRACT(self.setting.condition, UNGUIDED, steps=steps))

    def align_your_flow(self) -> Entry:
        """AYF-EMD, warmed up over a tenth of the run."""
        objective = AlignYourFlow(self.setting.condition, UNGUIDED, warmup_images=round(0.1 * self.setting.images))
        return self.distilled("ayf", "Align Your Flow", objective, auxiliary_time=True)

    def plain(
        self,
        name: str = "plain-cm",
        label: str = "plain CM",
        objective: ContinuousCM | None = None,
        images: int | None = None,
    ) -> Entry:
        """FACM's shortcut loss without its anchor, unless given otherwise."""
        made = objective or ContinuousCM(self.setting.condition, UNGUIDED, time=self.setting.time)
        return self.distilled(name, label, made, images=images)

    def distilled(
        self,
        name: str,
        label: str,
        objective: Objective,
        *,
        teacher: str = "teacher",
        images: int | None = None,
        **network: bool,
    ) -> Entry:
        """A student from ``teacher``; network: settings that its network has beside the setting's."""
        config = self.setting.altered(**network) if network else None
        run = self.setting.student(objective, self.folder / teacher, self.seed, images=images, network=config)
        return Entry(name, label, run)

    def facm_scratch(self) -> Entry:
        setting = self.setting
        objective = FACM(
            setting.condition,
            DataVelocity(),
            time=setting.time,
            anchor=setting.anchor,
            label_dropout=setting.label_dropout,
        )
        return Entry("facm-scratch", "FACM, from scratch", setting.scratch(objective, self.seed))

    def mean_flow_scratch(self) -> Entry:
        """Three quarters of the samples with r = t (App. A.3 c)."""
        setting = self.setting
        objective = MeanFlow(
            setting.condition,
            DataVelocity(),
            time=setting.time,
            data_proportion=0.75,
            label_dropout=setting.label_dropout,
        )
        run = setting.scratch(objective, self.seed, network=setting.altered(auxiliary_time=True))
        return Entry("mean-flow-scratch", "MeanFlow, from scratch", run)


def published(entry: Entry, fid: dict[int, float]) -> Entry:
    """With the paper's numbers, number of steps -> FID."""
    return replace(entry, published=fid)
