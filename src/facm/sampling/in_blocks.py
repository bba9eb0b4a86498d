"""Any number of samples, made in blocks on however many ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from facm.core.cond import Cond, taken
from facm.distributed.collectives import in_order
from facm.distributed.process_group import ALONE, World
from facm.flow.guidance import NO_GUIDANCE, Guidance
from facm.sampling.generate import blocks, sample
from facm.sampling.methods import Method
from facm.sampling.source import Source


def sample_in_blocks(
    source: Source,
    method: Method,
    n: int,
    cond: Cond,
    seed: int = 0,
    guidance: Guidance = NO_GUIDANCE,
    batch_size: int = 256,
    decoder: Callable[[Tensor], Tensor] | None = None,
    world: World = ALONE,
) -> Tensor | None:
    """Samples 0 .. n - 1 of ``seed``, (n, *shape), decoded where there is a decoder; on the first rank, None elsewhere.

    batch_size: samples made at once, which does not change them. Raises ValueError where some are not finite.
    """

    def block(indices: range) -> tuple[Tensor]:
        x = sample(source, method, indices, taken(cond, slice(indices.start, indices.stop)), seed, guidance)
        with torch.no_grad():
            return (x if decoder is None else decoder(x),)

    of_all = in_order(world, blocks(n, batch_size), block)
    parts = [part for _, (part,) in of_all if part is not None]
    if not world.first:
        return None
    x = torch.cat(parts)
    if bad := int((~x.isfinite()).flatten(1).any(1).sum()):
        raise ValueError(f"{bad} of {len(x)} samples are not finite")
    return x
