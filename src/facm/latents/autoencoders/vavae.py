"""VA-VAE: the autoencoder of LightningDiT (Yao and Wang 2025, arXiv 2501.01423), whose latents FACM learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from torch import Tensor

from facm.core.component import Range, component, refused
from facm.core.hashing import identity_of
from facm.core.untrusted.torch_files import read_foreign
from facm.latents.autoencoders.kl import KLAutoencoder
from facm.latents.autoencoders.loading import fill, frozen, on_meta, tensors_of
from facm.latents.autoencoders.types import AutoencoderConfig

GROUPS = 32  # of every GroupNorm
TRAINING = ("loss.", "foundation_model.", "linear_proj.", "colorize")
"""Prefixes of what a training checkpoint of the VA-VAE holds besides the autoencoder: the losses with LPIPS, the
discriminator and the log-variance; the vision foundation model and the projection to its features; a random one."""


Channels = Annotated[int, Range("[1, 4096]")]
"""A number of channels of an autoencoder."""


@dataclass(frozen=True)
@component
class VAVAE(AutoencoderConfig):
    """VA-VAE (vavae-imagenet256-f16d32-dinov2.pt), or another KL autoencoder of the same architecture.

    The defaults are VA-VAE's: factor 16, 32 channels, 69.8 million parameters.
    Raises ComponentError for widths or factors that do not divide.
    """

    weights: str
    """File with a state dict, a Lightning checkpoint that contains one, or safetensors."""
    ch: Channels = 128
    """Number of channels at full size, a multiple of 32."""
    ch_mult: Annotated[tuple[Annotated[int, Range("[1, 64]")], ...], Range("[1, 10]")] = (1, 1, 2, 2, 4)
    """Width of each level relative to ch; each level has half the size of the one before."""
    z_channels: Channels = 32
    """Number of channels of the latents."""
    num_res_blocks: Annotated[int, Range("[1, 64]")] = 2
    """Residual blocks of each level of the encoder; the decoder has one more."""
    attention: tuple[int, ...] = (16,)
    """Factors (1, 2, 4, ...) of the levels with attention after each block; the middle always has attention."""

    def __post_init__(self) -> None:
        if self.ch % GROUPS:
            raise refused(self, "ch", f"a multiple of {GROUPS} (the groups of the norms)")
        factors = [2**level for level in range(len(self.ch_mult))]
        if not set(self.attention) <= set(factors):
            raise refused(self, "attention", f"factors of the levels, of {factors}")

    def build(self) -> KLAutoencoder:
        """The module with its weights.

        Raises ValueError naming the file and the weights that are missing, unexpected or misshapen.
        """
        path = Path(self.weights).expanduser()
        what = "the weights of a VA-VAE"
        state = autoencoder_alone(tensors_of(read_foreign(path, what), path, what))
        network = self.architecture()
        fill(network, state, f"{path}{self._hint(state)}")
        frozen(network)
        network.identity = identity_of(f"vavae-f{network.factor}d{network.channels}", network)
        return network

    def architecture(self) -> KLAutoencoder:
        """The module without weights, on the meta device."""
        fields = (self.ch, self.ch_mult, self.z_channels, self.num_res_blocks, self.attention)
        return on_meta(lambda: KLAutoencoder(*fields))

    def _hint(self, state: Mapping[str, Tensor]) -> str:
        found = {name: value for name, value in fields_of(state).items() if value != getattr(self, name)}
        return f" (looks like {', '.join(f'{name} = {value}' for name, value in found.items())})" if found else ""


def autoencoder_alone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without weights that only training needs; other unexpected weights stay and are an error later."""
    return {name: value for name, value in state.items() if not name.startswith(TRAINING)}


def fields_of(state: Mapping[str, Tensor]) -> dict[str, int | tuple[int, ...]]:
    """The fields of :class:`VAVAE` for weights of these shapes; empty for weights of another architecture."""
    try:
        ch = len(state["encoder.conv_in.weight"])
        z_channels = len(state["post_quant_conv.weight"])
    except KeyError:
        return {}
    firsts = (f"encoder.down.{i}.block.0.conv1.weight" for i in range(len(state)))
    widths = [len(state[name]) for name in firsts if name in state]
    return {
        "ch": ch,
        "ch_mult": tuple(width // ch for width in widths),
        "z_channels": z_channels,
        "num_res_blocks": sum(f"encoder.down.0.block.{j}.conv1.weight" in state for j in range(len(state))),
        "attention": tuple(2**i for i in range(len(widths)) if f"encoder.down.{i}.attn.0.q.weight" in state),
    }
