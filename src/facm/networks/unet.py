"""A class-conditional U-Net for small images, with dropout, in the manner of DDPM++ (Song et al., 2021; Karras et al.,
2022): residual blocks modulated by time and label, self-attention at some resolutions, skip connections.

What it is for: a network with convolutions, skips and dropout, where the transformer has none of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from facm.networks.inputs import check_inputs
from facm.types import at_least_float32

FREQUENCIES = 64
LOWEST, HIGHEST = 0.5, 32.0
GROUPS = 32
HEAD_DIM = 64


@dataclass(frozen=True)
class UNet:
    """Configuration of the network F(x, t, cond[, r]): x (B, C, H, W), t (B,), cond (B,) int64, r (B,) -> (B, C, H, W).

    size: height and width of x. channels: those of the first level; multipliers: one a level, each of half the size of
    the one before. blocks: residual blocks a level. attention: the sizes at which they attend. dropout: inside every
    residual block, in train mode. num_classes: labels 0 .. num_classes - 1, the null label is num_classes; 0 is an
    unconditional network. auxiliary_time: a second embedder for r, without effect as initialised.
    Raises ValueError where sizes or channels do not divide.
    """

    size: int = 32
    in_channels: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (2, 2, 2)
    blocks: int = 4
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.13
    num_classes: int = 10
    auxiliary_time: bool = False

    def __post_init__(self) -> None:
        halvings = 2 ** (len(self.multipliers) - 1)
        if not self.multipliers or self.size % halvings:
            raise ValueError(
                f"size = {self.size}, multipliers = {self.multipliers}, expected at least one, and a size that is a "
                f"multiple of {halvings} to be halved between levels"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout}, expected a probability within [0, 1)")
        sizes = [self.size // 2**level for level in range(len(self.multipliers))]
        if unknown := set(self.attention) - set(sizes):
            raise ValueError(f"attention at {sorted(unknown)}, expected sizes among the levels' {sizes}")

    def build(self) -> UNetNetwork:
        """The module, initialised from torch's global generator."""
        return UNetNetwork(self)


def _groups(channels: int) -> int:
    """The most groups, up to 32, of at least 4 channels each."""
    return max(g for g in range(1, GROUPS + 1) if channels % g == 0 and (channels // g >= 4 or g == 1))


class TimeEmbedding(nn.Module):
    """t (B,), unscaled in [0, 2] -> (B, dim).

    Cosines and sines of geometrically spaced frequencies, in radians per unit of t. The lowest turns by 1 over [0, 2],
    so that it tells all times apart; the highest still resolves 1 / 32 of a unit. A time scaled by 1000 has frequencies
    up to 1000, and the tangent of the embedding grows with them (Lu & Song, 2025, found it unstable): hence no more.
    Never in half precision, where the tangent would be noise.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        t = at_least_float32(t)
        steps = torch.linspace(math.log(LOWEST), math.log(HIGHEST), FREQUENCIES, dtype=t.dtype, device=t.device)
        angle = t[:, None] * steps.exp()
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1).to(next(self.mlp.parameters()).dtype))


class Attention(nn.Module):
    """h (B, C, H, W) plus self-attention over its H * W positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // HEAD_DIM)
        if channels % self.heads:
            raise ValueError(f"attention over {channels} channels, expected a multiple of {self.heads} heads")
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(h)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2).unbind(1)
        attended = nnf.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return h + self.out(attended.reshape(h.shape))


class Block(nn.Module):
    """h (B, inward, H, W), embedding (B, dim) -> (B, outward, H, W); the identity, or a 1x1 convolution, plus a branch
    that is zero as initialised."""

    def __init__(self, inward: int, outward: int, dim: int, dropout: float, attention: bool) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_groups(inward), inward)
        self.conv1 = nn.Conv2d(inward, outward, 3, padding=1)
        self.modulation = nn.Linear(dim, 2 * outward)
        self.norm2 = nn.GroupNorm(_groups(outward), outward)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zero(nn.Conv2d(outward, outward, 3, padding=1))
        self.skip = nn.Conv2d(inward, outward, 1) if inward != outward else nn.Identity()
        self.attention = Attention(outward) if attention else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        branch = self.conv1(nnf.silu(self.norm1(h)))
        branch = self.dropout(nnf.silu(self.norm2(branch) * (1 + scale) + shift))
        return self.attention(self.skip(h) + self.conv2(branch))


class Down(nn.Module):
    """Half the size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(h)


class Up(nn.Module):
    """Twice the size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(nnf.interpolate(h, scale_factor=2.0, mode="nearest"))


def _zero(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class UNetNetwork(nn.Module):
    """F(x, t, cond[, r]) -> velocity; see :class:`UNet`."""

    no_effect_as_initialised = ("second_time.",)  # may be absent from the weights a run starts from

    def __init__(self, config: UNet) -> None:
        super().__init__()
        self.config, self.auxiliary_time = config, config.auxiliary_time
        if config.dropout == 0:
            self.draws = False  # nothing random is left
        dim = 4 * config.channels
        self.time = TimeEmbedding(dim)
        self.second_time = TimeEmbedding(dim) if config.auxiliary_time else None
        self.labels = nn.Embedding(config.num_classes + 1, dim) if config.num_classes else None
        self.inward = nn.Conv2d(config.in_channels, config.channels, 3, padding=1)
        self._build_levels(dim)
        if self.second_time is not None:
            nn.init.zeros_(self.second_time.mlp[2].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.second_time.mlp[2].bias)  # type: ignore[arg-type]

    def _build_levels(self, dim: int) -> None:
        config = self.config
        sizes = [config.size // 2**level for level in range(len(config.multipliers))]
        channels = config.channels
        kept = [channels]  # channels of what the way up will take from the way down
        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()  # in the order of calls
        for level, (size, multiplier) in enumerate(zip(sizes, config.multipliers, strict=True)):
            if level:
                self.down.append(Down(channels))
                kept.append(channels)
            for _ in range(config.blocks):
                outward = config.channels * multiplier
                self.down.append(Block(channels, outward, dim, config.dropout, size in config.attention))
                channels = outward
                kept.append(channels)
        self.middle = nn.ModuleList(
            Block(channels, channels, dim, config.dropout, attention) for attention in (True, False)
        )
        for level, (size, multiplier) in reversed(list(enumerate(zip(sizes, config.multipliers, strict=True)))):
            for _ in range(config.blocks + 1):
                outward = config.channels * multiplier
                inward = channels + kept.pop()
                self.up.append(Block(inward, outward, dim, config.dropout, size in config.attention))
                channels = outward
            if level:
                self.up.append(Up(channels))
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.outward = _zero(nn.Conv2d(channels, config.in_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        self._check(x, cond, r)
        embedding = self.time(t)
        if self.labels is not None:
            embedding = embedding + self.labels(cond)
        if self.second_time is not None:
            embedding = embedding + self.second_time(r)
        embedding = nnf.silu(embedding)
        h = self.inward(x)
        kept = [h]
        for unit in self.down:
            h = unit(h, embedding)
            kept.append(h)
        for unit in self.middle:
            h = unit(h, embedding)
        for unit in self.up:
            if isinstance(unit, Block):
                h = torch.cat([h, kept.pop()], dim=1)
            h = unit(h, embedding)
        return self.outward(nnf.silu(self.norm(h)))

    def _check(self, x: Tensor, cond: Tensor | None, r: Tensor | None) -> None:
        config = self.config
        shape = (config.in_channels, config.size, config.size)
        check_inputs(x, cond, r, shape=shape, num_classes=config.num_classes, auxiliary_time=config.auxiliary_time)
