"""facm train | resume | plan."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from facm.api.device import Precision
from facm.api.session import Session, Tracker
from facm.cli import recipe_options
from facm.cli.errors import in_flags
from facm.cli.parsing import Advanced, Group
from facm.core.terminal import say, say_text
from facm.distributed.engine import Engine

if TYPE_CHECKING:
    from facm.cli.lookup import Recipe
    from facm.runs.config import Run
    from facm.training.loop import Outcome

RecipeName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
RunPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Options of the command itself."""

    out: Path | None = None
    """Run folder to create, never one in use; default: runs/RECIPE, of distill runs/DATA, of finetune
    runs/DATA-teacher."""
    resume: bool = False
    """Continue if the folder already contains this run."""
    device: str = "auto"
    """Where to compute: auto (a GPU if there is one), cpu, cuda, or a GPU's number as in cuda:1."""
    precision: Precision | None = None
    """Precision of the forward pass, part of the run; auto is bf16 on a GPU that supports it. Default: the recipe's."""
    dry_run: bool = False
    """Check everything and print what would be written where; write nothing."""
    print_config: bool = False
    """Print the run as JSON, with every default, and do nothing else."""
    quiet: bool = False
    """Print nothing but errors."""
    tracker: tuple[Tracker, ...] = ()
    """Send the log to tensorboard, wandb or trackio, too; several after each other."""
    trust_recipe: bool = False
    """Execute the recipe files that came with the runs that this one starts or learns from, whoever wrote them."""


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What there is to run on."""

    gpus: int = 1
    """Number of GPUs, over all machines."""
    gpu_memory: float = 80.0
    """Memory of each in GB (1e9 bytes)."""
    shape: tuple[int, ...] = ()
    """Shape of one sample, as in --shape 32 16 16; default: that of the recipe's data."""
    on: Literal["cuda", "cpu"] = "cuda"
    """cpu: what a CPU would take, without bf16, fused kernels and what CUDA itself needs."""
    hours: bool = False
    """Also count the floating-point operations of a step, and the hours that the run takes on H100s from that."""


TRAIN, PLAN, ENGINE = TrainOptions(), PlanOptions(), Engine()


def train(recipe: RecipeName, options: Group[TrainOptions] = TRAIN) -> None:
    """Train a recipe. Each recipe has options of its own: facm train RECIPE --help. The recipes: facm list.

    Args:
        recipe: a name such as digits-teacher, or a function in any file: mine.py:run.
    """


def plan(recipe: RecipeName, options: Group[PlanOptions] = PLAN) -> None:
    """Predict the memory that a recipe takes on each GPU, without one. A recipe's options: facm plan RECIPE --help.

    Args:
        recipe: a name such as digits-teacher, or a function in any file: mine.py:run.
    """


def run_train(words: list[str], prog: str) -> None:
    recipe, options, run, engine = recipe_options.parse_recipe(train, words, prog, TRAIN)
    if options.precision is not None:
        run = dataclasses.replace(run, precision=options.precision)
    if options.print_config:
        from facm.core.serialize import to_json

        say_text(json.dumps(to_json(run), indent=2) + "\n")
        return
    _train(recipe, options, run, engine)


def _train(recipe: Recipe, options: TrainOptions, run: Run, engine: Engine) -> None:
    from facm.api.device import placed
    from facm.api.train import start
    from facm.cli.dry_run import dry_run
    from facm.distributed.collectives import by_first
    from facm.distributed.process_group import opened, restarts
    from facm.pretrained.trained import trust_sources
    from facm.training.checks import check

    out, resume = options.out or Path("runs") / recipe.name, options.resume or restarts() > 0
    if options.dry_run:
        with opened(engine) as ranks:
            world = placed(ranks, options.device)
            if options.trust_recipe:
                trust_sources(run)
            checked = check(run, engine, world.ranks)
            by_first(world, lambda: dry_run(checked, out, recipe.file, resume, engine, world))
        return
    session = Session(options.device, engine, options.quiet, options.tracker)
    _ended(start(run, out, session, recipe.spec, recipe.file, resume, options.trust_recipe), out, options.quiet)


def run_plan(words: list[str], prog: str) -> None:
    recipe, options, run, engine = recipe_options.parse_recipe(plan, words, prog, PLAN)
    from facm.training.memory_plan import plan as predict
    from facm.training.memory_plan import work

    memory, shape = 1e9 * options.gpu_memory, options.shape or None
    if not memory > 0:
        raise ValueError(f"--gpu-memory {options.gpu_memory:g}, expected a positive number of GB")
    found = predict(run, options.gpus, memory, engine, shape, options.on)
    where = f"{options.gpus} x {options.gpu_memory:g} GB, {engine.kind(options.gpus)}"
    say(f"{recipe.spec} on {where}, {found.batch} images at once")
    say(*in_flags(str(found), "plan").replace(", --", " --").splitlines())
    if options.hours:
        from facm.training.memory_plan.work import H100, UTILISATION

        counted = work(run, engine, shape)
        say(
            f"{counted.flops / 1e15:.3g} PFLOP a step, {counted.steps} steps: {counted.hours(options.gpus):.3g} hours "
            f"on {options.gpus} H100 at {UTILISATION:.0%} of {H100 / 1e12:.0f} TFLOP/s; counted, not measured"
        )


def resume(
    run: RunPath,
    device: str = "auto",
    quiet: bool = False,
    tracker: tuple[Tracker, ...] = (),
    trust_recipe: bool = False,
    engine: Advanced[Engine] = ENGINE,
) -> None:
    """Continue an interrupted run from its newest checkpoint; the result is the same as without the interruption.

    Args:
        run: the run's folder.
        device: where to compute: auto (a GPU if there is one), cpu, cuda, or a GPU's number as in cuda:1.
        quiet: print nothing but errors.
        tracker: send the log to tensorboard, wandb or trackio, too; several after each other.
        trust_recipe: execute the recipe files that came with the run, and with the runs that it starts or learns from,
            from now on, whoever wrote them.
        engine: how the run is executed, which may differ from before.
    """
    from facm.api.train import go_on

    _ended(go_on(run, Session(device, engine, quiet, tracker), trust_recipe), run, quiet)


def _ended(outcome: Outcome | None, out: Path, quiet: bool) -> None:
    """Print how a run ended; on other ranks than the first, nothing."""
    if outcome is None:
        return
    if not outcome.finished:
        say(f"{outcome.signal}: saved at {outcome.images} of {outcome.length} images; go on with: facm resume {out}")
    elif not quiet:
        spent = f"{outcome.images} images in {outcome.seconds:.0f} s, {outcome.skipped} steps skipped"
        say(f"done: {spent}: {out}")
