"""VA-VAE: the autoencoder of LightningDiT (Yao and Wang 2025, arXiv 2501.01423), whose latents FACM learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from facm.core.hashing import identity_of
from facm.core.untrusted.torch_files import read_foreign
from facm.latents.autoencoders.kl import KLAutoencoder
from facm.latents.autoencoders.loading import fill, frozen, on_meta, tensors_of

GROUPS = 32  # of every GroupNorm
TRAINING = ("loss.", "foundation_model.", "linear_proj.", "colorize")
"""What a checkpoint of the VA-VAE's training holds besides the autoencoder: the losses with LPIPS, the discriminator
and the loss's log-variance; the vision foundation model and the projection to its features; a random projection."""


@dataclass(frozen=True)
class VAVAE:
    """The weights of vavae-imagenet256-f16d32-dinov2.pt, or another KL autoencoder of the same kind.

    weights: a file: a state dict, a Lightning checkpoint with ``state_dict``, or safetensors.
    ch, ch_mult, z_channels, num_res_blocks, attention: see :class:`facm.latents.autoencoders.kl.KLAutoencoder`; the
    defaults are VA-VAE's: factor 16, 32 channels, 69.8 million parameters.
    """

    weights: str
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    z_channels: int = 32
    num_res_blocks: int = 2
    attention: tuple[int, ...] = (16,)

    def __post_init__(self) -> None:
        for name in ("ch", "z_channels", "num_res_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"VAVAE: {name} = {getattr(self, name)}, expected at least 1")
        if not self.ch_mult or min(self.ch_mult) < 1:
            raise ValueError(f"VAVAE: ch_mult = {self.ch_mult}, expected a number above 0 for each level")
        if self.ch % GROUPS:
            raise ValueError(f"VAVAE: ch = {self.ch}, expected a multiple of {GROUPS} (the groups of the norms)")
        factors = [2**level for level in range(len(self.ch_mult))]
        if not set(self.attention) <= set(factors):
            raise ValueError(f"VAVAE: attention = {self.attention}, expected factors of the levels, of {factors}")

    def build(self) -> KLAutoencoder:
        """Raises ValueError naming the file, and what is missing, too much or misshapen in it."""
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
    """Without what only the training needs, by name; anything else stays, and is an error if it is too much."""
    return {name: value for name, value in state.items() if not name.startswith(TRAINING)}


def fields_of(state: Mapping[str, Tensor]) -> dict[str, int | tuple[int, ...]]:
    """The fields of :class:`VAVAE` that weights of these shapes belong to; empty where they are of another kind."""
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
