"""Weights and Biases, with the user's own settings: WANDB_MODE=offline keeps everything on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facm.training.trackers.base import Sink

PATIENCE_S = 20.0
"""Seconds to wait for a network before the run goes on without."""


class WeightsAndBiases(Sink):
    package = "wandb"

    def open(self, folder: Path, name: str, identity: str, images: int, config: dict[str, Any]) -> None:
        import wandb

        self.run: Any = wandb.init(
            project="facm",
            name=name,
            id=identity,
            resume="allow",
            dir=str(folder),
            config=config,
            settings=wandb.Settings(init_timeout=PATIENCE_S, silent=True),
        )

    def log(self, numbers: Mapping[str, float], images: int) -> None:
        # A step that is there already, of a run that goes on from before it, is left as it is: it is the same.
        self.run.log(dict(numbers), step=images)

    def picture(self, name: str, file: Path, images: int) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(file))}, step=images)

    def close(self) -> None:
        self.run.finish()
