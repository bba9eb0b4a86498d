"""The architecture of a transformer of the DiT family, read off the names and shapes of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from facm.networks.lightning_dit import SIZES, LightningDiT

Shapes = Mapping[str, tuple[int, ...]]
BLOCK = "blocks.0."


def architecture(shapes: Shapes, heads: int | None, path: Path) -> LightningDiT:
    """The configuration whose weights have these shapes, as far as they tell: what else is there or missing is for the
    caller to find.

    heads: where the weights do not tell and the size is not a published one. path: for messages.
    Raises ValueError where these are no weights of this family, or the number of heads stays open.
    """
    if heads is not None and heads < 1:
        raise ValueError(f"heads = {heads}, expected at least 1")
    hidden, channels, patch, width = _shape(shapes, "x_embedder.proj.weight", 4, path)
    _, tokens, _ = _shape(shapes, "pos_embed", 3, path)
    side = math.isqrt(tokens)
    out = _shape(shapes, "final_layer.linear.weight", 2, path)[0]
    modulation = _shape(shapes, f"{BLOCK}adaLN_modulation.1.weight", 2, path)[0]
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    for right, what in (
        (patch == width, f"patches are {patch} x {width}, expected squares"),
        (side * side == tokens, f"pos_embed has {tokens} tokens, expected a square of them"),
        (
            out in (patch**2 * channels, 2 * patch**2 * channels),
            f"final_layer.linear.weight has {out} rows, expected {patch**2 * channels} (patch {patch}, {channels} "
            f"channels) or twice as many with a variance",
        ),
        (
            modulation in (6 * hidden, 4 * hidden),
            f"{BLOCK}adaLN_modulation.1.weight has {modulation} rows, expected {6 * hidden} or {4 * hidden} (no shift)",
        ),
    ):
        if not right:
            raise ValueError(f"{path}: {what}")
    labels = "y_embedder.embedding_table.weight"
    if labels in shapes and _shape(shapes, labels, 2, path)[0] < 2:
        raise ValueError(f"{path}: {labels} has {shapes[labels][0]} rows, expected one a class and one for none")
    swiglu = f"{BLOCK}mlp.w12.weight" in shapes
    return LightningDiT(
        input_size=side * patch,
        patch_size=patch,
        in_channels=channels,
        hidden_size=hidden,
        depth=depth,
        num_heads=_heads(shapes, hidden, depth, heads, path),
        mlp_ratio=_mlp_ratio(shapes, swiglu, hidden, path),
        num_classes=_shape(shapes, labels, 2, path)[0] - 1 if labels in shapes else 0,  # the last row is the null label
        learn_sigma=out == 2 * patch**2 * channels,
        qk_norm=f"{BLOCK}attn.q_norm.weight" in shapes,
        swiglu=swiglu,
        rope="feat_rope.freqs_cos" in shapes,
        rmsnorm=f"{BLOCK}norm1.weight" in shapes,
        shift=modulation == 6 * hidden,
        auxiliary_time="r_embedder.mlp.0.weight" in shapes,
    )


def _shape(shapes: Shapes, name: str, dims: int, path: Path) -> tuple[int, ...]:
    if name not in shapes:
        some = ", ".join(list(shapes)[:5])
        raise ValueError(
            f"{path}: these are not weights of DiT, SiT, REPA, LightningDiT or FACM: no {name} among {len(shapes)} "
            f"keys ({some}{', ...' if len(shapes) > 5 else ''})"
        )
    if len(shapes[name]) != dims:
        raise ValueError(f"{path}: {name} has shape {shapes[name]}, expected {dims} axes")
    return shapes[name]


def _heads(shapes: Shapes, hidden: int, depth: int, heads: int | None, path: Path) -> int:
    """A head's width is in the norms of queries, or in the table of rotary positions."""
    for name in (f"{BLOCK}attn.q_norm.weight", "feat_rope.freqs_cos"):
        if name in shapes:
            found = hidden // shapes[name][-1]
            if heads not in (None, found):
                raise ValueError(f"heads = {heads}, but {name} of {path} has shape {shapes[name]}: expected {found}")
            return found
    if heads is not None:
        return heads
    published = [h for width, blocks, h in SIZES.values() if (width, blocks) == (hidden, depth)]
    if not published:
        raise ValueError(
            f"{path}: {depth} blocks of width {hidden} are no published size, and nothing in its weights tells the "
            "number of attention heads: heads = None, expected it"
        )
    return published[0]


def _mlp_ratio(shapes: Shapes, swiglu: bool, hidden: int, path: Path) -> float:
    if not swiglu:
        return _shape(shapes, f"{BLOCK}mlp.fc1.weight", 2, path)[0] / hidden
    width = shapes[f"{BLOCK}mlp.w12.weight"][0] // 2
    usual = 4 * hidden
    # A gated MLP has int(2/3 of the width that the ratio says): many ratios give the same width.
    return (usual if int(2 / 3 * usual) == width else math.ceil(1.5 * width)) / hidden
