"""Prompts to embeddings, which are stored without their padding."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facm.core.files import write_text
from facm.core.preparation import record_path, record_text
from facm.foundation.captions.manifest import Part, ShardRecord
from facm.foundation.captions.shards import NULL, PROMPTS, Shard, prompt_tensors, read_shard, write
from facm.foundation.families.base import Family
from facm.foundation.prepare.settings import Settings

MASK = "mask"
LENGTHS = 8
"""Embeddings with a mask are padded to a multiple of this number of tokens."""
LEAST_SAID = 60
"""Characters of a prompt that are shown."""


@dataclass(frozen=True)
class Cut:
    """A prompt that is longer than the encoder takes.

    index: its number in the source.
    prompt: the prompt.
    lost: its end, which the model does not see.
    """

    index: int
    prompt: str
    lost: str


def cut_line(cut: Cut) -> str:
    """Which prompt was cut, and what the model does not see of it."""
    lost = cut.lost if len(cut.lost) <= LEAST_SAID else f"{cut.lost[:LEAST_SAID]}..."
    return f"number {cut.index + 1}, {cut.prompt[:LEAST_SAID]!r}...: without its last {len(cut.lost)} letters, {lost!r}"


def cut_of(family: Family, pipe: Any, index: int, prompt: str) -> Cut | None:
    """What is lost of a prompt; None where it is taken as a whole."""
    most = family.most_tokens(pipe)
    if family.count_tokens(pipe, prompt) <= most:
        return None
    low, high = 0, len(prompt)  # characters that are taken, and the first number of them that is too many
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if family.count_tokens(pipe, prompt[:middle]) <= most else (low, middle)
    return Cut(index, prompt, prompt[low:])


@torch.no_grad()
def encoded(
    family: Family, pipe: Any, prompts: Sequence[str], kind: torch.dtype | None, negative: bool = False
) -> tuple[list[dict[str, Tensor]], dict[str, int]]:
    """The parts of each prompt on the CPU, of tokens (L, ...) without padding, and the length that a part of tokens has
    with its padding, 0 where a mask says what is padding, so that any length is one.

    kind: type of parts in floating point; None: as the encoder has them.
    Raises ValueError naming a prompt whose embedding is not finite.
    """
    parts = {
        name: _stored(value.detach().cpu(), kind)
        for name, value in family.encode(pipe, list(prompts), negative).items()
    }
    tokens = tokens_of(parts)
    mask = parts.get(MASK)
    rows = []
    for i, prompt in enumerate(prompts):
        row = {}
        for name, value in parts.items():
            own = value[i]
            if name in tokens:
                own = own[: _length(own if mask is None else mask[i])]
            if own.is_floating_point() and not bool(own.isfinite().all()):
                raise ValueError(f"the embedding of {prompt!r:.80} is not finite in {name}")
            row[name] = own.clone()
        rows.append(row)
    return rows, {name: 0 if mask is not None else value.shape[1] for name, value in parts.items() if name in tokens}


def tokens_of(parts: dict[str, Tensor]) -> frozenset[str]:
    """Which parts (B, ...) are sequences of tokens: the mask (B, L), and all (B, L, D)."""
    return frozenset(name for name, value in parts.items() if name == MASK or value.ndim > 2)


def _stored(value: Tensor, kind: torch.dtype | None) -> Tensor:
    if value.is_floating_point():
        value = value.to(kind or value.dtype)
        return value.float() if value.dtype == torch.float64 else value
    return value


def _length(values: Tensor) -> int:
    """Number of tokens (L, ...) before the zeros at the end."""
    used = values.reshape(len(values), -1).ne(0).any(1).nonzero()
    return int(used[-1]) + 1 if len(used) else 0


def encode_null(family: Family, pipe: Any, out: Path, settings: Settings) -> None:
    """Write the embedding of the negative prompt and its record, which says how long unmasked parts are."""
    rows, lengths = encoded(family, pipe, [settings.negative_prompt], _kind(settings), negative=True)
    path = out / NULL
    sha256 = write(path, prompt_tensors([settings.negative_prompt], rows, frozenset(lengths)))
    record = ShardRecord(path.name, 1, path.stat().st_size, sha256)
    write_text(record_path(path), record_text(asdict(record)))
    write_text(lengths_path(out), json.dumps(lengths) + "\n")


def lengths_path(out: Path) -> Path:
    """The record of how long parts of tokens are with their padding."""
    return record_path(out / "lengths.safetensors")


def encode_prompts(
    family: Family,
    pipe: Any,
    prompts: Sequence[str],
    out: Path,
    settings: Settings,
    shards: Iterable[int],
    order: Sequence[int],
    batch_size: int,
    lengths: dict[str, int],
) -> Generator[tuple[int, list[Cut]], None, None]:
    """Write ``shards`` of embeddings, and yield the number of prompts of each batch with those that were cut.

    order: number of the source's sample at each place. lengths: as :func:`encoded` gives them for the null.
    A shard is on the disk before its last batch is yielded.
    """
    for k in shards:
        span = settings.spans[k]
        rows, texts, cut = list[dict[str, Tensor]](), list[str](), 0
        for start in range(span.start, span.stop, batch_size):
            here = [order[place] for place in range(start, min(start + batch_size, span.stop))]
            batch = [prompts[i] for i in here]
            lost = [found for i, prompt in zip(here, batch, strict=True) if (found := cut_of(family, pipe, i, prompt))]
            made, padded = encoded(family, pipe, batch, _kind(settings))
            if padded != lengths:
                raise ValueError(
                    f"prompts have {padded} tokens, the negative prompt {lengths}; expected a mask, or one length"
                )
            rows, texts, cut = rows + made, texts + batch, cut + len(lost)
            if start + batch_size >= span.stop:
                path = out / settings.file(PROMPTS, k)
                record_path(path).unlink(missing_ok=True)
                sha256 = write(path, prompt_tensors(texts, rows, frozenset(lengths)))
                record = ShardRecord(path.name, len(rows), os.stat(path).st_size, sha256, cut)
                write_text(record_path(path), record_text(asdict(record)))
            yield len(batch), lost


def _kind(settings: Settings) -> torch.dtype | None:
    return torch.bfloat16 if settings.embeddings == "bf16" else None


def parts_of(shards: Sequence[Shard], lengths: dict[str, int]) -> tuple[Part, ...]:
    """The condition's parts in the whole data set, with the length that each has there.

    shards: all shards of prompts, and that of the null. lengths: as :func:`encoded` gives them.
    Parts with a mask are padded to the longest of all, rounded up; without one all are as long as the encoder makes
    them, for there padding takes part.
    """
    longest: dict[str, int] = {}
    for shard in shards:
        for name, n in shard.longest().items():
            longest[name] = max(longest.get(name, 1), n)
    first = shards[0]
    found = []
    for name in first.parts:
        shape = first.shapes[f"part.{name}"][1:]
        if name in lengths:
            length = lengths[name] or -(-longest[name] // LENGTHS) * LENGTHS
            shape = (length, *shape)
        found.append(Part(name, first.types[f"part.{name}"], shape, name in lengths))
    return tuple(found)


def written(out: Path, settings: Settings) -> list[Shard]:
    """All shards of prompts and that of the null, opened."""
    files = [settings.file(PROMPTS, k) for k in range(len(settings.spans))]
    return [read_shard(out / file, PROMPTS) for file in (*files, NULL)]
