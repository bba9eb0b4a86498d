"""Which network a command asks, and how: the options that sampling and evaluating share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    import torch

    from facm.flow.guidance import Guidance
    from facm.latents.decode import Decoder
    from facm.pretrained.trained import Trained
    from facm.sampling.methods import Method

Sampler = Literal["auto", "consistency", "jumps", "euler", "heun", "dpm", "edm"]
Head = Literal["auto", "native", "anchor"]


@dataclasses.dataclass(frozen=True)
class FileOptions:
    """A network from elsewhere, and how its latents become images."""

    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A published checkpoint, or an exported or imported one, in place of a run."""
    family: str | None = None
    """Whose file it is, where its content fits several: facm, lightningdit, sit, repa, dit or edm."""
    weights: str | None = None
    """Which weights in it, such as model; default: its EMA, the longest of several."""
    heads: int | None = None
    """Attention heads, where the file's network has no published size and its weights do not tell."""
    autoencoder: tuple[str, ...] = ()
    """What makes images of latents: a VA-VAE's file, a folder in the diffusers format, or TAEF2's encoder and decoder.
    Default: what the run says, or what lies beside the file."""
    latent_stats: Path | None = None
    """Latent statistics of the file's training data; default: latents_stats.pt beside it."""
    latent_scale: float | None = None
    """Factor on latents that have no statistics; default: 0.18215 for SiT, REPA and DiT."""

    def open(self, run: Path | None, sampling: SamplingOptions) -> Trained:
        """The network of the run, or in the file."""
        from facm.latents.autoencoders import autoencoder_at
        from facm.pretrained.from_file import load_file
        from facm.pretrained.trained import load_trained

        if (run is None) == (self.from_ is None):
            given = "neither" if run is None else f"{run} and --from {self.from_}"
            raise ValueError(f"{given} given, expected a run's folder, or --from FILE")
        if self.from_ is not None:
            if sampling.ema is not None or sampling.raw:
                raise ValueError(f"--ema or --raw with --from {self.from_}, expected --weights to choose in a file")
            shortcut = {"auto": None, "consistency": True}.get(sampling.sampler, False)
            return load_file(
                self.from_,
                self.family,
                self.weights,
                self.heads,
                learns_shortcut=shortcut,
                autoencoder=autoencoder_at(self.autoencoder) if self.autoencoder else None,
                statistics=self.latent_stats,
                scale=self.latent_scale,
            )
        only: dict[str, object] = {
            "family": self.family,
            "weights": self.weights,
            "heads": self.heads,
            "latent-stats": self.latent_stats,
        }
        only["latent-scale"] = self.latent_scale
        for name, value in only.items():
            if value is not None:
                raise ValueError(f"--{name} {value} with the run {run}, expected it with --from FILE only")
        assert run is not None
        return load_trained(run, sampling.ema, sampling.raw)

    def decoder(self, trained: Trained, device: torch.device) -> Decoder | None:
        """What makes images of the network's samples; None where they are what they are.

        Raises ValueError for latents without an autoencoder."""
        from facm.latents.autoencoders import autoencoder_at

        return trained.decoder(device, autoencoder_at(self.autoencoder) if self.autoencoder else None)


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How samples are made."""

    sampler: Sampler = "auto"
    """auto: consistency for a network with a shortcut to the end, jumps for one with shortcuts to any time, Euler for a
    flow-matching one. dpm: DPM-Solver++ (2M); edm: Heun with EDM's noise levels."""
    head: Head = "auto"
    """For solvers of the flow: the native time of a teacher, or the anchor of a FACM student."""
    shift: float = 1.0
    """Schedule shift s t / (1 + (s - 1) t); above 1 spends more steps near data."""
    times: tuple[float, ...] = ()
    """Consistency and jumps only: the schedule itself, from 0, one time per evaluation."""
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
        from facm.flow.guidance import Guidance

        return Guidance(self.guidance_scale, self.guidance_low, self.guidance_high)

    def method(self, trained: Trained, nfe: int) -> Method:
        from facm.sampling.methods import (
            Consistency,
            DPMSolverPP,
            EDMHeun,
            Euler,
            Heun,
            Jumps,
            default_method,
        )

        if nfe < 1:
            raise ValueError(f"--nfe {nfe}: zero steps make no sample; expected at least 1")
        kinds: dict[str, Any] = {
            "consistency": Consistency,
            "jumps": Jumps,
            "euler": Euler,
            "heun": Heun,
            "dpm": DPMSolverPP,
            "edm": EDMHeun,
        }
        default: Any = type(default_method(trained.interface, nfe))
        kind = default if self.sampler == "auto" else kinds[self.sampler]
        name = next(name for name, value in kinds.items() if value is kind)
        if self.times and kind not in (Consistency, Jumps):
            raise ValueError(
                f"--times {self.times} with --sampler {name}, expected them with consistency or jumps only"
            )
        if self.shift != 1 and kind is EDMHeun:
            raise ValueError(f"--shift {self.shift} with --sampler edm, which has a schedule of its own; expected none")
        head = ("anchor" if trained.interface.learns_shortcut else "native") if self.head == "auto" else self.head
        method: Any
        if kind in (Consistency, Jumps):
            method = kind(nfe, self.shift, self.times or None)
            method.schedule()  # now, rather than after the work that comes before sampling
        else:
            method = kind(nfe, head) if kind is EDMHeun else kind(nfe, head, self.shift)
        method.check(trained.interface)
        return method


SAMPLING = SamplingOptions()
FILE = FileOptions()
