"""LightningDiT (Yao et al., 2025): a diffusion transformer with QK-norm, SwiGLU, rotary positions and RMSNorm.

Parameter names are those of hustvl/LightningDiT and ali-vilab/FACM, so that their state dicts load strictly;
see docs/parity.md. The network is a pure function of (x, t, cond), the same in train and eval mode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from facm.core.component import Classes, Range, component, refused
from facm.core.fused.norm import norm_modulate
from facm.core.fused.residual import gated_sum
from facm.core.fused.rotary import queries_keys
from facm.core.fused.swiglu import swiglu
from facm.core.state_dict import without_wrappers
from facm.core.tensors import at_least_float32
from facm.core.torch_private import has_hooks
from facm.core.types import NetworkConfig
from facm.networks.inputs import check_inputs
from facm.networks.sizes import Depth, Size, check_numbers

FREQUENCIES = 256
MOST_TOKENS = 2**20
"""Patches of an image of 1024 x 1024 of them, each of which attends to all."""
PERIOD = 10_000.0


@dataclass(frozen=True)
@component
class LightningDiT(NetworkConfig):
    """Configuration of the network F(x, t, cond[, r]): x (B, C, H, W), t (B,), cond (B,) int64, r (B,) -> (B, C, H, W).

    The defaults are LightningDiT-XL/1 for VA-VAE's latents of ImageNet at 256 x 256.
    Raises ComponentError where one size is not a multiple of another that divides it.
    """

    input_size: Size = 16
    """Height and width of x, a multiple of patch_size."""
    patch_size: Size = 1
    """Height and width of the patches that become tokens."""
    in_channels: Size = 32
    """Number C of channels of x."""
    hidden_size: Size = 1152
    """Width of the transformer, a multiple of num_heads and of 4."""
    depth: Depth = 28
    """Number of transformer blocks."""
    num_heads: Size = 16
    """Number of attention heads; with rope, hidden_size / num_heads must be a multiple of 4."""
    mlp_ratio: Annotated[float, Range("(0, 64]")] = 4.0
    """Width of the MLP in each block relative to hidden_size; SwiGLU uses 2/3 of it."""
    num_classes: Classes = 1000
    """Number of labels 0 .. num_classes - 1; num_classes itself is the null label. 0: an unconditional network."""
    learn_sigma: bool = False
    """Predict twice the channels and drop the second half, as published weights that learned a variance need it."""
    qk_norm: bool = True
    """Normalise queries and keys in attention."""
    swiglu: bool = True
    """Use SwiGLU in the MLPs; otherwise GELU, as in DiT."""
    rope: bool = True
    """Rotate queries and keys by their position, in addition to the fixed position embedding."""
    rmsnorm: bool = True
    """Use RMSNorm with learned weights; otherwise layer norm without, as in DiT."""
    shift: bool = True
    """Modulate each block by shift, scale and gate; otherwise by scale and gate only."""
    auxiliary_time: bool = False
    """Take a second time r through an embedder that has no effect as initialised."""
    pixel_norm: bool = False
    """Normalise the modulation of each norm (sCM, arXiv 2410.11081, Sec. 4.1); train with it from the start."""
    weight_head: bool = False
    """Add a method log_weight(t), with which sCM learns the weight of its loss; it is no part of F."""

    def __post_init__(self) -> None:
        if self.input_size % self.patch_size:
            raise refused(self, "input_size", f"a multiple of patch_size = {self.patch_size}")
        if self.hidden_size % self.num_heads:
            raise refused(self, "hidden_size", f"a multiple of num_heads = {self.num_heads}")
        if self.hidden_size % 4:
            raise refused(self, "hidden_size", "a multiple of 4 (two axes of sines and cosines)")
        if self.rope and self.hidden_size // self.num_heads % 4:
            raise refused(
                self,
                "num_heads",
                f"hidden_size = {self.hidden_size} over a multiple of 4 with rope (pairs on two axes)",
            )
        if int(2 / 3 * int(self.hidden_size * self.mlp_ratio)) < 1:
            raise refused(self, "mlp_ratio", f"at least one hidden unit at hidden_size = {self.hidden_size}")
        tokens, patch = (self.input_size // self.patch_size) ** 2, 3 * self.in_channels * self.patch_size**2
        if tokens > MOST_TOKENS:
            raise refused(self, "input_size", f"at most {MOST_TOKENS} patches of patch_size = {self.patch_size}")
        blocks = self.depth * self.hidden_size * (10 + 3 * self.mlp_ratio)
        check_numbers(self, self.hidden_size * (blocks + 3 * tokens + patch + self.num_classes))

    def build(self) -> LightningDiTNetwork:
        """The module, initialised from torch's global generator."""
        return LightningDiTNetwork(self)


SIZES = {  # hidden_size, depth, num_heads
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
    "1p0B": (1536, 24, 24),
    "1p6B": (1792, 28, 28),
}


def lightning_dit(name: str, **options: Any) -> LightningDiT:
    """A published size: "XL/1" is size XL with patch size 1. ``options`` are fields of :class:`LightningDiT`."""
    size, _, patch = name.partition("/")
    if size not in SIZES or not patch.isdigit():
        raise ValueError(
            f"LightningDiT size = {name!r}, expected one of {', '.join(SIZES)} and a patch size, as in 'XL/1'"
        )
    hidden_size, depth, num_heads = SIZES[size]
    return LightningDiT(patch_size=int(patch), hidden_size=hidden_size, depth=depth, num_heads=num_heads, **options)


def from_reference_flags(flags: dict[str, Any]) -> LightningDiT:
    """The configuration from the reference's constructor arguments (``use_qknorm``, ``wo_shift``, ...) and defaults.

    Arguments that do not change the function (dropout of labels, checkpointing) are left out: here they belong to the
    objective and to the engine. Raises ValueError for unknown arguments.
    """
    renamed = {
        "use_qknorm": "qk_norm",
        "use_swiglu": "swiglu",
        "use_rope": "rope",
        "use_rmsnorm": "rmsnorm",
        "auxiliary_time_cond": "auxiliary_time",
    }
    elsewhere = {"use_checkpoint", "class_dropout_prob", "disable_label_dropout"}
    kept = {renamed.get(name, name): value for name, value in flags.items() if name not in elsewhere}
    kept["shift"] = not kept.pop("wo_shift", False)
    unknown = kept.keys() - LightningDiT.__dataclass_fields__.keys()
    if unknown:
        raise ValueError(f"unknown flags {sorted(unknown)}, expected the reference's constructor arguments")
    defaults = {"input_size": 32, "patch_size": 2} | dict.fromkeys(("qk_norm", "swiglu", "rope", "rmsnorm"), False)
    return LightningDiT(**(defaults | kept))


def reference_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reference's state dict under this network's names: only the names of wrappers are removed.

    Raises ValueError where two names become one.
    """
    return without_wrappers(state_dict, "the state dict")


class RMSNorm(nn.Module):
    """x (..., dim) divided by its root mean square, times a learned weight; computed in at least float32."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        h = at_least_float32(x)
        return (h * torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)).type_as(x) * self.weight


def _norm(dim: int, rmsnorm: bool, affine: bool) -> nn.Module:
    return RMSNorm(dim) if rmsnorm else nn.LayerNorm(dim, eps=1e-6 if not affine else 1e-5, elementwise_affine=affine)


class RotaryPositions(nn.Module):
    """Rotary position embedding on interleaved pairs; the two halves of a head's dimensions hold the two image axes."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, head_dim: int, side: int) -> None:
        super().__init__()
        cos, sin = grid_rotation(head_dim, side)
        self.register_buffer("freqs_cos", cos)
        self.register_buffer("freqs_sin", sin)

    def forward(self, x: Tensor) -> Tensor:
        """Queries or keys x (B, heads, tokens, head_dim), rotated: the same shape."""
        h = at_least_float32(x)
        even, odd = h.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack([-odd, even], dim=-1).flatten(-2)
        return (h * self.freqs_cos + turned * self.freqs_sin).type_as(x)


class Attention(nn.Module):
    """Multi-head self-attention on tokens (B, tokens, dim), with normalised and rotated queries and keys."""

    def __init__(self, config: LightningDiT) -> None:
        super().__init__()
        dim, self.heads = config.hidden_size, config.num_heads
        head_dim = dim // config.num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = _norm(head_dim, config.rmsnorm, affine=True) if config.qk_norm else nn.Identity()
        self.k_norm = _norm(head_dim, config.rmsnorm, affine=True) if config.qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rope: nn.Module | None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        norms = self.q_norm, self.k_norm
        if isinstance(rope, RotaryPositions) and all(isinstance(n, RMSNorm) for n in norms) and _plain(rope, *norms):
            qk, v = qkv.split([2, 1], dim=2)
            weights, eps = [n.weight for n in norms], self.q_norm.eps
            q, k = queries_keys(qk, *weights, rope.freqs_cos, rope.freqs_sin, eps).transpose(1, 3).unbind(2)
            v = v.squeeze(2).transpose(1, 2)
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            q, k = self.q_norm(q), self.k_norm(k)
            if rope is not None:
                q, k = rope(q), rope(k)
        return self.proj(nnf.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """The gated MLP of Shazeer (2020)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(swiglu(self.w12(x)))


class MLP(nn.Module):
    """DiT's MLP with GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nnf.gelu(self.fc1(x), approximate="tanh"))


def modulate(x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift for x (B, tokens, dim) and shift, scale (B, dim); without shift where it is None."""
    x = x * (1 + scale[:, None])
    return x if shift is None else x + shift[:, None]


def modulate_normalised(x: Tensor, shift: Tensor | None, scale: Tensor) -> Tensor:
    """``modulate`` with shift and scale of unit mean square.

    This is norm(x) * pnorm(scale) + pnorm(shift) of sCM (arXiv 2410.11081, Sec. 4.1) around DiT's scale of 1.
    """
    return modulate(x, None if shift is None else pixel_norm(shift), pixel_norm(scale))


def normalised_and_modulated(
    norm: nn.Module, x: Tensor, shift: Tensor | None, scale: Tensor, pixel_normalised: bool
) -> Tensor:
    """The norm of x (B, tokens, dim), modulated by shift and scale (B, dim), or by those of unit mean square."""
    if isinstance(norm, RMSNorm) and _plain(norm):
        if pixel_normalised:
            shift, scale = None if shift is None else pixel_norm(shift), pixel_norm(scale)
        return norm_modulate(x, norm.weight, shift, scale, norm.eps)
    return (modulate_normalised if pixel_normalised else modulate)(norm(x), shift, scale)


def _plain(*modules: nn.Module) -> bool:
    """Whether the modules do what the classes of this file say and no more, so that one operation can stand for them
    and what is beside them: they are of no subclasses, and nobody has hooked in."""
    return all(type(m) in (RMSNorm, RotaryPositions) and not has_hooks(m) for m in modules)


def pixel_norm(x: Tensor) -> Tensor:
    """x (B, dim) divided by its root mean square."""
    h = at_least_float32(x)
    return (h * torch.rsqrt(h.square().mean(1, keepdim=True) + 1e-8)).type_as(x)


class Block(nn.Module):
    """One transformer block: tokens x (B, tokens, dim), condition c (B, dim) -> (B, tokens, dim)."""

    def __init__(self, config: LightningDiT) -> None:
        super().__init__()
        dim, hidden = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
        self.shift = config.shift
        self.pixel_norm = config.pixel_norm
        self.norm1 = _norm(dim, config.rmsnorm, affine=False)
        self.norm2 = _norm(dim, config.rmsnorm, affine=False)
        self.attn = Attention(config)
        self.mlp = SwiGLU(dim, int(2 / 3 * hidden)) if config.swiglu else MLP(dim, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, (6 if config.shift else 4) * dim))

    def forward(self, x: Tensor, c: Tensor, rope: nn.Module | None) -> Tensor:
        parts = self.adaLN_modulation(c).chunk(6 if self.shift else 4, dim=1)
        if self.shift:
            shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = parts
        else:
            (scale_1, gate_1, scale_2, gate_2), shift_1, shift_2 = parts, None, None
        h = normalised_and_modulated(self.norm1, x, shift_1, scale_1, self.pixel_norm)
        x = gated_sum(x, gate_1, self.attn(h, rope))
        h = normalised_and_modulated(self.norm2, x, shift_2, scale_2, self.pixel_norm)
        return gated_sum(x, gate_2, self.mlp(h))


class TimeEmbedding(nn.Module):
    """t (B,) -> (B, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoid(t).to(next(self.mlp.parameters()).dtype))


def sinusoid(t: Tensor) -> Tensor:
    """t (B,) -> (B, 256): cosines, then sines, of the unscaled time.

    Always in at least float32: in half precision the tangent would be noise.
    """
    t = at_least_float32(t)
    half = FREQUENCIES // 2
    frequency = torch.exp(-math.log(PERIOD) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = t[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class LabelEmbedding(nn.Module):
    """Labels (B,) int64 -> (B, dim); the last row of the table is the null label's."""

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, dim)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)


class PatchEmbedding(nn.Module):
    """Images (B, C, H, W) -> tokens (B, tokens, dim)."""

    def __init__(self, config: LightningDiT) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, config.patch_size, stride=config.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        # Without contiguous(), every later linear map would inherit the layout and, without grad, expand its weight
        # over the batch: 20 times the cost at 4 tokens.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


class FinalLayer(nn.Module):
    """Tokens (B, tokens, dim), condition (B, dim) -> patches (B, tokens, p * p * channels)."""

    def __init__(self, config: LightningDiT) -> None:
        super().__init__()
        dim, channels = config.hidden_size, config.in_channels * (2 if config.learn_sigma else 1)
        self.pixel_norm = config.pixel_norm
        self.norm_final = _norm(dim, config.rmsnorm, affine=False)
        self.linear = nn.Linear(dim, config.patch_size**2 * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(normalised_and_modulated(self.norm_final, x, shift, scale, self.pixel_norm))


class WeightHead(nn.Module):
    """w(t) (B,) = -(log variance of the loss at t), with the reference's names, which learns the log variance."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.logvar = nn.Sequential(TimeEmbedding(dim), nn.Linear(dim, 1))

    def forward(self, t: Tensor) -> Tensor:
        return -self.logvar(t).squeeze(1)


class LightningDiTNetwork(nn.Module):
    """F(x, t, cond[, r]) -> velocity (B, C, H, W); see :class:`LightningDiT`."""

    stochastic = False  # there is no dropout, nor anything else that draws random numbers
    zero_init_prefixes = ("r_embedder.", "AdaLoss.")

    def __init__(self, config: LightningDiT) -> None:
        super().__init__()
        self.config = config
        self.auxiliary_time, self.weight_head = config.auxiliary_time, config.weight_head
        side, dim = config.input_size // config.patch_size, config.hidden_size
        self.pos_embed = nn.Parameter(grid_positions(dim, side)[None], requires_grad=False)
        self.x_embedder = PatchEmbedding(config)
        self.t_embedder = TimeEmbedding(dim)
        self.r_embedder = TimeEmbedding(dim) if config.auxiliary_time else None
        self.y_embedder = LabelEmbedding(config.num_classes, dim) if config.num_classes else None
        self.feat_rope = RotaryPositions(dim // config.num_heads, side) if config.rope else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)
        self.AdaLoss = WeightHead(dim) if config.weight_head else None
        self._initialise()

    def _initialise(self) -> None:
        """DiT's initialisation: each block is the identity, the output is 0, r and the weight head have no effect."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        nn.init.zeros_(self.x_embedder.proj.bias)  # type: ignore[arg-type]
        if self.y_embedder is not None:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for embedder in filter(None, (self.t_embedder, self.r_embedder)):
            nn.init.normal_(embedder.mlp[0].weight, std=0.02)  # type: ignore[arg-type]
            nn.init.normal_(embedder.mlp[2].weight, std=0.02)  # type: ignore[arg-type]
        zeroed: list[Any] = [block.adaLN_modulation[1] for block in self.blocks]  # type: ignore[index]
        zeroed += [self.final_layer.adaLN_modulation[1], self.final_layer.linear]
        if self.r_embedder is not None:
            zeroed.append(self.r_embedder.mlp[2])
        if self.AdaLoss is not None:
            zeroed.append(self.AdaLoss.logvar[1])
        for linear in zeroed:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        h, c = self.enter(x, t, cond, r)
        for block, constants in self.links():
            h = block(h, c, *constants)
        return self.leave(h, c)

    def enter(self, x: Tensor, t: Tensor, cond: Tensor | None = None, r: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens h (B, tokens, dim) and condition c (B, dim) before the first block."""
        self._check(x, cond, r)
        c = self.t_embedder(t)
        if self.y_embedder is not None:
            c = c + self.y_embedder(cond)
        if self.r_embedder is not None:
            c = c + self.r_embedder(r)
        return self.x_embedder(x) + self.pos_embed, c

    def links(self) -> list[tuple[nn.Module, tuple[Any, ...]]]:
        """The blocks with their constants: h = block(h, c, *constants)."""
        return [(block, (self.feat_rope,)) for block in self.blocks]

    def leave(self, h: Tensor, c: Tensor) -> Tensor:
        """The velocity (B, C, H, W) from the last block's tokens."""
        return self._to_image(self.final_layer(h, c))

    def log_weight(self, t: Tensor) -> Tensor:
        """The log weight w(t) (B,) of t (B,), 0 as initialised. Raises ValueError without the head."""
        if self.AdaLoss is None:
            raise ValueError("log_weight(t) of a network with weight_head = False, expected weight_head = True")
        return self.AdaLoss(t)

    def _check(self, x: Tensor, cond: Tensor | None, r: Tensor | None) -> None:
        config = self.config
        shape = (config.in_channels, config.input_size, config.input_size)
        check_inputs(x, cond, r, shape=shape, num_classes=config.num_classes, auxiliary_time=config.auxiliary_time)

    def _to_image(self, tokens: Tensor) -> Tensor:
        """Patches (B, tokens, p * p * channels) -> (B, C, H, W), without the second half that learn_sigma adds."""
        config = self.config
        side, p = config.input_size // config.patch_size, config.patch_size
        patches = tokens.reshape(len(tokens), side, side, p, p, -1).permute(0, 5, 1, 3, 2, 4)
        return patches.reshape(len(tokens), -1, config.input_size, config.input_size)[:, : config.in_channels]


def grid_positions(dim: int, side: int) -> Tensor:
    """Fixed sine-cosine position embedding (side * side, dim): columns in the first half, rows in the second."""
    if _has_no_values():
        return torch.empty(side * side, dim)
    frequency = 1.0 / PERIOD ** (torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, dim / 2)
    columns, rows = axis[None].expand(side, side, -1), axis[:, None].expand(side, side, -1)
    return torch.cat([columns, rows], dim=-1).reshape(side * side, dim).float()


def grid_rotation(head_dim: int, side: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each (side * side, head_dim): rows in the first half, columns in the
    second."""
    if _has_no_values():
        return torch.empty(side * side, head_dim), torch.empty(side * side, head_dim)
    per_axis = head_dim // 2
    frequency = 1.0 / PERIOD ** (torch.arange(0, per_axis, 2).float() / per_axis)
    angle = (torch.arange(side).float()[:, None] * frequency).repeat_interleave(2, dim=1)  # (side, head_dim / 2)
    rows, columns = angle[:, None].expand(side, side, -1), angle[None].expand(side, side, -1)
    angles = torch.cat([rows, columns], dim=-1).reshape(side * side, head_dim)
    return angles.cos(), angles.sin()


def _has_no_values() -> bool:
    """Whether tensors are made on the meta device: there PyTorch would load its compiler for ``arange``, 2 seconds."""
    return torch.get_default_device().type == "meta"
