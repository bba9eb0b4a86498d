"""facm list | show | demo."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from facm.core.terminal import console, plain, say

if TYPE_CHECKING:
    from rich.tree import Tree

    from facm.runs.config import Run
    from facm.runs.folder import RunFolder


def list_all() -> None:
    """List the package's recipes and studies."""
    say("recipes:")
    _list_recipes()
    say("", "studies:")
    _list_studies()


def show(
    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|RECIPE")], trust_recipe: bool = False
) -> None:
    """Show what a recipe or a run is. The recipes and studies: facm list.

    Args:
        what: a run's folder, a recipe's name, or mine.py:run.
        trust_recipe: execute the recipe file that came with the run, from now on, whoever wrote it.
    """
    if what == "recipes":
        _list_recipes()
    elif what == "studies":
        _list_studies()
    elif os.path.lexists(Path(what) / "run.json"):
        from facm.runs.folder import open_run

        folder, run = open_run(Path(what), trust_recipe)
        _show_run(run, what)
        _show_state(folder, run)
    elif Path(what).is_dir():
        raise ValueError(f"{what} is a folder without run.json: not a run")
    else:
        from facm.cli.lookup import did_you_mean, find_recipe, is_name_of_a_recipe, recipes

        if not is_name_of_a_recipe(what) and not os.path.lexists(what):
            close = did_you_mean(what, recipes())
            raise ValueError(f"{what!r}: no such run's folder, and no recipe of this name: {close}facm list shows all")
        recipe = find_recipe(what)
        _show_run(recipe.function(), f"recipe {recipe.spec}")


def demo(
    what: Annotated[Literal["digits", "text"], tyro.conf.Positional] = "digits",
    out: Path | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> None:
    """From nothing to a one-step generator of digits, with numbers and pictures, in about five minutes on two cores;
    or, with "text", to one that follows prompts and runs in diffusers, in about ten.

    Args:
        what: digits: a network of this package, for class labels; text: a text-to-image pipeline of diffusers.
        out: folder for everything, runs/demo or runs/demo-text unless given; an interrupted demo continues where it
            stopped, a finished one is shown again.
        seed: seed of all random numbers.
        quiet: print only the table and where the report is.
    """
    if what == "text":
        from facm.studies.text_demo.demo import run_text_demo

        run_text_demo(out or Path("runs/demo-text"), seed, quiet)
    else:
        from facm.studies.demo import run_demo

        run_demo(out or Path("runs/demo"), seed, quiet)


def evaluation_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print one line for each row of an evaluation, and what they are relative to."""
    from rich import box
    from rich.table import Table

    scored = any(row.get("clip_score") is not None for row in rows)
    columns = ["NFE", "sampler", "EMA", "w", "Frechet distance", "precision", "recall", "accuracy"]
    columns += ["CLIP"] * scored + ["n"]
    table = Table(*columns, box=box.SIMPLE, padding=0)  # fits into 80 characters
    for row in rows:
        numbers = [row["frechet_distance"], row["precision"], row["recall"], row["accuracy"]]
        numbers += [row.get("clip_score")] * scored
        cells = ["-" if value is None else f"{value:.3f}" for value in numbers]
        ema = "none" if row["ema"] is None else f"{row['ema']:g}"
        scale = f"{row['guidance']['scale']:g}"
        table.add_row(str(row["nfe"]), plain(row["sampler"]), ema, scale, *cells, str(row["n"]))
    terminal = console()
    terminal.print(table)
    for line in _relative_to(rows[-1]) if rows else ():
        terminal.print(plain(line), style="dim")


def _relative_to(row: dict[str, Any]) -> list[str]:
    """More numbers of the last row, and what all of them are relative to."""
    scores = {"inception_score": "Inception score", "kid": "KID"}
    more = [f"{name} {row[key]:.4g} +- {row[f'{key}_std']:.2g}" for key, name in scores.items() if row.get(key)]
    lines = [f"last row: {', '.join(more)}"] if more else []
    if row.get("clip"):
        lines.append(f"CLIP score: {row['clip']}")
    if row["features"] is None:
        return lines  # nothing real was compared with
    n = "an unknown number of" if row["n_reference"] is None else row["n_reference"]
    file = f" in {row['reference_file']}" if row.get("reference_file") else ""
    lines.append(f"features: {row['features']}; reference: {n} real samples{file}")
    if name := row.get("metric_names", {}).get("frechet_distance"):
        lines.append(f"the Frechet distance is {name}")
    if row.get("metric_names") and row.get("not_comparable"):
        lines.append(f"not comparable to published: {'; '.join(row['not_comparable'])}")
    return lines


def _list_recipes() -> None:
    from facm.cli.lookup import recipes

    for name, (_, summary) in recipes().items():
        say(name, f"    {summary}")
    say("facm train RECIPE; its options: facm train RECIPE --help")


def _list_studies() -> None:
    from facm.cli.lookup import studies

    for name, summary in studies().items():
        say(name, f"    {summary}")
    say("facm study NAME; its options: facm study --help")


def _show_run(run: Run, title: str) -> None:
    from rich.text import Text
    from rich.tree import Tree

    from facm.core.modules import without_memory

    tree = Tree(Text(plain(title), "bold"))
    _grow(tree, run)
    parameters = sum(p.numel() for p in without_memory(run.network.build).parameters())
    tree.add(f"parameters: {parameters:,}")
    console().print(tree)


def _grow(tree: Tree, value: Any) -> None:
    from rich.text import Text

    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            _grow(tree.add(Text.assemble(f"{field.name}: ", (type(item).__name__, "cyan"))), item)
        else:
            tree.add(plain(f"{field.name} = {item!r}"), highlight=True)


def _show_state(folder: RunFolder, run: Run) -> None:
    from facm.runs import log as logs
    from facm.runs.checkpointer import reached

    images = reached(folder, run)
    state = "finished" if images >= run.images else f"unfinished: facm resume {folder.path}"
    say(f"{images:,} of {run.images:,} images ({state}), {len(folder.ema_snapshots())} EMA snapshots")
    with _records_of(folder.log):
        if records := logs.read(folder.log):
            said = (_spelled(*item) for item in records[-1].items() if item[0] != "warning")
            say(f"last log record: {', '.join(said)}")
        for warning in (record["warning"] for record in records if "warning" in record):
            say(f"warned: {warning}")
    with _records_of(folder.evaluations):
        if folder.evaluations.exists():
            evaluation_table(logs.read(folder.evaluations))


@contextlib.contextmanager
def _records_of(file: Path) -> Iterator[None]:
    """Records that lack what they are shown with, or hold something else there, are an error that names their file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ValueError) and str(file) in str(error):
            raise
        raise ValueError(
            f"{file} holds records that are not this package's ({type(error).__name__}: {error})"
        ) from error


def _spelled(name: str, value: object) -> str:
    """One value of the log. A term that a user's loss reports may be anything."""
    return f"{name} {value:.4g}" if isinstance(value, int | float) else f"{name} {value}"
