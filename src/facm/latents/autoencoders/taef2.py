"""TAEF2: a tiny autoencoder for the latents of FLUX.2, fast enough for CPUs (madebyollin/taesd, MIT)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from facm.core.component import component
from facm.core.hashing import identity_of
from facm.core.untrusted.torch_files import read_foreign
from facm.latents.autoencoders.checks import check_images, check_latents
from facm.latents.autoencoders.loading import fill, frozen, on_meta, tensors_of
from facm.latents.autoencoders.types import AutoencoderConfig

CHANNELS = 32
WIDTH = 64
LIMIT = 3.0  # the decoder first maps latents smoothly into (-LIMIT, LIMIT)
STAGES = (1, 3, 3, 3)  # blocks at full size, 1/2, 1/4, 1/8


@dataclass(frozen=True)
@component
class TAEF2(AutoencoderConfig):
    """TAEF2 from its two files, float16 on disk and float32 here: factor 8, 32 channels.

    It reconstructs well at 128 pixels and above (about 33 dB), and poorly at 32 and 64. There is no posterior, so that
    ``encode`` ignores noise.
    """

    encoder: str
    """Path of taef2_encoder.pth."""
    decoder: str
    """Path of taef2_decoder.pth."""

    def build(self) -> TinyAutoencoder:
        """The module with its weights.

        Raises ValueError naming the file and the weights that are missing, unexpected or misshapen.
        """
        network = on_meta(TinyAutoencoder)
        for part, file in ((network.encoder, self.encoder), (network.decoder, self.decoder)):
            path = Path(file).expanduser()
            what = "the weights of TAEF2's " + ("encoder" if part is network.encoder else "decoder")
            fill(part, tensors_of(read_foreign(path, what), path, what), f"{path} as {what}")
        frozen(network)
        network.identity = identity_of(f"taef2-f{network.factor}d{network.channels}", network)
        return network


class TinyAutoencoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to latents (B, 32, H / 8, W / 8) and back, with the files' parameter names."""

    identity: str

    def __init__(self) -> None:
        super().__init__()
        self.channels = CHANNELS
        self.factor = 2 ** (len(STAGES) - 1)
        self.encoder = nn.Sequential(*encoder_layers())
        self.decoder = nn.Sequential(*decoder_layers())

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """See :class:`facm.latents.autoencoders.types.Autoencoder`; ``noise`` changes nothing."""
        check_images(x, self.factor)
        return self.encoder((x + 1) / 2)

    def decode(self, z: Tensor) -> Tensor:
        """See :class:`facm.latents.autoencoders.types.Autoencoder`."""
        check_latents(z, self.channels)
        return self.decoder(z) * 2 - 1


def encoder_layers() -> list[nn.Module]:
    """The layers of the encoder, from the image to the latent."""
    layers: list[nn.Module] = []
    for i, blocks in enumerate(STAGES):
        layers.append(conv(WIDTH, stride=2, bias=False) if i else nn.Conv2d(3, WIDTH, 3, padding=1))
        layers += [Block(normalised=i == len(STAGES) - 1) for _ in range(blocks)]
    return [*layers, nn.Conv2d(WIDTH, CHANNELS, 3, padding=1)]


def decoder_layers() -> list[nn.Module]:
    """The layers of the decoder, from the latent to the image."""
    layers: list[nn.Module] = [SoftClamp(), nn.Conv2d(CHANNELS, WIDTH, 3, padding=1), nn.ReLU()]
    for i, blocks in enumerate(reversed(STAGES)):
        if i:
            layers += [nn.Upsample(scale_factor=2), conv(WIDTH, bias=False)]
        layers += [Block(normalised=i == 0) for _ in range(blocks)]
    return [*layers, nn.Conv2d(WIDTH, 3, 3, padding=1)]


class SoftClamp(nn.Module):
    """Map latents smoothly into (-LIMIT, LIMIT)."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(z / LIMIT) * LIMIT


class Block(nn.Module):
    """A residual block; at the lowest size a normalised branch is added first."""

    def __init__(self, normalised: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(WIDTH), nn.ReLU(), conv(WIDTH), nn.ReLU(), conv(WIDTH))
        self.pool = None
        if normalised:
            wide = 4 * WIDTH
            self.pool = nn.Sequential(
                nn.Conv2d(WIDTH, wide, 1, bias=False),
                nn.GroupNorm(4, wide),
                nn.ReLU(),
                nn.Conv2d(wide, WIDTH, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


def conv(width: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, stride, padding=1, bias=bias)
