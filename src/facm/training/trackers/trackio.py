"""trackio: a local data base and dashboard, ``trackio show``; or a Space of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facm.training.trackers.base import Sink


class Trackio(Sink):
    package = "trackio"

    def open(self, folder: Path, name: str, identity: str, images: int, config: dict[str, Any]) -> None:
        import trackio

        self.last = images
        self.run: Any = trackio.init(
            project="facm", name=f"{name}-{identity[:6]}", resume="allow", config=config, embed=False
        )

    def log(self, numbers: Mapping[str, float], images: int) -> None:
        self.run.log(dict(numbers), step=images)

    def picture(self, name: str, file: Path, images: int) -> None:
        import trackio

        self.run.log({name: trackio.Image(str(file))}, step=images)

    def close(self) -> None:
        self.run.finish()
