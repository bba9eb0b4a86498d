"""The convolutional autoencoder with a Gaussian posterior of latent diffusion (Rombach et al. 2022, after VQGAN, Esser
et al. 2021), with the parameter names of their checkpoints."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facm.latents.autoencoders.checks import check_images, check_latents, check_noise


class KLAutoencoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to latents (B, z_channels, H / factor, W / factor) and back.

    ch: Number of channels at full size.
    ch_mult: Width of each level relative to ``ch``; each level has half the size of the one before, so that the
        factor is 2^(levels - 1).
    z_channels: Number of channels of the latents.
    num_res_blocks: Residual blocks of each level of the encoder; the decoder has one more.
    attention: Factors of the levels with attention after each block; the middle always has attention.
    """

    identity: str

    def __init__(
        self, ch: int, ch_mult: tuple[int, ...], z_channels: int, num_res_blocks: int, attention: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.channels = z_channels
        self.factor = 2 ** (len(ch_mult) - 1)
        widths = [ch * multiple for multiple in ch_mult]
        attends = [2**level in attention for level in range(len(widths))]
        self.encoder = Encoder(ch, widths, attends, num_res_blocks, 2 * z_channels)
        self.decoder = Decoder(z_channels, widths, attends, num_res_blocks + 1)
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * z_channels, 1)
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, 1)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, (B, z_channels, h, w) each."""
        check_images(x, self.factor)
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, torch.exp(0.5 * logvar.clamp(-30.0, 20.0))

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """See :class:`facm.latents.autoencoders.types.Autoencoder`."""
        mean, std = self.posterior(x)
        if noise is None:
            return mean
        check_noise(noise, mean)
        return mean + std * noise

    def decode(self, z: Tensor) -> Tensor:
        """See :class:`facm.latents.autoencoders.types.Autoencoder`."""
        check_latents(z, self.channels)
        return self.decoder(self.post_quant_conv(z))


class Encoder(nn.Module):
    """Images (B, 3, H, W) -> moments (B, out, H / factor, W / factor)."""

    def __init__(self, ch: int, widths: list[int], attends: list[bool], blocks: int, out: int) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level([ch, *widths][i], width, blocks, attends[i], downsample=Downsample(width) if i < last else None)
            for i, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latents (B, z_channels, h, w) -> images (B, 3, h * factor, w * factor)."""

    def __init__(self, z_channels: int, widths: list[int], attends: list[bool], blocks: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level([*widths, widths[-1]][i + 1], width, blocks, attends[i], upsample=Upsample(width) if i else None)
            for i, width in enumerate(widths)
        )
        self.norm_out = norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Level(nn.Module):
    """Blocks at one size, all with attention or none, followed by a change of size under the keyword's name."""

    def __init__(self, width_in: int, width: int, blocks: int, attends: bool, **resample: nn.Module | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResBlock(width if i else width_in, width) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(width) for _ in range(blocks if attends else 0))
        self.resample = [name for name, module in resample.items() if module is not None]
        for name in self.resample:
            self.add_module(name, resample[name])

    def forward(self, h: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            h = block(h)
            if self.attn:
                h = self.attn[i](h)
        for name in self.resample:
            h = self.get_submodule(name)(h)
        return h


class Middle(nn.Module):
    """Two blocks with attention in between, at the lowest size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(width, width)
        self.attn_1 = Attention(width)
        self.block_2 = ResBlock(width, width)

    def forward(self, h: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h)))


class ResBlock(nn.Module):
    """A residual block of two convolutions: (B, width_in, H, W) -> (B, width, H, W)."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.norm1 = norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if width_in != width:
            self.nin_shortcut = nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    """Self-attention with one head over all pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2).unsqueeze(1) for part in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)  # (B, 1, H W, C)
        return x + self.proj_out(h.squeeze(1).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Half the size, with padding on the right and at the bottom only, as the weights were trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size by repeating pixels, followed by a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)
