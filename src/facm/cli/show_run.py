"""What a recipe or a run is, on the terminal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from facm.cli.lookup import find_recipe, recipes
from facm.runs import log as logs
from facm.runs.config import Run
from facm.runs.folder import RunFolder, open_run

console = Console()


def show_anything(what: str) -> None:
    """Recipes, one recipe, or one run folder."""
    if what == "recipes":
        for name, (_, summary) in recipes().items():
            console.print(f"[bold]{name}[/bold]\n    {escape(summary)}", soft_wrap=True, highlight=False)
        console.print("facm train RECIPE; its options: facm train RECIPE --help", style="dim")
    elif (Path(what) / "run.json").exists():
        folder, run = open_run(Path(what))
        _show_run(run, what)
        _show_state(folder, run)
    elif Path(what).is_dir():
        raise ValueError(f"{what} is a folder without run.json: not a run")
    else:
        recipe = find_recipe(what)
        _show_run(recipe.function(), f"recipe {recipe.spec}")


def evaluation_table(rows: Sequence[dict[str, Any]]) -> None:
    columns = ("NFE", "sampler", "EMA", "w", "Frechet distance", "precision", "recall", "accuracy", "n")
    table = Table(*columns, box=box.SIMPLE, padding=0)  # fits into 80 characters
    for row in rows:
        numbers = [row["frechet_distance"], row["precision"], row["recall"], row["accuracy"]]
        cells = ["-" if value is None else f"{value:.3f}" for value in numbers]
        ema = "none" if row["ema"] is None else f"{row['ema']:g}"
        table.add_row(str(row["nfe"]), row["sampler"], ema, f"{row['guidance']['scale']:g}", *cells, str(row["n"]))
    console.print(table)
    if rows:
        _say_what_they_are(rows[-1])


def _say_what_they_are(row: dict[str, Any]) -> None:
    """Under the table: more numbers of the last row, and what all of them are relative to."""
    scores = {"inception_score": "Inception score", "kid": "KID"}
    said = [f"{name} {row[key]:.4g} +- {row[f'{key}_std']:.2g}" for key, name in scores.items() if row.get(key)]
    if said:
        console.print(f"last row: {', '.join(said)}")
    n = "an unknown number of" if row["n_reference"] is None else row["n_reference"]
    file = f" in {row['reference_file']}" if row.get("reference_file") else ""
    console.print(escape(f"features: {row['features']}; reference: {n} real samples{file}"), style="dim")
    if name := row.get("metric_names", {}).get("frechet_distance"):
        console.print(escape(f"the Frechet distance is {name}"), style="dim")
    if row.get("metric_names") and row.get("not_comparable"):
        console.print(escape(f"not comparable to published: {'; '.join(row['not_comparable'])}"), style="dim")


def _show_run(run: Run, title: str) -> None:
    tree = Tree(f"[bold]{escape(title)}[/bold]")
    _grow(tree, run)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in run.network.build().parameters())
    tree.add(f"parameters: {parameters:,}")
    console.print(tree)


def _grow(tree: Tree, value: Any) -> None:
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            _grow(tree.add(f"{field.name}: [cyan]{type(item).__name__}[/cyan]"), item)
        else:
            tree.add(escape(f"{field.name} = {item!r}"), highlight=True)


def _show_state(folder: RunFolder, run: Run) -> None:
    checkpoints = folder.checkpoints()
    images = int(checkpoints[-1].stem) if checkpoints else 0
    state = "finished" if images >= run.images else f"unfinished: facm resume {escape(str(folder.path))}"
    console.print(f"{images:,} of {run.images:,} images ({state}), {len(folder.ema_snapshots())} EMA snapshots")
    if last := logs.read(folder.log)[-1:]:
        console.print("last log record: " + ", ".join(f"{k} {v:.4g}" for k, v in last[0].items()))
    if folder.evaluations.exists():
        evaluation_table(logs.read(folder.evaluations))
