"""Strict loading of a published autoencoder's weights into a frozen module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from facm.core.state_dict import without_wrappers

Built = TypeVar("Built", bound=nn.Module)


def tensors_of(content: Any, path: Path, what: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint: the content itself, or its entry ``state_dict`` (Lightning); without
    the names of wrappers.

    Raises ValueError naming the file and its content.
    """
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    named = isinstance(state, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    )
    if named and state:
        return without_wrappers(state, str(path))
    holds = f"the keys {_some(list(state))}" if isinstance(state, Mapping) else f"a {type(state).__name__}"
    raise ValueError(f"{path} holds {holds}, expected {what}: named tensors, or these under the key 'state_dict'")


def on_meta(build: Callable[[], Built]) -> Built:
    """A module without memory, which :func:`fill` gives its weights; initialising them first would be wasted."""
    with torch.device("meta"):
        return build()


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Move a module from the meta device to the CPU and load ``state`` into it, in the module's precision.

    Raises ValueError listing weights that are missing, unexpected or of another shape.
    """
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    misshapen = [
        f"{name} {tuple(state[name].shape)} instead of {shape}"
        for name, shape in own.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    misfits(source, [n for n in own if n not in state], [n for n in state if n not in own], misshapen)
    module.to_empty(device="cpu").load_state_dict(state, strict=True)


def misfits(source: str, missing: list[str], unexpected: list[str], misshapen: list[str]) -> None:
    """Raise ValueError with the numbers and the first names of weights that do not fit, if there are any."""
    named = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    wrong = [f"{len(names)} {kind}: {_some(names)}" for kind, names in named if names]
    if wrong:
        raise ValueError(f"{source} does not fit: {'; '.join(wrong)}")


def frozen(module: nn.Module) -> None:
    """Put a module into eval mode, without gradients."""
    module.requires_grad_(False).eval()


def _some(names: list[Any]) -> str:
    return ", ".join(str(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
