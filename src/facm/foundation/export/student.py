"""A trained text-to-image student with the model that it was made of, and where both come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facm import __version__
from facm.flow.phases import WHOLE
from facm.foundation.captions.dataset import CaptionedShards
from facm.foundation.captions.manifest import Bucket
from facm.foundation.folder import SECOND, TRANSFORMER, ModelFolder, Part, open_model
from facm.foundation.network import DiffusersModel, DiffusersNetwork
from facm.pretrained.trained import Trained


@dataclass(frozen=True)
class Student:
    """What is exported.

    network: the trained network.
    model: the folder of the model that it began as.
    few_step: whether it learned the shortcut to the data; a model that was only fine-tuned did not.
    origin: for the records: the run, the checkpoint and the model, with their hashes.
    size: height and width in pixels of most pictures that it was trained on; None where its data do not say so.
    bounds: times where its phases begin and end.
    high: of a pair of students the high-noise half, beside ``network``; else None.
    frames: number of frames of most clips that it was trained on; 1 for pictures.
    """

    network: DiffusersNetwork
    model: ModelFolder
    few_step: bool
    origin: dict[str, Any]
    size: tuple[int, int] | None = None
    frames: int = 1
    bounds: tuple[float, ...] = WHOLE
    high: DiffusersNetwork | None = None

    @property
    def networks(self) -> dict[Part, DiffusersNetwork]:
        """The transformers of the exported pipeline by name."""
        return {TRANSFORMER: self.network} if self.high is None else {TRANSFORMER: self.high, SECOND: self.network}

    @property
    def unguided(self) -> dict[str, Any]:
        """Arguments of the pipeline's call with which it guides no further, and tells the guidance that was trained."""
        told = self.network.embedded_guidance
        return self.model.family.unguided() | ({} if told is None else {"guidance_scale": told})


def student_of(trained: Trained) -> Student:
    """The network of a run, with its model. Raises ValueError for one that is no model of diffusers."""
    network, config = trained.network, trained.config
    if not isinstance(network, DiffusersNetwork) or not isinstance(config, DiffusersModel):
        raise ValueError(
            f"{trained.path} holds a {type(config).__name__}, expected the run of a text-to-image model (facm distill, "
            "facm finetune); its weights alone are exported without --to"
        )
    model = open_model(Path(config.path).expanduser())
    origin = {
        "facm": __version__,
        "run": trained.path.resolve().name,
        "weights": trained.which,
        "images_seen": trained.images_seen,
        "checkpoint_sha256": trained.checkpoint_sha256,
        "base": model.path.resolve().name,
        "base_pipeline": model.pipeline,
        "base_transformer": model.identity(config.part)[config.part],
        "lora_rank": None if config.lora is None else config.lora.rank,
        "smooth": config.smooth,
        "embedded_guidance": config.embedded_guidance,
    }
    few_step, bounds = trained.interface.learns_shortcut is True, trained.interface.bounds
    most = _most(trained)
    size, frames = (None, 1) if most is None else ((most.height, most.width), most.frames)
    return Student(network, model, few_step, origin, size, frames, bounds)


def _most(trained: Trained) -> Bucket | None:
    """The size of most of its data."""
    try:
        dataset = trained.dataset
    except ValueError:  # a run is exported without its data, too
        return None
    if not isinstance(dataset, CaptionedShards):
        return None
    return max(dataset.manifest.buckets, key=lambda bucket: bucket.n)
