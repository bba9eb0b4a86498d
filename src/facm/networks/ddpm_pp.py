"""DDPM++ (Song et al., 2021) as EDM (Karras et al., 2022, arXiv 2206.00364) uses it on CIFAR-10: the U-Net of the
paper's pixel-space experiments.

Names and shapes in the state dict are those of EDM's published networks (NVlabs/edm) without the wrapper's prefix
``model.``, so that their weights load strictly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, TypeVar

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from facm.core.component import Classes, Range, component, refused
from facm.core.tensors import at_least_float32
from facm.core.types import NetworkConfig
from facm.networks.inputs import check_inputs
from facm.networks.lightning_dit import pixel_norm
from facm.networks.sizes import Depth, Size, check_numbers

Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv2d)

LOWEST_FREQUENCY = 1e-4
GROUPS, LEAST_IN_A_GROUP = 32, 4
EPS = 1e-6
SUM = math.sqrt(0.5)
"""Factor on the sum of a residual branch and its input, which keeps the variance of one of them."""
NEARLY_ZERO = 1e-5
"""Gain at initialisation of the last layer of each residual branch and of the network."""


@dataclass(frozen=True)
@component
class DDPMpp(NetworkConfig):
    """Configuration of the network F(x, t, cond[, r]): x (B, C, H, W), t (B,), cond (B,) int64, r (B,) -> (B, C, H, W).

    Time is embedded unscaled at frequencies from 1 down to 1e-4, which suits EDM's log(sigma) / 4 and times in [0, 2].
    Labels enter as one-hot vectors and the null label as zeros, as EDM's unlabelled samples do.
    The defaults are EDM's unconditional CIFAR-10 network of 55.7M parameters.
    Raises ComponentError where sizes or channels do not divide.
    """

    size: Size = 32
    """Height and width of x, a multiple of 2^(levels - 1)."""
    in_channels: Size = 3
    """Number C of channels of x."""
    channels: Size = 128
    """Base width, which the multipliers scale; a multiple of 4."""
    multipliers: Annotated[tuple[Annotated[int, Range("[1, 256]")], ...], Range("[1, 16]")] = (2, 2, 2)
    """Width of each level relative to channels; each level has half the height and width of the one before."""
    blocks: Depth = 4
    """Residual blocks of each level on the way down; the way up has one more."""
    attention: tuple[Size, ...] = (16,)
    """Heights at which all blocks on the way down and the last on the way up attend; the bottom always does."""
    dropout: Annotated[float, Range("[0, 1)")] = 0.13
    """Probability of dropout in each block in train mode, within [0, 1)."""
    num_classes: Classes = 0
    """Number of labels 0 .. num_classes - 1; num_classes itself is the null label. 0: an unconditional network."""
    augment_dim: Classes = 0
    """Size of EDM's augmentation labels, which are zeros here; weights trained with augmentation have the layer."""
    auxiliary_time: bool = False
    """Take a second time r through an embedder that has no effect as initialised."""
    pixel_norm: bool = False
    """Normalise the shift of each block (sCM, arXiv 2410.11081, Sec. 4.1); train with it from the start."""
    weight_head: bool = False
    """Add a method log_weight(t), with which sCM learns the weight of its loss; it is no part of F."""

    def __post_init__(self) -> None:
        halvings = 2 ** (len(self.multipliers) - 1)
        if self.size % halvings:
            raise refused(
                self,
                "size",
                f"a multiple of {halvings}, to be halved between levels of multipliers = {self.multipliers}",
            )
        if self.channels % LEAST_IN_A_GROUP:
            raise refused(self, "channels", "a multiple of 4 (groups of at least 4 channels)")
        if set(self.attention) - set(self.sizes):
            raise refused(self, "attention", f"sizes among the levels' {list(self.sizes)}")
        wide, deep = self.channels * max(self.multipliers), (2 * self.blocks + 3) * len(self.multipliers)
        labels = self.num_classes + self.augment_dim + 4 * self.channels
        check_numbers(self, 30 * deep * wide**2 + (labels + 18 * self.in_channels) * self.channels)
        for count in _joined(self):
            if count % _groups(count):
                raise refused(
                    self,
                    "channels",
                    f"with multipliers = {self.multipliers} a multiple of {_groups(count)} wherever channels are "
                    f"normalised in so many groups, at joints with the way down as well, and not {count}",
                )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Height and width at each level."""
        return tuple(self.size // 2**level for level in range(len(self.multipliers)))

    def build(self) -> DDPMppNetwork:
        """The module, initialised from torch's global generator."""
        return DDPMppNetwork(self)


def positions(t: Tensor, dim: int) -> Tensor:
    """t (B,) -> (B, dim): sines, then cosines, at frequencies from 1 to 1e-4.

    Always in at least float32: in half precision the tangent would be noise.
    """
    t = at_least_float32(t)
    steps = torch.linspace(0, math.log(LOWEST_FREQUENCY), dim // 2, dtype=t.dtype, device=t.device)
    angle = t[:, None] * steps.exp()
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def _groups(channels: int) -> int:
    return min(GROUPS, channels // LEAST_IN_A_GROUP)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_groups(channels), channels, eps=EPS)


def _joined(config: DDPMpp) -> Iterator[int]:
    """The numbers of channels that blocks normalise, in the order of their calls."""
    kept = [config.channels]
    for level, multiplier in enumerate(config.multipliers):
        kept += [kept[-1]] * (level > 0) + [config.channels * multiplier] * config.blocks
    yield from kept
    channels = kept[-1]
    for multiplier in reversed(config.multipliers):
        for _ in range(config.blocks + 1):
            yield channels + kept.pop()
            channels = config.channels * multiplier


def _initialised(layer: Layer, gain: float = 1.0) -> Layer:
    """The layer with Xavier's uniform initialisation and a bias of zero."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Down(nn.Conv2d):
    """Half the height and width by averaging 2 x 2 pixels, followed by the convolution."""

    def __init__(self, inward: int, outward: int, kernel: int) -> None:
        super().__init__(inward, outward, kernel, padding=kernel // 2)
        _register_filter(self)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nnf.avg_pool2d(x, 2))


class Up(nn.Conv2d):
    """Twice the height and width by repeating pixels, followed by the convolution."""

    def __init__(self, inward: int, outward: int, kernel: int) -> None:
        super().__init__(inward, outward, kernel, padding=kernel // 2)
        _register_filter(self)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nnf.interpolate(x, scale_factor=2.0, mode="nearest"))


def _register_filter(layer: nn.Module) -> None:
    """Register the resampling filter that EDM's files contain, so that they load strictly.

    DDPM++'s filter [1, 1] has 2 x 2 equal weights, which is averaging and repeating; another filter has another shape
    and does not load.
    """
    layer.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25))


def _conv(inward: int, outward: int, kernel: int, resample: type[Down | Up] | None = None) -> nn.Conv2d:
    if resample is None:
        return nn.Conv2d(inward, outward, kernel, padding=kernel // 2)
    return resample(inward, outward, kernel)


class Block(nn.Module):
    """A residual block: h (B, inward, H, W), embedding (B, dim) -> (B, outward, H, W).

    resample: Halves or doubles H and W; None keeps them.
    joins: Whether the input is concatenated with an output of the way down, whose channels ``inward`` then includes.
    """

    def __init__(
        self,
        config: DDPMpp,
        inward: int,
        outward: int,
        attends: bool = False,
        resample: type[Down | Up] | None = None,
        joins: bool = False,
    ) -> None:
        super().__init__()
        self.pixel_norm, self.joins = config.pixel_norm, joins
        self.norm0 = _norm(inward)
        self.conv0 = _initialised(_conv(inward, outward, 3, resample))
        self.affine = _initialised(nn.Linear(4 * config.channels, outward))
        self.norm1 = _norm(outward)
        self.dropout = nn.Dropout(config.dropout)
        self.conv1 = _initialised(_conv(outward, outward, 3), NEARLY_ZERO)
        changes = inward != outward or resample is not None
        self.skip = _initialised(_conv(inward, outward, 1, resample)) if changes else None
        self.attends = attends
        if attends:
            self.norm2 = _norm(outward)
            self.qkv = _initialised(_conv(outward, 3 * outward, 1), math.sqrt(0.2))
            self.proj = _initialised(_conv(outward, outward, 1), NEARLY_ZERO)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        shift = self.affine(embedding)
        if self.pixel_norm:
            shift = pixel_norm(shift)
        branch = self.conv0(nnf.silu(self.norm0(h))) + shift[:, :, None, None]
        branch = self.conv1(self.dropout(nnf.silu(self.norm1(branch))))
        h = (branch + (h if self.skip is None else self.skip(h))) * SUM
        return (self.proj(self._attended(h)) + h) * SUM if self.attends else h

    def _attended(self, h: Tensor) -> Tensor:
        """Attention with one head over all H * W positions; the channels of ``qkv`` alternate between q, k and v."""
        q, k, v = self.qkv(self.norm2(h)).unflatten(1, (-1, 3)).flatten(3).transpose(1, 3)[:, None].unbind(3)
        attended = nnf.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        return attended.contiguous().view(h.shape)  # otherwise the transposed layout would spread


class TimeEmbedding(nn.Module):
    """t (B,) -> (B, outward)."""

    def __init__(self, channels: int, outward: int) -> None:
        super().__init__()
        self.channels = channels
        self.inner = _initialised(nn.Linear(channels, 4 * channels))
        self.outer = nn.Linear(4 * channels, outward)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, t: Tensor) -> Tensor:
        return self.outer(nnf.silu(self.inner(positions(t, self.channels).to(self.inner.weight.dtype))))


class DDPMppNetwork(nn.Module):
    """F(x, t, cond[, r]) -> (B, C, H, W): a velocity, or what an adapter turns into one; see :class:`DDPMpp`."""

    zero_init_prefixes = ("second_time.", "log_weights.")

    def __init__(self, config: DDPMpp) -> None:
        super().__init__()
        self.config, self.auxiliary_time, self.weight_head = config, config.auxiliary_time, config.weight_head
        self.stochastic = config.dropout > 0
        channels, dim = config.channels, 4 * config.channels
        self.map_label = _initialised(nn.Linear(config.num_classes, channels)) if config.num_classes else None
        self.map_augment = None
        if config.augment_dim:
            self.map_augment = _initialised(nn.Linear(config.augment_dim, channels, bias=False))
        self.map_layer0 = _initialised(nn.Linear(channels, dim))
        self.map_layer1 = _initialised(nn.Linear(dim, dim))
        self.enc, kept = _way_down(config)
        self.dec = _way_up(config, kept)
        self.second_time = TimeEmbedding(channels, dim) if config.auxiliary_time else None
        self.log_weights = TimeEmbedding(channels, 1) if config.weight_head else None

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        config = self.config
        shape = (config.in_channels, config.size, config.size)
        check_inputs(x, cond, r, shape=shape, num_classes=config.num_classes, auxiliary_time=config.auxiliary_time)
        embedding = self._embedding(t, cond, r)
        h, kept = x, []
        for unit in self.enc.values():
            h = unit(h, embedding) if isinstance(unit, Block) else unit(h)
            kept.append(h)
        for unit in self.dec.values():
            if not isinstance(unit, Block):
                h = unit(nnf.silu(h)) if isinstance(unit, nn.Conv2d) else unit(h)
                continue
            h = unit(torch.cat([h, kept.pop()], dim=1) if unit.joins else h, embedding)
        return h

    def log_weight(self, t: Tensor) -> Tensor:
        """The log weight w(t) (B,) of t (B,), 0 as initialised. Raises ValueError without the head."""
        if self.log_weights is None:
            raise ValueError("log_weight(t) of a network with weight_head = False, expected weight_head = True")
        return self.log_weights(t).squeeze(1)

    def _embedding(self, t: Tensor, cond: Tensor | None, r: Tensor | None) -> Tensor:
        config = self.config
        c = positions(t, config.channels).to(self.map_layer0.weight.dtype)
        if self.map_label is not None and cond is not None:
            one_hot = nnf.one_hot(cond, config.num_classes + 1)[:, :-1].to(c.dtype)
            c = c + self.map_label(one_hot * math.sqrt(config.num_classes))  # unit variance over the entries
        if self.map_augment is not None:
            c = c + self.map_augment(c.new_zeros(len(c), config.augment_dim))  # so that it has a gradient
        c = self.map_layer1(nnf.silu(self.map_layer0(c)))
        if self.second_time is not None and r is not None:
            c = c + self.second_time(r)
        return nnf.silu(c)


def _way_down(config: DDPMpp) -> tuple[nn.ModuleDict, list[int]]:
    """The blocks under EDM's names in the order of their calls, and the channels of each output for the way up."""
    units: dict[str, nn.Module] = {}
    channels, kept = config.channels, []
    for level, (size, multiplier) in enumerate(zip(config.sizes, config.multipliers, strict=True)):
        if level == 0:
            units[f"{size}x{size}_conv"] = _initialised(_conv(config.in_channels, channels, 3))
        else:
            units[f"{size}x{size}_down"] = Block(config, channels, channels, resample=Down)
        kept.append(channels)
        for index in range(config.blocks):
            outward = config.channels * multiplier
            units[f"{size}x{size}_block{index}"] = Block(config, channels, outward, size in config.attention)
            channels = outward
            kept.append(channels)
    return nn.ModuleDict(units), kept


def _way_up(config: DDPMpp, kept: list[int]) -> nn.ModuleDict:
    """The blocks of the way up; ``kept`` are the channels that :func:`_way_down` returns."""
    units: dict[str, nn.Module] = {}
    channels = kept[-1]
    levels = list(zip(config.sizes, config.multipliers, strict=True))
    for level, (size, multiplier) in reversed(list(enumerate(levels))):
        if level == len(levels) - 1:
            units[f"{size}x{size}_in0"] = Block(config, channels, channels, attends=True)
            units[f"{size}x{size}_in1"] = Block(config, channels, channels)
        else:
            units[f"{size}x{size}_up"] = Block(config, channels, channels, resample=Up)
        for index in range(config.blocks + 1):
            inward, outward = channels + kept.pop(), config.channels * multiplier
            attends = index == config.blocks and size in config.attention
            units[f"{size}x{size}_block{index}"] = Block(config, inward, outward, attends, joins=True)
            channels = outward
    size = config.size
    units[f"{size}x{size}_aux_norm"] = _norm(channels)
    units[f"{size}x{size}_aux_conv"] = _initialised(_conv(channels, config.in_channels, 3), NEARLY_ZERO)
    return nn.ModuleDict(units)
