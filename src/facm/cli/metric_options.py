"""What samples are measured with and against: the options of facm evaluate and facm statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from facm.distributed.process_group import World
    from facm.evaluation import Features
    from facm.evaluation.evaluator import CLIPEvaluator, Evaluator
    from facm.latents.decode import ImageDecoder
    from facm.pretrained.trained import Trained


@dataclasses.dataclass(frozen=True)
class FeatureOptions:
    """The network that samples are compared in."""

    inception: Path | None = None
    """Weights of FID's Inception, as torch-fidelity distributes them: FID, Inception score, KID, precision, recall."""
    dinov2: Path | None = None
    """Folder of a DINOv2 in the transformers format: FD-DINOv2."""
    features: tuple[str, ...] = ()
    """Features of your own: FILE.py:NAME, followed by its arguments."""

    def chosen(self) -> Features | None:
        """The features of the options; None without any. Raises ValueError for more than one."""
        from facm.evaluation import DINOv2, Inception

        given = {"inception": self.inception, "dinov2": self.dinov2, "features": self.features}
        names = [f"--{name}" for name, value in given.items() if value]
        if len(names) > 1:
            raise ValueError(f"{' and '.join(names)} given, expected at most one of them")
        if self.inception is not None:
            return Inception(str(self.inception))
        if self.dinov2 is not None:
            return DINOv2(str(self.dinov2))
        return _own(*self.features) if self.features else None


@dataclasses.dataclass(frozen=True)
class MetricOptions(FeatureOptions):
    """What samples are measured with, and against."""

    fid_stats: Path | None = None
    """Statistics of real images, an npz with mu and sigma. Features then default to Inception, downloaded."""
    real: Path | None = None
    """Folder of real images, in place of the run's own data. Features then default to Inception, downloaded."""
    clip: Path | None = None
    """Folder of a CLIP model in the transformers format: the CLIP score of a network with prompts, and nothing else
    unless --fid-stats, --real or features are given, too."""
    labels: Literal["balanced", "random"] = "balanced"
    """Classes of the samples: the same number of each, or drawn from the seed."""
    quantise: Literal["round", "truncate"] = "round"
    """How samples become 8-bit images: rounded, or truncated as the reference implementation does."""
    small_n: bool = False
    """Measure with fewer samples than features; the row is marked, for the number means little."""

    def trains_a_classifier(self) -> bool:
        """Whether the features may be those of a classifier of the run's own data."""
        return self.fid_stats is None and self.real is None and self.clip is None and self.chosen() is None

    def judge(
        self,
        trained: Trained,
        decoder: ImageDecoder | None,
        world: World,
        progress: Callable[[int, int], None] | None = None,
        frames_per_clip: int | None = None,
    ) -> Evaluator | CLIPEvaluator:
        """All that the samples are measured with.

        Raises ValueError as :func:`facm.evaluation.choose.evaluator_for` does."""
        from facm.evaluation.choose import evaluator_for

        return evaluator_for(
            trained,
            decoder,
            world,
            features=self.chosen(),
            fid_stats=self.fid_stats,
            real=self.real,
            clip=self.clip,
            quantise=self.quantise,
            small_n=self.small_n,
            progress=progress,
            frames_per_clip=frames_per_clip,
        )


def _own(spec: str, *arguments: str) -> Any:
    from facm.runs.recipe_file import load_module

    path, _, name = spec.rpartition(":")
    if not path.endswith(".py") or not name or not Path(path).exists():
        raise ValueError(f"--features {spec}, expected FILE.py:NAME of an existing file, and its arguments")
    made = getattr(load_module(Path(path), Path(path).stem), name, None)
    if made is None:
        raise ValueError(f"--features {spec}: {path} has no {name}")
    try:
        features = made(*arguments)
    except TypeError as error:
        raise ValueError(f"--features {' '.join((spec, *arguments))}: {error}") from error
    if not callable(getattr(features, "build", None)):
        raise ValueError(f"--features {spec}: {name} made {features!r}, expected an object with build(dataset, device)")
    return features
