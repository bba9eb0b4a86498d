"""EDM's published networks (NVlabs/edm, edm-*-vp.pkl), read off the pickles that hold them, without their code.

What such a file's code would do is checked against what is known of it: the arguments that made the network, and the
constants in its modules. A network with others would have the same names and shapes, and other results.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from facm.core.untrusted.persistence import Record, modules_of, read_persistent, weights_of
from facm.networks.adapters.edm import EDM
from facm.networks.ddpm_pp import DDPMpp

MOST_ITEMS = 64
"""Of a list among the arguments."""

WHAT = "a pickle of EDM's (NVlabs/edm) with the network 'ema'"

SUPPORTED = (
    "only EDM's preconditioning of DDPM++ is known here: the files edm-*-vp.pkl, not -ve (NCSN++), -adm or baseline-*"
)

FIXED: Mapping[str, Any] = {
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "channel_mult_emb": 4,
    "resample_filter": [1, 1],
}
"""What makes EDM's SongUNet a DDPM++; all are its defaults."""

FREE: Mapping[str, Any] = {
    "label_dim": 0,
    "augment_dim": 0,
    "model_channels": 128,
    "channel_mult": [1, 2, 2, 2],
    "num_blocks": 4,
    "attn_resolutions": [16],
    "dropout": 0.1,
    "label_dropout": 0,
}
"""SongUNet's other arguments and their defaults."""

CONSTANTS: Mapping[str, Mapping[str, Any]] = {
    "UNetBlock": {"adaptive_scale": False, "skip_scale": math.sqrt(0.5)},
    "GroupNorm": {"eps": 1e-6},
}


def edm_network(path: Path) -> tuple[EDM, dict[str, Tensor]]:
    """The network "ema" in the file: its configuration, and its weights under the configuration's names.

    Raises ValueError where the file holds something else, or code of its own.
    """
    content = read_persistent(path, WHAT)
    outer = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(outer, Record):
        there = ", ".join(map(str, content)) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"{path} has no network 'ema', expected {WHAT}; it has: {there}")
    if outer.kind != "EDMPrecond":
        raise ValueError(f"{path}: its network is a {outer.kind}, expected an EDMPrecond: {SUPPORTED}")
    modules = modules_of(outer, path)
    network = modules.get("model.")
    if network is None or network.kind != "SongUNet":
        found = "nothing" if network is None else f"a {network.kind}"
        raise ValueError(f"{path}: EDMPrecond is of {found}, expected a SongUNet: {SUPPORTED}")
    weights = weights_of(modules, path)
    inner = _ddpm_pp(_arguments(network, path), len(weights), path)
    _check_constants(modules, weights, path)
    try:
        config = EDM(
            inner,
            sigma_data=_number(outer.state, "sigma_data", 0.5, path),
            sigma_min=max(EDM.sigma_min, _number(outer.state, "sigma_min", 0.0, path)),
            sigma_max=min(EDM.sigma_max, _number(outer.state, "sigma_max", math.inf, path)),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config, {f"inner.{name.removeprefix('model.')}": value for name, value in weights.items()}


def _arguments(network: Record, path: Path) -> dict[str, Any]:
    """All arguments that SongUNet was made with. Raises ValueError unless they are known, and make a DDPM++."""
    given = network.state.get("_init_kwargs")
    if not _same(network.state.get("_init_args"), ()) or not isinstance(given, dict):
        raise ValueError(f"{path}: its SongUNet does not say the named arguments that made it (_init_kwargs)")
    arguments = {**FIXED, **FREE, **given}
    known = {*FIXED, *FREE, "img_resolution", "in_channels", "out_channels"}
    if arguments.keys() != known:
        wrong = ", ".join(sorted(map(str, arguments.keys() ^ known)))
        raise ValueError(f"{path}: its SongUNet lacks or adds {wrong} among its arguments: {SUPPORTED}")
    for name, expected in FIXED.items():
        if not _same(arguments[name], expected):
            raise ValueError(
                f"{path}: its SongUNet has {name} = {_shown(arguments[name])}, expected {expected!r}: {SUPPORTED}"
            )
    if not _same(arguments["in_channels"], arguments["out_channels"]):
        made = f"{_shown(arguments['in_channels'])} channels into {_shown(arguments['out_channels'])}"
        raise ValueError(f"{path}: its SongUNet makes {made}, expected as many: {SUPPORTED}")
    return arguments


def _ddpm_pp(arguments: Mapping[str, Any], most: int, path: Path) -> DDPMpp:
    """most: more blocks than the file has weights are not built in order to find that out."""
    size = _whole(arguments, "img_resolution", path, 1)
    multipliers = _wholes(arguments, "channel_mult", path)
    sizes = [size >> level for level in range(len(multipliers))]
    blocks = _whole(arguments, "num_blocks", path, 1)
    if blocks > most:
        raise ValueError(f"{path}: num_blocks = {blocks} with {most} weights in all, expected fewer")
    channels = _whole(arguments, "model_channels", path, 1)
    in_channels = _whole(arguments, "in_channels", path, 1)
    attention = tuple(size for size in _wholes(arguments, "attn_resolutions", path) if size in sizes)
    num_classes, augment_dim = (_whole(arguments, name, path, 0) for name in ("label_dim", "augment_dim"))
    dropout = _number(arguments, "dropout", 0.0, path)
    try:
        return DDPMpp(size, in_channels, channels, multipliers, blocks, attention, dropout, num_classes, augment_dim)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_constants(modules: Mapping[str, Record], weights: Mapping[str, Tensor], path: Path) -> None:
    for prefix, module in modules.items():
        for name, expected in CONSTANTS.get(module.kind, {}).items():
            if not _same(module.state.get(name), expected):
                raise ValueError(
                    f"{path}: {prefix}{name} = {_shown(module.state.get(name))}, expected {expected!r}: {SUPPORTED}"
                )
    for name, value in weights.items():
        if name.endswith(".resample_filter"):
            held = value.flatten().tolist() if value.shape == (1, 1, 2, 2) else f"of shape {tuple(value.shape)}"
            if held != [0.25] * 4:
                raise ValueError(f"{path}: {name} is {held}, expected 0.25 everywhere in (1, 1, 2, 2): {SUPPORTED}")


def _same(value: Any, expected: Any) -> bool:
    """Whether both are plain, and of the same types and values: a file may hold anything, and not everything compares.

    False also for two alike that are not plain.
    """
    written = _written(value)
    return written is not None and written == _written(expected)


def _written(value: Any) -> tuple[Any, ...] | None:
    """The types and values in a number, a text, or a short list or tuple of these alone; None for anything else.

    A few bytes of a file can be lists in lists that take years to compare or to print.
    """
    held = value if type(value) in (list, tuple) and len(value) <= MOST_ITEMS else (value,)
    plain = all(type(each) in (bool, int, float, str, type(None)) for each in held)
    return (type(value), *((type(each), each) for each in held)) if plain else None


def _shown(value: Any) -> str:
    return f"{type(value).__name__.lower()}(...)" if _written(value) is None else reprlib.repr(value)


def _whole(named: Mapping[str, Any], name: str, path: Path, least: int) -> int:
    value = named[name]
    if type(value) is not int or not least <= value < 2**16:
        raise ValueError(
            f"{path}: {name} = {_shown(value)}, expected a whole number of at least {least}, below {2**16}"
        )
    return value


def _wholes(named: Mapping[str, Any], name: str, path: Path) -> tuple[int, ...]:
    values = named[name]
    if not isinstance(values, list | tuple) or len(values) > MOST_ITEMS:
        raise ValueError(f"{path}: {name} = {_shown(values)}, expected a list of at most {MOST_ITEMS} whole numbers")
    return tuple(_whole({name: value}, name, path, 1) for value in values)


def _number(named: Mapping[str, Any], name: str, default: float, path: Path) -> float:
    value = named.get(name, default)
    if type(value) not in (int, float):
        raise ValueError(f"{path}: {name} = {_shown(value)}, expected a number")
    return float(value)
