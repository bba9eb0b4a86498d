"""How a run is executed, never what it computes: no part of the run or its fingerprint, recorded in sessions.jsonl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Engine:
    """How a run is spread over processes and memory. Start several processes with torchrun; docs/scale.md."""

    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp: every rank holds the whole network; fsdp: every rank holds a shard of it; auto: ddp for several ranks."""
    replicas: int = 1
    """fsdp only: number of groups of ranks, each of which holds one sharded copy of the network (HSDP)."""
    accumulate: int = 1
    """Micro-batches in one step: less memory, the same gradient."""
    checkpointing: bool = False
    """Recompute each block's activations in the backward pass instead of keeping them."""
    compile: Literal["no", "blocks"] = "no"
    """blocks: torch.compile each block of student and teacher, alike ones once; passes that carry tangents from outside
    stay eager. Code is kept in TORCHINDUCTOR_CACHE_DIR or ~/.cache/facm/inductor."""
    cpu_offload: bool = False
    """fsdp only: keep parameters, gradients and optimiser state in main memory."""
    find_unused: bool = False
    """ddp only: allow parameters that take no part in a step."""
    prefetch: Literal["auto", "yes", "no"] = "auto"
    """Read the next batch during the current step; auto: on a GPU only, because a CPU has no idle time to read in."""
    timeout_s: int = 600
    """Seconds to wait for a rank before the run ends with an error that names it."""
    blocks: tuple[str, ...] = ()
    """Names of the modules that are the units; default: the entries of the outermost ModuleLists, or ModuleDicts."""

    def __post_init__(self) -> None:
        choices = {
            "parallel": ("auto", "ddp", "fsdp"),
            "compile": ("no", "blocks"),
            "prefetch": ("auto", "yes", "no"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"engine.{name} = {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        for name in ("replicas", "accumulate", "timeout_s"):
            if getattr(self, name) < 1:
                raise ValueError(f"engine.{name} = {getattr(self, name)}, expected at least 1")
        for name, off in (("replicas", 1), ("cpu_offload", False)):
            if self.parallel != "fsdp" and getattr(self, name) != off:
                raise ValueError(
                    f"engine.{name} = {getattr(self, name)} with engine.parallel = {self.parallel!r}: expected 'fsdp'"
                )
        if self.find_unused and self.parallel == "fsdp":
            raise ValueError("engine.find_unused = True with engine.parallel = 'fsdp', which needs no such thing")
        if isinstance(self.blocks, str) or not all(isinstance(name, str) and name for name in self.blocks):
            raise ValueError(f"engine.blocks = {self.blocks!r}, expected names of modules")

    def kind(self, ranks: int) -> Literal["alone", "ddp", "fsdp"]:
        """What ``parallel`` means for so many ranks. fsdp holds for one rank, too: it may offload."""
        if self.parallel == "fsdp":
            return "fsdp"
        return "alone" if ranks == 1 else "ddp"

    def check(self, batch_size: int, ranks: int) -> None:
        """Raise ValueError where the batch or the ranks do not divide."""
        if batch_size % (ranks * self.accumulate):
            raise ValueError(
                f"batch_size = {batch_size} over {ranks} ranks with engine.accumulate = {self.accumulate}: expected a "
                f"multiple of {ranks} * {self.accumulate} = {ranks * self.accumulate}"
            )
        if ranks % self.replicas:
            raise ValueError(
                f"engine.replicas = {self.replicas} with {ranks} ranks: expected a divisor of {ranks}, so that each "
                "replica gets as many ranks"
            )
