"""TensorBoard: event files in the run's folder, ``tensorboard --logdir runs``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facm.training.trackers.base import Sink


class TensorBoard(Sink):
    package = "tensorboard"

    def open(self, folder: Path, name: str, identity: str, images: int, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events after the clock that the run goes on from are purged: they are written again, the same.
        writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=images + 1 if images else None)
        self.writer = writer
        writer.add_text("run", f"```json\n{json.dumps(config, indent=2)}\n```", images)

    def log(self, numbers: Mapping[str, float], images: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, images)
        self.writer.flush()

    def picture(self, name: str, file: Path, images: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(file) as picture:
            self.writer.add_image(name, np.asarray(picture.convert("RGB")), images, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()
