"""facm weights export | import: files of weights, out and in."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from facm.core.terminal import say, warn

if TYPE_CHECKING:
    from facm.latents.statistics import Statistics
    from facm.pretrained.trained import Trained
    from facm.sampling.schedule import Schedule


def export(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    out: Path,
    ema: float | None = None,
    raw: bool = False,
    trust_recipe: bool = False,
) -> None:
    """Write a run's newest network into one file, whatever engine trained it.

    Args:
        run: the run's folder.
        out: file to write: NAME.safetensors, or NAME.pt in the layout of the authors' students. An existing file is
            not overwritten.
        ema: EMA length sigma_rel; any length if the run kept snapshots; default: the run's first.
        raw: the raw weights instead of an EMA.
        trust_recipe: execute the recipe file that came with the run, from now on, whoever wrote it.
    """
    from facm.flow.phases import WHOLE
    from facm.pretrained import export_reference
    from facm.pretrained.trained import export as write
    from facm.pretrained.trained import load_trained
    from facm.runs.folder import RunFolder

    if out.suffix not in (".safetensors", ".pt"):
        raise ValueError(
            f"--out {out}, expected a name that ends in .safetensors, or in .pt for the authors' layout; text-to-image "
            "students are written with facm export --to"
        )
    if out.exists():
        raise ValueError(f"--out {out} exists and is not overwritten; choose another name")
    trained = load_trained(run, ema, raw, trust_recipe=trust_recipe)
    bounds = trained.interface.bounds
    if out.suffix == ".pt" and bounds != WHOLE:
        raise ValueError(
            f"--out {out}: {run} jumps to the ends of its phases, {bounds}, which the authors' layout cannot say, "
            "nor their sampler do; expected NAME.safetensors"
        )
    if out.suffix == ".pt":
        export_reference(trained.network, trained.config, out, trained.interface.learns_shortcut)
        schedule = None
    else:
        schedule = _schedule(trained)
        write(trained, out, _statistics(trained), schedule)
    if schedule is None and RunFolder(run).schedule.exists():
        warn(
            f"without the searched schedule of {run}, which "
            + ("the authors' layout cannot hold" if out.suffix == ".pt" else "is of other weights, or damaged")
        )
    which = "raw weights" if trained.sigma_rel is None else f"EMA {trained.sigma_rel}"
    say(f"{which} at {trained.images_seen} images: {out}")


def _schedule(trained: Trained) -> Schedule | None:
    """The run's searched schedule, where it is of these weights."""
    with contextlib.suppress(ValueError):
        found = trained.schedule()
        return found if found.network == trained.identity else None
    return None


def _statistics(trained: Trained) -> Statistics | None:
    """Of the run's latents. Without its data, the file will be without them, too."""
    try:
        return getattr(trained.data.open(), "statistics", None)
    except ValueError as error:
        warn(f"without latent statistics: {error}")
        return None


def import_weights(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    out: Path,
    family: str | None = None,
    weights: str | None = None,
    heads: int | None = None,
) -> None:
    """Convert a published checkpoint into one safetensors file, without executing anything in it.

    Args:
        file: a checkpoint of DiT, SiT, REPA, LightningDiT, FACM or EDM, of a training or released.
        out: file to write, NAME.safetensors. An existing file is not overwritten.
        family: whose file it is, where its content fits several: facm, lightningdit, sit, repa, dit or edm.
        weights: which weights in it, such as model; default: its EMA, the longest of several.
        heads: attention heads, where the network has no published size and its weights do not determine them.
    """
    from facm.pretrained import import_file

    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out}, expected a name that ends in .safetensors")
    found = import_file(file, out, family, weights, heads)
    classes = "unconditional" if found.num_classes is None else f"{found.num_classes} classes"
    learnt = {True: "with a shortcut", False: "a teacher", None: "which does not say whether it has a shortcut"}
    say(f"{found.which} of {file}, {found.family}, {found.shape}, {classes}, {learnt[found.learns_shortcut]}: {out}")
    if found.dropped:
        say(f"left out: {len(found.dropped)} parameters that only training needs, such as {found.dropped[0]}")
