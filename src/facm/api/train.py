"""facm.train and facm.resume: a run from Python, in a script or in a notebook."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facm.api.device import placed
from facm.api.known import check_run, made_known
from facm.api.session import Session, Tracker
from facm.core.component import shown
from facm.core.terminal import say
from facm.distributed.collectives import by_first
from facm.distributed.engine import Engine
from facm.distributed.process_group import opened
from facm.pretrained.trained import trust_sources
from facm.runs.config import Run
from facm.runs.folder import begun, open_run
from facm.runs.recipe_file import RecipeSource, source_of
from facm.runs.recipe_of_parts import defined_here, recipe_of_parts
from facm.runs.trust import remember
from facm.training.callbacks import AsCallback, as_callbacks
from facm.training.checks import check
from facm.training.loop import STOPPED, Outcome
from facm.training.session import extent, run_session
from facm.training.trackers import trackers_of

if TYPE_CHECKING:
    from facm.api.model import Model


def train(
    run: Run,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    callbacks: Sequence[AsCallback] = (),
    trackers: Sequence[Tracker] = (),
    previews: bool = True,
    device: str = "auto",
    engine: Engine | None = None,
    quiet: bool = False,
) -> Model:
    """Train ``run`` in the new folder ``out``; the trained network, ready to be sampled.

    >>> import facm
    >>> from facm.recipes.digits import digits_teacher
    >>> teacher = facm.train(digits_teacher(images=1280), "runs/first", quiet=True)
    >>> teacher.sample(4).shape
    torch.Size([4, 1, 8, 8])

    resume: go on where ``out`` holds this very run already, so that a script can be run again after an interruption.
    callbacks: objects of :class:`facm.Callback`, or functions that are called with every line of the log.
    trackers: "tensorboard", "wandb" or "trackio", to which the log goes, too.
    previews: draw a grid of samples at each checkpoint.
    device: "auto" (a GPU if there is one), "cpu", "cuda", or a GPU's number as in "cuda:1".
    engine: how it is executed, on one process or on all that torchrun started.
    quiet: print nothing.

    Ctrl-C, or interrupting a notebook's kernel, saves after the current step and raises KeyboardInterrupt; SIGTERM and
    SIGHUP save and raise SystemExit. Either way :func:`facm.resume` goes on, to the same bytes as without.
    Raises RunFolderError where ``out`` is in use, ValueError where the parts of the run do not fit, and what
    :func:`facm.training.loop.train` raises.
    """
    check_run(run)
    path, session = _path(out), _session(callbacks, trackers, previews, device, engine, quiet)
    return _result(start(run, path, session, resume=resume), path, device)


def resume(
    out: str | os.PathLike[str],
    *,
    run: Run | None = None,
    network: Any = None,
    data: Any = None,
    callbacks: Sequence[AsCallback] = (),
    trackers: Sequence[Tracker] = (),
    previews: bool = True,
    device: str = "auto",
    engine: Engine | None = None,
    quiet: bool = False,
    trust_recipe: bool = False,
) -> Model:
    """Go on with the run in ``out`` from its newest checkpoint; the result is the same as without the interruption.

    >>> import facm
    >>> teacher = facm.resume("runs/first", quiet=True)  # finished already: nothing is left to do
    >>> teacher.images_seen
    1280

    run: the run itself, where its parts are defined in a notebook or a script. network, data: the objects that
    :func:`facm.distill` was given. trust_recipe: execute the recipe file that came with the run, whoever wrote it.
    The others are as for :func:`facm.train`. Raises RunFolderError where ``out`` holds no run, or another one.
    """
    path, session = _path(out), _session(callbacks, trackers, previews, device, engine, quiet)
    made_known(run, network, data, path)
    return _result(go_on(path, session, trust_recipe), path, device)


def start(
    run: Run,
    out: Path,
    session: Session,
    recipe: str | None = None,
    recipe_file: Path | RecipeSource | None = None,
    resume: bool = False,
    trust_recipe: bool = False,
) -> Outcome | None:
    """Make the run's folder and train in it, on all ranks; how that ended, and None on other ranks than the first.

    recipe: what the user typed. recipe_file: where the run's parts are defined; None: the modules that they are from.
    """
    engine = session.engine
    with opened(engine) as ranks, contextlib.ExitStack() as stack:
        world = placed(ranks, session.device)
        if trust_recipe:
            trust_sources(run)
        checked = check(run, engine, world.ranks)  # before there is a folder
        source = recipe_of_parts(run) if recipe_file is None else recipe_file
        made = begun(out, run, recipe, source, resume)
        folder = by_first(world, lambda: stack.enter_context(made)[0])
        if source is not None and not world.first:
            remember(source_of(source).content, source_of(source).home)  # on this machine, too
        if world.first and not session.quiet:
            say(f"training {recipe or 'a run'} in {out}: {extent(run, world)}")
            if recipe_file is None and (here := defined_here(run)):
                say(f"only here can it be opened, where {', '.join(here)} is defined; anywhere, if that is in a file")
        watchers = [*as_callbacks(session.callbacks), *trackers_of(session.trackers, world, engine)]
        outcome = run_session(checked, folder, engine, world, watchers, session.quiet, session.previews)
        return outcome if world.first else None


def go_on(out: Path, session: Session, trust_recipe: bool = False) -> Outcome | None:
    """Go on with the run in ``out``; as :func:`start`."""
    engine = session.engine
    with opened(engine) as ranks:
        folder, run = open_run(out, trust_recipe)
        if trust_recipe:
            trust_sources(run)
        world = placed(ranks, session.device)
        if world.first and not session.quiet:
            say(f"continuing {folder.path} from its newest checkpoint: {extent(run, world)}")
        watchers = [*as_callbacks(session.callbacks), *trackers_of(session.trackers, world, engine)]
        checked = check(run, engine, world.ranks)
        outcome = run_session(checked, folder, engine, world, watchers, session.quiet, session.previews)
        return outcome if world.first else None


def _path(out: str | os.PathLike[str]) -> Path:
    if not isinstance(out, str | os.PathLike) or not str(out):
        raise ValueError(f"out = {shown(out)}, expected the path of a folder")
    return Path(out)


def _session(
    callbacks: Sequence[AsCallback],
    trackers: Sequence[Tracker],
    previews: bool,
    device: str,
    engine: Engine | None,
    quiet: bool,
) -> Session:
    if isinstance(trackers, str):
        raise ValueError(f"trackers = {trackers!r}, expected a list of names, as in [{trackers!r}]")
    return Session(device, engine or Engine(), quiet, tuple(trackers), as_callbacks(callbacks), previews)


def _result(outcome: Outcome | None, out: Path, device: str) -> Model:
    """The trained network. Raises what the signal means that interrupted the run."""
    from facm.api.model import Model

    if outcome is not None and not outcome.finished and outcome.signal != STOPPED:
        message = f"saved at {outcome.images} of {outcome.length} images in {out}: facm.resume({str(out)!r}) goes on"
        if outcome.signal in (None, "SIGINT"):
            raise KeyboardInterrupt(message)
        say(f"{outcome.signal}: {message}")
        raise SystemExit(128 + signal.Signals[outcome.signal])
    return Model(out, device=device)
