"""How public training programs lay out a file of weights: which parts it has, and what it says about them.

DiT, SiT, REPA            a bare state dict (releases), or {model, ema, opt, args} (their training checkpoints)
LightningDiT              {model, ema, opt, config}
FACM, pre-training        {ema, _extracted_from: "Standard EMA"}
FACM, released students   {ema, _extracted_from: "PostHocEMA"}
FACM, training            {model, emas, opt, args, epoch, step}; emas: ema_models.{i}.ema_model.* of each length
FACM, EMA snapshots       {initted, step, ema_model.*}, in half precision (ema_checkpoints/{i}.{step}.pt)
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from facm.core.state_dict import without_wrappers


@dataclass(frozen=True, eq=False)
class Part:
    """One set of weights in a file.

    state: weights under their names in the network.
    which: what they are, in words.
    dropped: the file's keys that are no weights of the network.
    """

    state: Mapping[str, Tensor]
    which: str
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Layout:
    """How a file arranges its weights.

    parts: by name, the default first.
    settings: the options of training that the file holds, flat.
    trained_by: "facm" or "lightningdit" where the layout is theirs alone.
    """

    parts: Mapping[str, Part]
    settings: Mapping[str, Any] = field(default_factory=dict)
    trained_by: str | None = None

    def part(self, weights: str | None, path: Path) -> Part:
        """The part called ``weights``, None for the default. Raises ValueError listing what there is."""
        if weights is None:
            return next(iter(self.parts.values()))
        if weights not in self.parts:
            raise ValueError(f"{path} has no weights {weights!r}, expected one of: {', '.join(self.parts)}")
        return self.parts[weights]


def layout_of(content: Any, path: Path) -> Layout:
    """The layout of what a file holds. Raises ValueError where there are no weights in it."""
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds {_kind(content)}, expected a state dict or a training checkpoint")
    if not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path} has keys that are no text, expected a state dict or a training checkpoint")
    if all(isinstance(value, Tensor) for value in content.values()):
        return _bare(content, path)
    parts: dict[str, Part] = {}
    origin = str(content.get("_extracted_from", ""))
    if isinstance(content.get("ema"), Mapping):
        parts["ema"] = Part(_weights(content["ema"], "ema", path), f"ema ({origin})" if origin else "ema")
    if isinstance(content.get("emas"), Mapping):
        parts |= _emas(content["emas"], path)
    if isinstance(content.get("model"), Mapping):
        parts["model"] = Part(_weights(content["model"], "model", path), "model, without EMA")
    if not parts:
        raise ValueError(
            f"{path} has no weights that are known here, expected ema, emas or model; it has: {_some(content)}"
        )
    return Layout(parts, _settings(content), _trained_by(content, origin))


def _bare(content: Mapping[str, Any], path: Path) -> Layout:
    if any(name.startswith("ema_model.") for name in content):  # a snapshot of one EMA
        state = {name: value for name, value in content.items() if name.startswith("ema_model.")}
        clock = content.get("step")
        step = f" at step {int(clock.item())}" if clock is not None and clock.numel() == 1 else ""
        dropped = tuple(name for name in content if name not in state)
        part = Part(_weights(state, "ema_model", path), f"EMA snapshot{step}", dropped)
        return Layout({"ema_model": part}, trained_by="facm")
    return Layout({"model": Part(_weights(content, "the file", path), "the only weights")})


def _emas(emas: Mapping[str, Any], path: Path) -> dict[str, Part]:
    found: dict[int, dict[str, Any]] = {}
    dropped: dict[int, list[str]] = {}
    for name, value in emas.items():
        matched = re.fullmatch(r"ema_models\.(\d+)\.(ema_model\.)?(.+)", str(name))
        if not matched:
            raise ValueError(f"{path}: emas has the key {name}, expected ema_models.<number>.ema_model.<weight>")
        index, weight = int(matched[1]), bool(matched[2])
        if weight:
            found.setdefault(index, {})[matched[3]] = value
        else:
            dropped.setdefault(index, []).append(name)
    return {
        f"ema_models.{i}": Part(
            _weights(found[i], f"ema_models.{i}", path), f"ema_models.{i} of {len(found)}", tuple(dropped.get(i, ()))
        )
        for i in sorted(found, reverse=True)  # the longest first: sigma_rel 0.2, which the authors sample
    }


def _weights(state: Mapping[str, Any], part: str, path: Path) -> dict[str, Tensor]:
    foreign = [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if foreign or not state:
        what = f"{foreign[0]!r} is {_kind(state[foreign[0]])}" if foreign else "it is empty"
        raise ValueError(f"{path}: {part} is no state dict ({what}); expected tensors by name")
    return without_wrappers(state, f"{path}: {part}")


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Options of training: an argparse namespace, or a configuration of sections."""
    given = content.get("args", content.get("config"))
    if isinstance(given, argparse.Namespace):
        return dict(vars(given))
    if not isinstance(given, Mapping):
        return {}
    sections = [section for section in given.values() if isinstance(section, Mapping)]
    flat = {key: value for section in sections for key, value in section.items()}
    named = {"model": flat["model_type"]} if "model_type" in flat else {}
    return {**given, **flat, **named}


def _trained_by(content: Mapping[str, Any], origin: str) -> str | None:
    if "emas" in content or origin.startswith("PostHocEMA"):
        return "facm"
    if origin.startswith("Standard EMA") or ("config" in content and "opt" in content):
        return "lightningdit"
    return None


def _kind(value: Any) -> str:
    return "nothing" if isinstance(value, Mapping) and not value else f"a {type(value).__name__}"


def _some(names: Mapping[str, Any]) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:8]) + (f", ... ({len(listed)} in all)" if len(listed) > 8 else "")
