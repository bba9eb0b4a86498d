"""facm.load: a trained network to sample from, measure and give away."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from facm.api.device import Precision, in_precision, placed
from facm.api.open_network import Opening, open_network
from facm.api.searched import searched
from facm.core.component import shown
from facm.core.cond import Cond
from facm.core.cond import size as size_of
from facm.distributed.process_group import ALONE, World
from facm.flow.conditions import Labels, Unconditional
from facm.flow.guidance import Guidance
from facm.pretrained.trained import Trained
from facm.sampling.by_name import default_steps, method_by_name
from facm.sampling.generate import balanced_labels
from facm.sampling.in_blocks import sample_in_blocks
from facm.sampling.methods import Method
from facm.sampling.source import Source

if TYPE_CHECKING:
    from facm.evaluation.features import Features
    from facm.evaluation.row import Row
    from facm.latents.autoencoders.types import AutoencoderConfig
    from facm.latents.decode import ImageDecoder


def load(
    path: str | os.PathLike[str],
    *,
    ema: float | None = None,
    raw: bool = False,
    device: str = "auto",
    precision: Precision = "auto",
    run: Any = None,
    network: Any = None,
    data: Any = None,
    trust_recipe: bool = False,
    high_noise: str | os.PathLike[str] | None = None,
    family: str | None = None,
    weights: str | None = None,
    heads: int | None = None,
    learns_shortcut: bool | None = None,
    autoencoder: AutoencoderConfig | None = None,
    latent_stats: str | os.PathLike[str] | None = None,
    latent_scale: float | None = None,
) -> Model:
    """The newest network of the run in the folder ``path``, or the one in a published, exported or imported file.

    >>> import facm
    >>> student = facm.load("runs/first")
    >>> x = student.sample(8, seed=1)  # (8, 1, 8, 8) in [-1, 1]
    >>> student.picture(x).size
    (284, 32)

    ema: of a run, the EMA length sigma_rel; None: the first that it tracked. raw: its weights without EMA.
    device: "auto" (a GPU if there is one), "cpu", "cuda", or as in "cuda:1". precision: "fp32", which "auto" means
    here, or "bf16".
    run, network, data: parts that are in no file, see :func:`facm.resume`.
    trust_recipe: execute the recipe file that came with the run, whoever wrote it.
    high_noise: of the run of a low-noise half, the run of the high-noise half.
    family, weights, heads, learns_shortcut, autoencoder, latent_stats, latent_scale: of a file, where it does not say
    whose it is, which weights in it, how many attention heads, whether it is a student, and how latents become images;
    see :func:`facm.pretrained.from_file.load_file`.
    Raises RunFolderError, ValueError or CheckpointError naming what is missing or does not fit.
    """
    model = Model(
        Path(path),
        device=device,
        precision=precision,
        how=Opening(
            ema,
            raw,
            trust_recipe,
            None if high_noise is None else Path(high_noise),
            family,
            weights,
            heads,
            learns_shortcut,
            None if latent_stats is None else Path(latent_stats),
            latent_scale,
            autoencoder,
        ),
        known=(run, network, data),
    )
    _ = model.trained
    return model


class Model:
    """A trained network. It is opened when it is needed first.

    path: the run's folder, or the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        how: Opening | None = None,
        known: tuple[Any, Any, Any] = (None, None, None),
    ) -> None:
        self.path, self._device, self._precision = path, device, precision
        self._how, self._known = how or Opening(), known

    def __repr__(self) -> str:
        return f"facm.Model({str(self.path)!r})"

    @cached_property
    def world(self) -> World:
        """This process, on the chosen device."""
        return placed(ALONE, self._device)

    @cached_property
    def trained(self) -> Trained:
        """The network with how it is called and which weights these are."""
        from facm.api.known import made_known

        made_known(*self._known, out=self.path)
        return in_precision(open_network(self.path, self._how), self._precision, self.world.device)

    @property
    def network(self) -> torch.nn.Module:
        """The nn.Module itself, F(x, t, cond), in eval mode: t = 0 is noise, t = 1 is data."""
        return self.trained.network

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample as the network makes it, before a decoder."""
        return tuple(self.trained.dataset.shape)

    @property
    def images_seen(self) -> int | None:
        """The clock of the weights; None where a file does not say it."""
        return self.trained.images_seen

    @cached_property
    def decoder(self) -> ImageDecoder | None:
        """What makes images of the network's samples; None where they are images, or anything but latents."""
        return self.trained.decoder(self.world.device, self._how.autoencoder)

    def method(self, num_steps: int | None = None, sampler: str | Method = "auto", **schedule: Any) -> Method:
        """How samples are made of noise; see :meth:`sample`. schedule: head, shift and times of the sampler, see
        :func:`facm.sampling.by_name.method_by_name`."""
        interface = self.trained.interface
        if isinstance(sampler, str):
            steps = default_steps(interface) if num_steps is None else num_steps
            if sampler == "searched":
                if schedule:
                    raise ValueError(
                        f"{', '.join(schedule)} with sampler = searched, whose schedule says all of it; expected none"
                    )
                return searched(self.trained, steps)
            return method_by_name(interface, sampler, steps, **schedule)
        if not isinstance(sampler, Method):
            raise ValueError(f"sampler = {shown(sampler)}, expected a name, or a method such as facm.sampling.Heun(8)")
        if num_steps is not None and num_steps != sampler.nfe:
            raise ValueError(f"num_steps = {num_steps} with sampler = {sampler}, which has {sampler.nfe}; expected one")
        sampler.check(interface)
        return sampler

    def sample(
        self,
        n: int | None = None,
        num_steps: int | None = None,
        *,
        labels: int | Sequence[int] | Tensor | None = None,
        prompts: str | Sequence[str] | None = None,
        cond: Cond = None,
        seed: int = 0,
        sampler: str | Method = "auto",
        guidance_scale: float = 1.0,
        batch_size: int = 256,
        decode: bool = True,
        height: int = 0,
        width: int = 0,
        frames: int = 0,
        **schedule: Any,
    ) -> Tensor:
        """``n`` samples (n, *shape) float32 on the CPU; images are (n, C, H, W) about [-1, 1].

        >>> import facm
        >>> student = facm.load("runs/first")
        >>> student.sample(3, labels=7, num_steps=3, sampler="heun").shape
        torch.Size([3, 1, 8, 8])

        n: how many; None: one for each label or prompt, or 16.
        num_steps: network evaluations of each; None: 1 of a student, or as many as it has phases, 32 of a flow.
        labels: a class for all, or classes in turn; None: all classes in turn.
        prompts: of a text-to-image model, in turn; None: the first ones of its data. height, width, frames: of what it
        makes, in pixels; 0: as in its data.
        cond: a condition of another kind, as the data set gives it, one entry per sample.
        seed: sample i is a function of (seed, i) alone, whatever n and batch_size are.
        sampler: "auto", "consistency", "flow-jump", "phased", "jumps", "euler", "heun", "dpm", "edm", "searched"
        (``facm schedule``), or a method.
        guidance_scale: 1 for a student, which has learned guidance.
        decode: whether latents become images. schedule: see :meth:`method`.
        Raises ValueError naming the argument, its value and what was expected.
        """
        method = self.method(num_steps, sampler, **schedule)
        for name, value in (("batch_size", batch_size), *((("n", n),) if n is not None else ())):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} = {shown(value)}, expected a number of samples, at least 1")
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ValueError(f"seed = {shown(seed)}, expected an integer, 0 or more")
        source = self.trained.source(self.world.device)
        count, chosen, shape = self._conditions(n, labels, prompts, cond, height, width, frames)
        decoder = self.decoder if decode else None
        x = sample_in_blocks(
            dataclasses.replace(source, shape=shape or source.shape),
            method,
            count,
            chosen,
            seed,
            Guidance(guidance_scale),
            batch_size,
            decoder,
        )
        assert x is not None
        return x.float().cpu()

    @property
    def takes_prompts(self) -> bool:
        """Whether it is a text-to-image model."""
        return _prompted(self.trained) is not None

    def asked(
        self, n: int, labels: Sequence[int] | None = None, prompts: Sequence[str] | None = None
    ) -> tuple[Source, Cond]:
        """What :meth:`sample` draws from: the network, of the shape that it makes, and ``n`` samples' conditions."""
        source = self.trained.source(self.world.device)
        _, cond, shape = self._conditions(n, labels, prompts, None, 0, 0, 0)
        return dataclasses.replace(source, shape=shape or source.shape), cond

    def _conditions(
        self,
        n: int | None,
        labels: int | Sequence[int] | Tensor | None,
        prompts: str | Sequence[str] | None,
        cond: Cond,
        height: int,
        width: int,
        frames: int,
    ) -> tuple[int, Cond, tuple[int, ...] | None]:
        """How many samples, under which conditions, and of which shape where it is another than the data's."""
        given = {"labels": labels, "prompts": prompts, "cond": cond}
        if len(said := [name for name, value in given.items() if value is not None]) > 1:
            raise ValueError(f"{' and '.join(said)} are given, expected at most one of them")
        condition = self.trained.interface.condition
        if (prompted := _prompted(self.trained)) is not None:
            if labels is not None:
                raise ValueError(f"labels = {shown(labels)}, and {self.path} takes prompts: expected prompts")
            if cond is None:
                texts = [prompts] if isinstance(prompts, str) else list(prompts or ())
                return prompted(texts, n, self.world, (height, width, frames))
        elif prompts is not None:
            raise ValueError(f"prompts = {shown(prompts)}, and {self.path} takes none; expected a text-to-image model")
        if height or width or frames:
            what = f"height = {height}, width = {width}, frames = {frames}"
            raise ValueError(f"{what}, expected them with prompts only")
        if cond is not None:
            size = size_of(cond) or 1
            return size, cond, None
        if isinstance(condition, Labels):
            return *_labels(labels, n, condition), None
        if labels is not None:
            raise ValueError(f"labels = {shown(labels)}, and {self.path} is unconditional: expected None")
        if not isinstance(condition, Unconditional | None):
            raise ValueError(
                f"{self.path} is conditioned on {type(condition).__name__}, and cond = None: expected cond, with one "
                "entry per sample, as the data set gives it"
            )
        return n or 16, None, None

    def picture(self, x: Tensor, columns: int = 10) -> Any:
        """Samples as a picture of Pillow, which a notebook shows: images (n, C, H, W), or clips as rows of frames.

        Raises ValueError for samples that are neither."""
        return picture(x, columns)

    def evaluate(
        self,
        num_steps: int | Sequence[int] = (1, 2, 4),
        num_samples: int = 10_000,
        *,
        sampler: str | Method = "auto",
        guidance_scale: float = 1.0,
        seed: int = 0,
        batch_size: int = 256,
        labels: Literal["balanced", "random"] = "balanced",
        features: Features | None = None,
        fid_stats: str | os.PathLike[str] | None = None,
        real: str | os.PathLike[str] | None = None,
        clip: str | os.PathLike[str] | None = None,
        quantise: Literal["round", "truncate"] = "round",
        small_n: bool = False,
        frames_per_clip: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        record: bool = True,
    ) -> list[Row]:
        """Measure samples against real ones: a row for each number of steps, with its provenance.

        >>> import facm
        >>> rows = facm.load("runs/first").evaluate(num_steps=32, num_samples=50)
        >>> rows[0].method.nfe, rows[0].measurement.n
        (32, 50)

        num_steps, sampler, guidance_scale, seed, batch_size: as for :meth:`sample`. num_samples: in each row.
        labels: "balanced", or "random" as many papers draw them.
        features: the network that samples are compared in; None: FID's Inception with fid_stats or real, otherwise a
        small classifier of the run's own data.
        fid_stats: statistics of real images, an npz. real: a folder of real images. clip: a CLIP model's folder.
        quantise: how samples get their 8 bits. small_n: accept fewer samples than features.
        frames_per_clip: of each clip, measure so many. progress: called as (samples measured, n).
        record: append the rows to the run's evaluations.jsonl.
        Raises ValueError where there is nothing to measure against, or samples are not finite.
        """
        from facm.evaluation.choose import evaluator_for
        from facm.evaluation.evaluate import evaluate
        from facm.evaluation.row import append_row
        from facm.evaluation.samples import Sampling

        steps = (num_steps,) if isinstance(num_steps, int) else tuple(num_steps)
        if not steps:
            raise ValueError("num_steps is empty, expected at least one number of evaluations")
        methods = [self.method(k if isinstance(sampler, str) else None, sampler) for k in steps]
        evaluator = evaluator_for(
            self.trained,
            self.decoder,
            self.world,
            features=features,
            fid_stats=None if fid_stats is None else Path(fid_stats),
            real=None if real is None else Path(real),
            clip=None if clip is None else Path(clip),
            quantise=quantise,
            small_n=small_n,
            progress=progress,
            frames_per_clip=frames_per_clip,
        )
        rows = []
        for method in methods:
            guidance = Guidance(guidance_scale)
            sampling = Sampling(method, num_samples, seed, guidance, batch_size, labels, self.decoder, frames_per_clip)
            rows.append(evaluate(self.trained, sampling, evaluator))
            if record:
                append_row(self.trained, rows[-1])
        return rows

    def export(
        self,
        out: str | os.PathLike[str],
        to: Literal["weights", "diffusers", "lora", "comfyui"] = "weights",
        *,
        num_steps: int = 2,
        lora_rank: int | None = None,
        scheduler: Literal["stock", "facm", "flow-jump"] = "stock",
        dtype: Literal["fp32", "bf16"] = "fp32",
    ) -> Path:
        """Write the network into the new file or folder ``out``; its path.

        >>> import facm
        >>> file = facm.load("runs/first").export("first.safetensors")
        >>> facm.load(file).sample(2).shape
        torch.Size([2, 1, 8, 8])

        to: "weights": one file, NAME.safetensors, or NAME.pt in the layout of the authors' students; of a
        text-to-image student "diffusers": a whole pipeline, "lora": adapters, "comfyui": adapters by ComfyUI's names.
        num_steps, lora_rank, scheduler, dtype: of the latter three, see ``facm export --help``.
        Raises ValueError where ``out`` exists, or the network cannot be written so.
        """
        path = Path(out)
        if to == "weights":
            from facm.api.export import export_weights

            export_weights(self.trained, path)
        else:
            from facm.api.export import export_text_to_image

            export_text_to_image(self.trained, path, to, num_steps, lora_rank, scheduler, dtype)
        return path


def picture(x: Tensor, columns: int = 10) -> Any:
    """Samples as a picture of Pillow, which a notebook shows; see :meth:`Model.picture`."""
    import io

    from PIL import Image

    from facm.sampling.images import grid_png

    return Image.open(io.BytesIO(grid_png(x, columns)))


def _labels(labels: int | Sequence[int] | Tensor | None, n: int | None, condition: Labels) -> tuple[int, Tensor]:
    if labels is None:
        count = n or 16
        found = balanced_labels(condition, range(count))
        assert found is not None
        return count, found
    listed = [labels] if isinstance(labels, int) else [int(k) for k in labels]
    null = condition.classes
    if not listed:
        raise ValueError("labels is empty, expected at least one class, or None for all")
    if wrong := [k for k in listed if not 0 <= k <= null]:
        raise ValueError(f"labels = {wrong[0]}, expected 0 to {null - 1}, or {null} for no class")
    count = n or len(listed)
    return count, torch.tensor([listed[i % len(listed)] for i in range(count)])


def _prompted(trained: Trained) -> Callable[..., tuple[int, Cond, tuple[int, ...]]] | None:
    """What makes conditions of prompts; None for a network that takes none."""
    if not type(trained.config).__module__.startswith("facm.foundation."):
        return None
    from facm.foundation.network import DiffusersModel
    from facm.foundation.prompted import prompted

    if not isinstance(trained.config, DiffusersModel):
        return None
    config = trained.config

    def conditions(
        texts: list[str], n: int | None, world: World, sizes: tuple[int, int, int]
    ) -> tuple[int, Cond, tuple[int, ...]]:
        found = prompted(config, trained.dataset, texts, n, world, *sizes)
        return len(found.texts), found.cond, found.shape

    return conditions
