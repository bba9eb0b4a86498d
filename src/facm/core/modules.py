"""A network's blocks, the units of chain, checkpointing, compilation and sharding; and a network without memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from facm.core.rng import borrowed_generators
from facm.core.torch_private import compiled_call, compiled_from

HOLDERS = (nn.ModuleList, nn.ModuleDict)


def blocks_of(network: nn.Module, names: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The blocks in order, by their full name in ``network``.

    names: Names of modules; a ModuleList or ModuleDict stands for all its entries. Empty: the entries of the outermost
        ModuleLists, which hold the blocks of most transformers and U-Nets, or else of the outermost ModuleDicts. A
        network with neither has no blocks.
    Raises ValueError for a name that is no module, given twice, or inside another block.
    """
    lists = names or _outermost(nn.ModuleList, network) or _outermost(nn.ModuleDict, network)
    modules = dict(network.named_modules())
    found: dict[str, nn.Module] = {}
    for name in lists:
        if name not in modules:
            known = ", ".join(n for n, m in modules.items() if n and isinstance(m, HOLDERS)) or "no ModuleList"
            raise ValueError(
                f"blocks = {tuple(names)}: {type(network).__name__} has no module {name!r}; it has {known}"
            )
        module = modules[name]
        entries = (
            {f"{name}.{key}": m for key, m in module.named_children()}
            if isinstance(module, HOLDERS)
            else {name: module}
        )
        for full, entry in entries.items():
            for other in found:
                if full == other or full.startswith(other + ".") or other.startswith(full + "."):
                    raise ValueError(
                        f"blocks = {tuple(names)}: {full!r} and {other!r} overlap, expected separate modules"
                    )
            found[full] = entry
    return {full: m for full, m in found.items() if any(True for _ in m.parameters())}


def _outermost(kind: type[nn.Module], network: nn.Module) -> list[str]:
    """Names of the modules of a kind that are not inside another one of that kind."""
    found = [name for name, m in network.named_modules() if name and isinstance(m, kind)]
    return [name for name in found if not any(name.startswith(other + ".") for other in found)]


def without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    """A network's names and shapes, without memory for them; with it where its constructor reads numbers off tensors.

    No random numbers are used up.
    """
    try:
        with torch.device("meta"), _WithoutValues():
            return build()
    except (RuntimeError, NotImplementedError):
        with borrowed_generators(0):
            return build()


class _WithoutValues(TorchFunctionMode):
    """Draws no first weights on the meta device, where they have no values: PyTorch would load its compiler for it,
    which takes 2 seconds, longer than all else of a command that only looks at a network."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS or getattr(func, "__module__", "") == "torch.nn.init":
            filled = args[0] if args else kwargs.get("tensor")
            if isinstance(filled, torch.Tensor) and filled.is_meta:
                return filled
        return func(*args, **kwargs)


_DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_)


def is_compiled(module: Any) -> bool:
    """Whether ``module.compile()`` was called."""
    return compiled_call(module) is not None


def has_compiled_parts(network: Any) -> bool:
    """Whether ``module.compile()`` was called on a module inside ``network``."""
    return isinstance(network, nn.Module) and any(is_compiled(m) for m in network.modules() if m is not network)


def unwrapped(network: Any) -> Any:
    """The network inside a wrapper for data parallelism or of ``torch.compile``; any other network itself."""
    network = getattr(network, "module", network)
    return compiled_from(network) or network
