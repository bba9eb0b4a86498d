"""facm train | resume | plan."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from facm.distributed.engine import Engine

if TYPE_CHECKING:
    from facm.cli.lookup import Recipe
    from facm.distributed.process_group import World
    from facm.latents.decode import Decoder
    from facm.runs.config import Run
    from facm.runs.folder import RunFolder
    from facm.training.checks import CheckedRun
    from facm.training.trainer import Trainer

DEFAULT = Engine()
T = TypeVar("T")


def train(recipe: Annotated[str, tyro.conf.Positional]) -> None:
    """Train a recipe; its options: facm train RECIPE --help, the recipes: facm show recipes.

    Args:
        recipe: a name such as digits-teacher, or a function in any file: mine.py:run.
    """
    raise AssertionError("handled by main")


def train_recipe(spec: str, arguments: list[str]) -> None:
    from facm.cli.lookup import find_recipe

    recipe = find_recipe(spec)
    chosen, run, engine = _parse_run("train", recipe, arguments, TrainOptions())
    from facm.distributed.collectives import by_first
    from facm.distributed.process_group import opened, restarts
    from facm.runs.folder import LockedError, RunFolder, create, create_or_continue, discard
    from facm.training.checks import check

    out = chosen.out or Path("runs") / recipe.name
    make: Any = create_or_continue if chosen.resume or restarts() else create
    with opened(engine) as world:
        checked = check(run, engine, world.ranks)  # before there is a folder
        by_first(world, lambda: make(out, run, recipe.spec, recipe.file) and None)
        folder = RunFolder(out)
        try:
            _run_to_end(checked, folder, chosen.quiet, engine, world)
        except LockedError:  # the folder is another's
            raise
        except Exception:
            if world.first:
                discard(folder)
            raise


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Options of the command itself."""

    out: Path | None = None
    """Run folder to create; default: runs/RECIPE. A folder in use is never overwritten."""
    quiet: bool = False
    """Print nothing but errors."""
    resume: bool = False
    """Continue where the folder holds this very run already, as a requeued job wants it."""


def _parse_run(name: str, recipe: Recipe, arguments: list[str], options: T) -> tuple[T, Run, Engine]:
    """The recipe's own options make a Run; --run.* then overrides single scalars in it; --engine.* says how."""
    from facm.runs.config import Run

    function: Any = recipe.function
    own = {"run", "engine"} | {field.name for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    if taken := own & inspect.signature(function).parameters.keys():
        raise ValueError(f"recipe {recipe.spec} has an argument {taken.pop()!r}, an option of the command: rename it")
    helpless = [a for a in arguments if a not in ("-h", "--help")]
    # First leniently, for the defaults of --run.*; then strictly, with help and suggestions over everything.
    with _silenced():
        try:
            first, _ = tyro.cli(function, args=helpless, return_unknown_args=True)
        except SystemExit:
            first = None
    if first is None:  # it has arguments without defaults: their help, or what is wrong with them
        first, _ = tyro.cli(function, args=arguments, prog=f"facm {name} {recipe.spec}", return_unknown_args=True)
    if not isinstance(first, Run):
        raise ValueError(f"recipe {recipe.spec} returned {type(first).__name__}, expected a facm.runs.config.Run")

    def command(recipe: Any, command: T, run: Any, engine: Engine) -> tuple[T, Run, Engine]:
        return command, run, engine

    command.__doc__ = function.__doc__
    command.__annotations__ = {  # set here, for they depend on the recipe
        "recipe": Annotated[Any, tyro.conf.arg(name="", constructor=function)],
        "command": Annotated[type(options), tyro.conf.arg(name="")],
        "run": tyro.conf.AvoidSubcommands[Run],
        "engine": Engine,
    }
    command.__defaults__ = (options, first, DEFAULT)
    return tyro.cli(command, args=arguments, prog=f"facm {name} {recipe.spec}")


def plan(recipe: Annotated[str, tyro.conf.Positional]) -> None:
    """Predict the memory a recipe takes on each GPU, before there is one; its options: facm plan RECIPE --help.

    Args:
        recipe: a name such as digits-teacher, or a function in any file: mine.py:run.
    """
    raise AssertionError("handled by main")


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What there is to run on."""

    gpus: int = 1
    """How many, all machines together."""
    gpu_memory: float = 80.0
    """GB (1e9 bytes) on each."""
    shape: tuple[int, ...] = ()
    """Shape of one sample, as in --shape 32 16 16; default: that of the recipe's data."""
    on: Literal["cuda", "cpu"] = "cuda"
    """cpu: what a CPU would take, without bf16, fused kernels and what CUDA itself needs."""


def plan_recipe(spec: str, arguments: list[str]) -> None:
    from facm.cli.lookup import find_recipe
    from facm.training.memory_plan import plan as predict

    chosen, run, engine = _parse_run("plan", find_recipe(spec), arguments, PlanOptions())
    found = predict(run, chosen.gpus, 1e9 * chosen.gpu_memory, engine, chosen.shape or None, chosen.on)
    print(
        f"{spec} on {chosen.gpus} x {chosen.gpu_memory:g} GB, {engine.kind(chosen.gpus)}, {found.batch} images at once"
    )
    print(found)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _run_to_end(checked: CheckedRun, folder: RunFolder, quiet: bool, engine: Engine, world: World) -> bool:
    """Train with progress and sample grids, say how it ended; False if it was interrupted."""
    from facm.training.loop import train as train_run
    from facm.training.preview import draw_preview
    from facm.training.progress import progress

    run, decode = checked.run, _decoder(checked, world)

    def draw(trainer: Trainer) -> None:
        """A small grid of the first EMA's samples, from the same noise at every checkpoint."""
        draw_preview(trainer, folder.samples / f"{trainer.state.images:012d}.png", decode)

    with progress(run, folder.path.name, quiet or not world.first) as report:
        outcome = train_run(checked, folder, report=report, on_checkpoint=draw, engine=engine, world=world)
    if not world.first:
        return outcome.finished
    if not outcome.finished:
        print(
            f"{outcome.signal}: saved at {outcome.images} of {run.images} images; go on with: facm resume {folder.path}"
        )
    elif not quiet:
        print(
            f"done: {outcome.images} images in {outcome.seconds:.0f} s, {outcome.skipped} steps skipped: {folder.path}"
        )
    return outcome.finished


def _decoder(checked: CheckedRun, world: World) -> Decoder | None:
    """What makes images of the run's latents, on the first rank. One that the recipe names must be there; without the
    one that only the latents' manifest names, a run has no previews, and says so."""
    from facm.latents.decode import decoder_of

    if not world.first:
        return None
    dataset = checked.dataset
    try:
        return decoder_of(dataset, world.device)
    except ValueError as error:
        if getattr(dataset, "autoencoder", None) is not None:
            raise
        print(f"no previews: {error}", file=sys.stderr)
        return None


def resume(run: Annotated[Path, tyro.conf.Positional], engine: Engine = DEFAULT, quiet: bool = False) -> None:
    """Continue an interrupted run from its newest checkpoint; the result is the same as without the interruption.

    Args:
        run: the run's folder.
        engine: how it is executed, which may differ from before.
        quiet: print nothing but errors.
    """
    from facm.distributed.process_group import opened
    from facm.runs.folder import open_run
    from facm.training.checks import check

    with opened(engine) as world:
        folder, configured = open_run(run)
        _run_to_end(check(configured, engine, world.ranks), folder, quiet, engine, world)
