"""Which network a command samples, and how: the options that sample and evaluate share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from facm.api.device import Precision

if TYPE_CHECKING:
    import torch

    from facm.flow.guidance import Guidance
    from facm.latents.autoencoders.types import AutoencoderConfig
    from facm.latents.decode import ImageDecoder
    from facm.pretrained.trained import Trained
    from facm.sampling.methods import Method

Sampler = Literal["auto", "consistency", "flow-jump", "searched", "phased", "jumps", "euler", "heun", "dpm", "edm"]
Head = Literal["auto", "native", "anchor"]
NetworkPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|FILE")]


def check_number(n: int) -> None:
    """Raise ValueError for more samples than anybody can wait for."""
    from facm.core.component import shown
    from facm.sampling.generate import MOST_SAMPLES

    if n > MOST_SAMPLES:
        raise ValueError(f"--num-samples {shown(n)}, expected at most {MOST_SAMPLES}")


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How samples are made, and on what."""

    sampler: Sampler = "auto"
    """auto: consistency for a shortcut to the end, phased to ends of phases, jumps to any time, euler for a flow;
    flow-jump: flow, then shortcut; searched: by facm schedule; dpm: DPM-Solver++(2M)."""
    guidance_scale: float = 1.0
    """Guidance w >= 1. A student that was distilled with guidance is sampled with 1."""
    seed: int = 0
    """Seed of all noise; sample i depends on the seed and i alone."""
    device: str = "auto"
    """Where to compute: auto (a GPU if there is one), cpu, cuda, or a GPU's number as in cuda:1."""
    precision: Precision = "auto"
    """Precision of the network: fp32, which auto means here, or bf16 (autocast)."""
    compile: bool = False
    """torch.compile the network's blocks, once for each batch size: for many samples. Code is kept as training keeps
    it; see --engine.compile."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}, expected 0 or more")


@dataclasses.dataclass(frozen=True)
class SolverOptions:
    """Details of the solver."""

    head: Head = "auto"
    """For solvers of the flow: the native time of a teacher, or the anchor of a FACM student."""
    shift: float = 1.0
    """Schedule shift s t / (1 + (s - 1) t); above 1 spends more steps near data."""
    times: tuple[float, ...] = ()
    """Consistency, phased and jumps: the schedule itself, from 0, one time for each evaluation; flow-jump: 0, where its
    steps end and, of an even number, where noise leads back to."""
    guidance_low: float = 0.125
    """Guidance acts from this time on."""
    guidance_high: float = 1.0
    """Guidance acts up to this time."""

    def guidance(self, scale: float) -> Guidance:
        """Guidance of this scale in the interval."""
        from facm.flow.guidance import Guidance

        return Guidance(scale, self.guidance_low, self.guidance_high)

    def method(self, trained: Trained, sampler: Sampler, num_steps: int) -> Method:
        """The method with ``num_steps`` network evaluations. Raises ValueError where the network cannot do it."""
        from facm.sampling.by_name import method_by_name

        if sampler == "searched":
            return self._searched(trained, num_steps)
        return method_by_name(trained.interface, sampler, num_steps, self.head, self.shift, self.times)

    def _searched(self, trained: Trained, num_steps: int) -> Method:
        if self.times or self.shift != 1 or self.head != "auto":
            raise ValueError(
                "--times, --shift or --head with --sampler searched, whose schedule says all of it; expected none"
            )
        from facm.api.searched import searched

        return searched(trained, num_steps)


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Which weights of a run or a file, and how latents become images."""

    ema: float | None = None
    """Of a run: EMA length sigma_rel; any length if the run kept snapshots; default: the run's first."""
    raw: bool = False
    """Of a run: the raw weights instead of an EMA."""
    high_noise: Path | None = None
    """Of the run of a low-noise half (facm distill --student low-noise): the run of the high-noise half."""
    trust_recipe: bool = False
    """Of a run: execute the recipe file that came with it, from now on, whoever wrote it."""
    family: str | None = None
    """Of a file: whose it is, where its content fits several: facm, lightningdit, sit, repa, dit or edm."""
    weights: str | None = None
    """Of a file: which weights in it, such as model; default: its EMA, the longest of several."""
    heads: int | None = None
    """Of a file: attention heads, where the network has no published size and its weights do not determine them."""
    autoencoder: tuple[str, ...] = ()
    """Decoder of latents: a VA-VAE's file, a folder in the diffusers format, or TAEF2's encoder and decoder; default:
    the run's, or the one next to the file."""
    latent_stats: Path | None = None
    """Of a file: latent statistics of its training data; default: latents_stats.pt next to it."""
    latent_scale: float | None = None
    """Of a file: factor on latents that have no statistics; default: 0.18215 for SiT, REPA and DiT."""

    def open(self, path: Path, sampling: SamplingOptions) -> Trained:
        """The network of the run or in the file at ``path``. Raises ValueError for an option of the other kind."""
        from facm.api.open_network import Opening, is_file, open_network

        return open_network(
            path,
            Opening(
                self.ema,
                self.raw,
                self.trust_recipe,
                self.high_noise,
                self.family,
                self.weights,
                self.heads,
                _LEARNS_SHORTCUT.get(sampling.sampler, False) if is_file(path) else None,
                self.latent_stats,
                self.latent_scale,
                self._decoder(),
            ),
        )

    def decoder(self, trained: Trained, device: torch.device) -> ImageDecoder | None:
        """What makes images of the network's samples; None where they are images, or anything but latents.

        Raises ValueError for latents without an autoencoder."""
        return trained.decoder(device, self._decoder())

    def _decoder(self) -> AutoencoderConfig | None:
        from facm.latents.autoencoders import autoencoder_at

        return autoencoder_at(self.autoencoder) if self.autoencoder else None


_LEARNS_SHORTCUT = {"auto": None, "searched": None, "phased": None, "consistency": True, "flow-jump": True}
"""Samplers -> what they say about the network in a file; None where the file itself must say it."""

SAMPLING = SamplingOptions()
SOLVER = SolverOptions()
NETWORK = NetworkOptions()
