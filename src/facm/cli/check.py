"""facm check: what is wrong with a teacher, or with a network of one's own, before hours are spent on it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from facm.core.terminal import say_text

if TYPE_CHECKING:
    from facm.core.types import Data


def check(
    network: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.py:NAME|RUN|FILE|MODEL|RECIPE")],
    data: str | None = None,
    shape: tuple[int, ...] = (),
    out: Path = Path("check.png"),
    classes: int | None = None,
    noise_at: float | None = None,
    time_scale: float | None = None,
    predicts: Literal["velocity", "noise"] = "velocity",
    input_name: str = "",
    time_name: str = "",
    cond_name: str | None = None,
    guidance_scale: float = 1.0,
    batch_size: int = 128,
    gpu_memory: float = 80.0,
    seed: int = 0,
    device: str = "auto",
    ema: float | None = None,
    trust_recipe: bool = False,
) -> None:
    """Look at a teacher, or at a network of your own, in seconds: its convention, condition, state, tangent, forward
    mode and memory; what is wrong, and the line to write. The exit status is 1 where something is wrong.

    Args:
        network: a network, a function that makes one, or a run, by name in a Python file; a run's folder, a file of
            weights, a model of diffusers, or a recipe.
        data: what it was trained on, FILE.py:NAME; a folder of images, with --shape; of MODEL, the prepared folder.
        shape: of one sample, as in --shape 3 32 32, where there are no data.
        out: picture of samples by the flow below a row of data; a number is added to a name that is taken.
        classes: number of classes of the data's labels, where they do not say it.
        noise_at: time of the network at noise, which is held against the measured one.
        time_scale: range of that time.
        predicts: what the network predicts; noise: as a DDPM of 1000 timesteps.
        input_name: the network's argument for x, unless it has a usual name.
        time_name: its argument for time.
        cond_name: its argument for the condition.
        guidance_scale: guidance that a student is to learn.
        batch_size: samples of the step whose memory is counted.
        gpu_memory: GB of a GPU that it is held against.
        seed: of the noise.
        device: where to compute: auto (a GPU if there is one), cpu, cuda, or a GPU's number as in cuda:1.
        ema: of a run: EMA length sigma_rel.
        trust_recipe: of a run: execute the recipe file that came with it, from now on, whoever wrote it.
    """
    import facm

    found = facm.check(
        _network(network),
        _data(network, data, shape),
        shape=shape,
        out=_free(out),
        classes=classes,
        noise_at=noise_at,
        time_scale=time_scale,
        predicts=predicts,
        input_name=input_name,
        time_name=time_name,
        cond_name=cond_name,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        gpu_memory=gpu_memory,
        seed=seed,
        device=device,
        ema=ema,
        trust_recipe=trust_recipe,
        quiet=True,
    )
    say_text(f"{found}\n", {r"(?m)^ok": "green", r"(?m)^WRONG": "bold red", r"(?m)^note": "yellow"})
    if not found.good:
        raise SystemExit(1)


def _network(spec: str) -> Any:
    """What ``spec`` names: an object in a Python file, a recipe's run, or a path."""
    from facm.cli.lookup import find_object, find_recipe, is_name_of_a_recipe

    if (found := find_object(spec)) is not None:
        return found
    if is_name_of_a_recipe(spec) and not Path(spec).exists():
        return find_recipe(spec).function()
    return Path(spec)


def _data(network: str, spec: str | None, shape: tuple[int, ...]) -> Any:
    """The data that ``spec`` names: an object in a Python file, or a folder. network: as it was named."""
    from facm.cli.lookup import find_object

    if spec is None:
        return None
    if (found := find_object(spec)) is not None:
        return found
    if (Path(network) / "model_index.json").exists():
        return spec
    return _folder(spec, shape)


def _folder(path: str, shape: tuple[int, ...]) -> Data:
    """Latents, or images of a size. Raises ValueError for a folder of images without one."""
    from facm.data import ImageFolder
    from facm.latents import Latents

    folder = Path(path).expanduser()
    is_zip = folder.suffix.lower() == ".zip" and folder.is_file()
    if not (folder.is_dir() or is_zip):
        raise ValueError(f"--data {path}, expected FILE.py:NAME, or a folder of images or latents")
    if not is_zip and any(folder.glob("*.safetensors")):
        return Latents(path)
    if len(shape) != 3 or shape[1] != shape[2] or shape[0] not in (1, 3):
        raise ValueError(f"--data {path} with --shape {shape}, expected --shape of its images, as in --shape 3 32 32")
    channels: Literal[1, 3] = 1 if shape[0] == 1 else 3
    with contextlib.suppress(ValueError):  # of images that lie in no class folder
        found = ImageFolder(path, shape[1], channels=channels)
        found.open()
        return found
    return ImageFolder(path, shape[1], classes_from_folders=False, channels=channels)


def _free(out: Path) -> Path:
    """``out``, with a number where the name is taken."""
    taken, k = out, 1
    while taken.exists():
        k += 1
        taken = out.with_name(f"{out.stem}-{k}{out.suffix}")
    return taken
