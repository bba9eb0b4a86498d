"""The command line: facm train | resume | plan | sample | evaluate | export | show | demo.

Heavy imports wait until a command runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from facm import __version__
from facm.engine import Engine
from facm.memory import keep_freed_memory

if TYPE_CHECKING:
    from facm.generate import Method
    from facm.guidance import Guidance
    from facm.parallel.world import World
    from facm.recipes.find import Recipe
    from facm.record import RunFolder
    from facm.run import Run
    from facm.state import State
    from facm.trained import Trained

DEFAULT = Engine()
Sampler = Literal["auto", "consistency", "euler", "heun"]
Head = Literal["auto", "native", "anchor"]
T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the ``facm`` command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    keep_freed_memory()
    with _readable_errors():
        if arguments == ["--version"]:
            print(f"facm {__version__}")
            return
        of_recipe = {"train": _train, "plan": _plan}.get(arguments[0]) if arguments[1:] else None
        if of_recipe is not None and not arguments[1].startswith("-"):
            of_recipe(arguments[1], arguments[2:])
            return
        commands: dict[str, Callable[..., Any]] = {
            "train": train,
            "resume": resume,
            "sample": sample,
            "evaluate": evaluate,
            "export": export,
            "plan": plan,
            "show": show,
            "demo": demo,
        }
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="facm",
            description="Turn any flow-matching network into a 1-4 step image generator. Start with: facm demo",
            args=arguments or ["--help"],
        )


@contextlib.contextmanager
def _readable_errors() -> Iterator[None]:
    """Errors that a user can cause are one message; FACM_DEBUG=1 shows where they come from."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except (
        ValueError,
        TypeError,
        OSError,
        RuntimeError,
        ArithmeticError,
        LookupError,
        ImportError,
        SyntaxError,
    ) as error:
        if os.environ.get("FACM_DEBUG"):
            raise
        if type(error).__name__ == "PeerError":  # another rank says it
            raise SystemExit(2) from error
        rank = os.environ.get("RANK", "0")
        who = "" if rank == "0" else f"rank {rank}: "
        where = traceback.extract_tb(error.__traceback__)[-1]
        if not isinstance(error, ValueError | OSError) and type(error).__module__ == "builtins":
            place = f"{where.filename}:{where.lineno}"
            print(f"{who}unexpected {type(error).__name__} in {place} (all of it with FACM_DEBUG=1)", file=sys.stderr)
        print(f"{who}error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


# --- train -----------------------------------------------------------------------------------------------------------


def train(recipe: Annotated[str, tyro.conf.Positional]) -> None:
    """Train a recipe; its options: facm train RECIPE --help, the recipes: facm show recipes.

    Args:
        recipe: a name such as digits-teacher, or a function in any file: mine.py:run.
    """
    raise AssertionError("handled by main")


def _train(spec: str, arguments: list[str]) -> None:
    from facm.recipes.find import find

    recipe = find(spec)
    chosen, run, engine = _parse_run("train", recipe, arguments, TrainOptions())
    from facm.parallel.agree import by_first
    from facm.parallel.world import opened, restarts
    from facm.record import LockedError, RunFolder, create, create_or_continue, discard
    from facm.training import check, check_engine

    out = chosen.out or Path("runs") / recipe.name
    make: Any = create_or_continue if chosen.resume or restarts() else create
    with opened(engine) as world:
        check(run)  # before there is a folder
        engine.check(run.batch_size, world.ranks)
        check_engine(run, engine)
        by_first(world, lambda: make(out, run, recipe.spec, recipe.file) and None)
        folder = RunFolder(out)
        try:
            _run_to_end(run, folder, chosen.quiet, engine, world)
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
    from facm.run import Run

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
        raise ValueError(f"recipe {recipe.spec} returned {type(first).__name__}, expected a facm.run.Run")

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


def _plan(spec: str, arguments: list[str]) -> None:
    from facm.plan import plan as predict
    from facm.recipes.find import find

    chosen, run, engine = _parse_run("plan", find(spec), arguments, PlanOptions())
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


def _run_to_end(run: Run, folder: RunFolder, quiet: bool, engine: Engine, world: World) -> bool:
    """Train with progress and sample grids, say how it ended; False if it was interrupted."""
    from facm.progress import progress
    from facm.training import train as train_run

    def draw(state: State) -> None:
        _draw(state, run, folder)

    with progress(run, folder.path.name, quiet or not world.first) as report:
        outcome = train_run(run, folder, report=report, on_checkpoint=draw, engine=engine, world=world)
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


def _draw(state: State, run: Run, folder: RunFolder) -> None:
    """A small grid of the first EMA's samples, from the same noise at every checkpoint."""
    from facm.preview import draw_preview

    draw_preview(state, run, folder.samples / f"{state.images:012d}.png")


def resume(run: Annotated[Path, tyro.conf.Positional], engine: Engine = DEFAULT, quiet: bool = False) -> None:
    """Continue an interrupted run from its newest checkpoint; the result is the same as without the interruption.

    Args:
        run: the run's folder.
        engine: how it is executed, which may differ from before.
        quiet: print nothing but errors.
    """
    from facm.parallel.world import opened
    from facm.record import open_run

    with opened(engine) as world:
        folder, configured = open_run(run)
        _run_to_end(configured, folder, quiet, engine, world)


# --- sample and evaluate ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How samples are made."""

    sampler: Sampler = "auto"
    """auto: consistency for a network with a shortcut, Euler for a flow-matching one."""
    head: Head = "auto"
    """For Euler and Heun: the native time of a teacher, or the anchor of a FACM student."""
    shift: float = 1.0
    """Schedule shift s t / (1 + (s - 1) t); above 1 spends more steps near data."""
    times: tuple[float, ...] = ()
    """Consistency only: the schedule itself, from 0, one time per evaluation."""
    guidance_scale: float = 1.0
    """Guidance w >= 1. A student that was distilled with guidance is sampled with 1."""
    guidance_low: float = 0.125
    """Guidance acts from this time on."""
    guidance_high: float = 1.0
    """Guidance acts up to this time."""
    ema: float | None = None
    """EMA length sigma_rel; any length if the run kept snapshots; default: the run's first."""
    raw: bool = False
    """Use the raw weights instead of an EMA."""
    seed: int = 0
    """Seed of all noise; sample i depends on the seed and i alone."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}, expected 0 or more")

    def guidance(self) -> Guidance:
        from facm.guidance import Guidance

        return Guidance(self.guidance_scale, self.guidance_low, self.guidance_high)

    def method(self, trained: Trained, nfe: int) -> Method:
        from facm.evaluation.evaluate import default_method
        from facm.generate import Consistency, Euler, Heun

        if nfe < 1:
            raise ValueError(f"--nfe {nfe}: zero steps make no sample; expected at least 1")
        if self.sampler == "auto":
            default = default_method(trained.objective, nfe)
            kind = "consistency" if isinstance(default, Consistency) else "euler"
        else:
            kind = self.sampler
        if kind == "consistency":
            method = Consistency(nfe, self.shift, self.times or None)
            method.schedule()  # now, rather than after the work that comes before sampling
            return method
        if self.times:
            raise ValueError(f"--times {self.times} with --sampler {kind}, expected them with consistency only")
        learnt = getattr(trained.objective, "learns_shortcut", False)
        head = ("anchor" if learnt else "native") if self.head == "auto" else self.head
        return (Euler if kind == "euler" else Heun)(nfe, head, self.shift)


def sample(
    run: Annotated[Path, tyro.conf.Positional],
    options: Annotated[SamplingOptions, tyro.conf.arg(name="")] = SamplingOptions(),
    nfe: int = 1,
    n: int = 100,
    classes: tuple[int, ...] = (),
    out: Path | None = None,
    npz: bool = False,
) -> None:
    """Draw samples from a run's newest network into a PNG grid.

    Args:
        run: the run's folder.
        nfe: network evaluations a sample.
        n: how many samples.
        classes: labels, repeated in turn; default: all classes.
        out: PNG to write; default: a new file in RUN/samples/. A file that exists is not overwritten.
        npz: also write the images (uint8) and labels as NumPy arrays beside the PNG.
    """
    from facm.parallel.world import opened

    if n < 1:
        raise ValueError(f"--n {n}, expected at least one sample")
    if out is not None and out.suffix.lower() != ".png":
        raise ValueError(f"--out {out}, expected a name that ends in .png")
    if out is not None and (taken := [file for file in (out, out.with_suffix(".npz")) if file.exists()]):
        raise ValueError(f"--out {out}: {taken[0]} exists and is not overwritten; choose another name")
    with opened(DEFAULT) as world:
        _sample(run, options, nfe, n, classes, out, npz, world)


def _sample(
    run: Path,
    options: SamplingOptions,
    nfe: int,
    n: int,
    classes: tuple[int, ...],
    out: Path | None,
    npz: bool,
    world: World,
) -> None:
    import torch

    from facm.conditions import Labels
    from facm.evaluation.evaluate import source_of
    from facm.generate import balanced_labels, blocks
    from facm.generate import sample as draw
    from facm.images import save_grid, to_uint8
    from facm.parallel.agree import in_order
    from facm.trained import load_trained

    trained = load_trained(run, options.ema, options.raw)
    method = options.method(trained, nfe)
    name = f"{trained.images_seen:012d}-{type(method).__name__.lower()}{nfe}-seed{options.seed}"
    target = out or _unused(run / "samples", name)
    source = source_of(trained, trained.data.open().shape, world.device)
    cond = balanced_labels(source.condition, range(n))
    if classes:
        if not isinstance(source.condition, Labels):
            raise ValueError(f"--classes {classes}, but the network is unconditional")
        null = source.condition.classes
        if wrong := [k for k in classes if not 0 <= k <= null]:
            raise ValueError(f"--classes {wrong[0]}, expected 0 to {null - 1}, or {null} for no class")
        cond = torch.tensor([classes[i % len(classes)] for i in range(n)])

    def block(indices: range) -> tuple[torch.Tensor]:
        labels = None if cond is None else cond[indices.start : indices.stop]
        return (draw(source, method, indices, labels, options.seed, options.guidance()),)

    parts = [part for _, (part,) in in_order(world, blocks(n), block) if part is not None]
    if not world.first:
        return
    x = torch.cat(parts)
    save_grid(target, x)
    print(f"{n} samples, {type(method).__name__} with {nfe} evaluations: {target}")
    if npz:
        import numpy as np

        labels = np.zeros(0, np.int64) if cond is None else cond.numpy()
        np.savez_compressed(target.with_suffix(".npz"), images=to_uint8(x), labels=labels)


def _unused(folder: Path, name: str) -> Path:
    """A PNG's path in ``folder``, numbered where the name is taken."""
    names = itertools.chain([name], (f"{name}-{k}" for k in itertools.count(2)))
    paths = (folder / f"{name}.png" for name in names)
    return next(path for path in paths if not (path.exists() or path.with_suffix(".npz").exists()))


def evaluate(
    run: Annotated[Path, tyro.conf.Positional],
    options: Annotated[SamplingOptions, tyro.conf.arg(name="")] = SamplingOptions(),
    nfe: tuple[int, ...] = (1, 2, 4),
    n: int = 10_000,
    quiet: bool = False,
) -> None:
    """Measure a run's newest network against its data; rows with their provenance go to RUN/evaluations.jsonl.

    Args:
        run: the run's folder.
        nfe: network evaluations a sample, one row for each.
        n: samples for each row.
        quiet: print nothing but errors.
    """
    from facm.evaluation.evaluate import evaluate as measure
    from facm.evaluation.evaluate import judge
    from facm.parallel.world import opened
    from facm.trained import load_trained

    if n < 2:
        raise ValueError(f"--n {n}, expected at least 2 samples to measure")
    if not nfe:
        raise ValueError("--nfe is empty, expected at least one number of evaluations")
    guidance = options.guidance()
    with opened(DEFAULT) as world:
        trained = load_trained(run, options.ema, options.raw)
        methods = [options.method(trained, k) for k in nfe]
        judged = judge(trained.data.open(), world.device, world=world)
        rows = [
            measure(trained, method, judged, n=n, seed=options.seed, guidance=guidance, world=world)
            for method in methods
        ]
    if world.first and not quiet:
        from facm.show import evaluation_table

        evaluation_table(rows)


def export(run: Annotated[Path, tyro.conf.Positional], out: Path, ema: float | None = None, raw: bool = False) -> None:
    """Write a run's newest network into one plain safetensors file, whatever engine trained it.

    Args:
        run: the run's folder.
        out: the file to write, NAME.safetensors. A file that exists is not overwritten.
        ema: EMA length sigma_rel; any length if the run kept snapshots; default: the run's first.
        raw: the raw weights instead of an EMA.
    """
    from facm.trained import export as write
    from facm.trained import load_trained

    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out}, expected a name that ends in .safetensors")
    if out.exists():
        raise ValueError(f"--out {out} exists and is not overwritten; choose another name")
    trained = load_trained(run, ema, raw)
    write(trained, out)
    which = "raw weights" if trained.sigma_rel is None else f"EMA {trained.sigma_rel}"
    print(f"{which} at {trained.images_seen} images: {out}")


# --- show and demo ---------------------------------------------------------------------------------------------------


def show(what: Annotated[str, tyro.conf.Positional]) -> None:
    """Say what a recipe or a run is; 'recipes' lists the package's recipes.

    Args:
        what: a recipe's name, mine.py:run, a run folder, or the word recipes.
    """
    from facm.show import show_anything

    show_anything(what)


def demo(out: Path = Path("runs/demo"), seed: int = 0, quiet: bool = False) -> None:
    """From nothing to a one-step generator of digits, with numbers and pictures, in about five minutes on two cores.

    Args:
        out: folder for everything; an interrupted demo goes on where it stopped, a finished one is shown again.
        seed: of everything random.
        quiet: print only the table and where the report is.
    """
    from facm.demo import run_demo

    run_demo(out, seed, quiet)


if __name__ == "__main__":
    main()
