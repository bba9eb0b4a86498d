"""One session of a run, from its newest checkpoint to its end: progress, sample grids, trackers and callbacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from facm.core.terminal import warn
from facm.distributed.engine import Engine
from facm.distributed.process_group import World
from facm.latents.decode import ImageDecoder, decoder_of
from facm.runs.config import Run
from facm.runs.folder import RunFolder
from facm.training.callbacks import Callback
from facm.training.checks import CheckedRun
from facm.training.loop import Outcome, StopTraining, train
from facm.training.precision import resolved_precision
from facm.training.preview import draw_preview
from facm.training.progress import Shown, progress
from facm.training.trainer import Trainer


def run_session(
    checked: CheckedRun,
    folder: RunFolder,
    engine: Engine,
    world: World,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    previews: bool = True,
) -> Outcome:
    """Train with progress and with sample grids in ``folder.samples``; all ranks call this. Raises what
    :func:`facm.training.loop.train` raises.

    callbacks: called on the first rank. previews: whether to draw grids.
    """
    watchers = list(callbacks) if world.first else []
    draw = _previews(checked, folder, world) if previews else None
    with progress(checked.run, folder.path.name, quiet or not world.first) as shown:
        session = _Session(folder, shown, watchers, draw)
        outcome = train(
            checked,
            folder,
            report=session.report,
            on_step=shown.on_step,
            on_checkpoint=session.on_checkpoint,
            on_begin=session.on_begin,
            engine=engine,
            world=world,
        )
    for watcher in watchers:
        watcher.on_end(outcome)
    return outcome


class _Session:
    """Who is told what, in which order."""

    def __init__(
        self, folder: RunFolder, shown: Shown, watchers: list[Callback], draw: Callable[[Trainer], None] | None
    ) -> None:
        self.folder, self.shown, self.watchers, self.draw = folder, shown, watchers, draw

    def on_begin(self, trainer: Trainer) -> None:
        self._tell_all(lambda watcher: watcher.on_begin(trainer.run, self.folder.path, trainer.state.images))

    def report(self, record: dict[str, Any]) -> None:
        self.shown.on_log(record)
        if "warning" in record:
            warn(record["warning"])
        self._tell_all(lambda watcher: watcher.on_log(record))

    def on_checkpoint(self, trainer: Trainer) -> None:
        images, picture = trainer.state.images, preview_of(self.folder, trainer.state.images)
        there = picture.exists()  # of the checkpoint that the run goes on from
        if self.draw is not None:
            self.draw(trainer)
        if not there and picture.exists():
            self._tell_all(lambda watcher: watcher.on_preview(images, picture))
        self._tell_all(lambda watcher: watcher.on_checkpoint(images, self.folder.checkpoint(images)))

    def _tell_all(self, tell: Callable[[Callback], None]) -> None:
        """Each is told, also where one before it asks the run to stop."""
        stop: StopTraining | None = None
        for watcher in self.watchers:
            try:
                tell(watcher)
            except StopTraining as asked:
                stop = asked
        if stop is not None:
            raise stop


def preview_of(folder: RunFolder, images: int) -> Path:
    """The picture that is drawn at the clock ``images``."""
    return folder.samples / f"{images:012d}.png"


def extent(run: Run, world: World) -> str:
    """How long the run is, and what it is computed on."""
    precision = resolved_precision(run, world.device)
    ranks = "" if world.ranks == 1 else f"{world.ranks} x "
    return f"{run.images} images in steps of {run.batch_size}, on {ranks}{world.device} in {precision}"


def _previews(checked: CheckedRun, folder: RunFolder, world: World) -> Callable[[Trainer], None]:
    """Draws a small grid of the first EMA's samples, from the same noise at every checkpoint."""
    decode = _decoder(checked, world)

    def draw(trainer: Trainer) -> None:
        draw_preview(trainer, preview_of(folder, trainer.state.images), decode)

    return draw


def _decoder(checked: CheckedRun, world: World) -> ImageDecoder | None:
    """What makes images of the run's latents, on the first rank. One that the recipe names must be there; without the
    one that only the latents' manifest names, a run has no previews, and prints why."""
    if not world.first:
        return None
    dataset = checked.dataset
    try:
        return decoder_of(dataset, world.device)
    except ValueError as error:
        if getattr(dataset, "autoencoder", None) is not None:
            raise
        warn(f"no previews: {error}")
        return None
