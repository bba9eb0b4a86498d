"""The ranks of this run: which one this process is, how they meet, and which error is raised when one is lost.

torchrun starts the processes and sets each one's rank in the environment. One process is no group at all.

Why the ranks agree on a name of their own before they meet: torchrun keeps one key-value store over all restarts, and
its rendezvous (``env://``) adds no prefix for a restart. Under one fixed name the ranks would find addresses of
processes that are gone, and a restart would be lost to "connection refused". ``TORCHELASTIC_RESTART_COUNT`` cannot be
the name: each machine counts its own restarts, so the counts differ after a failure on one of them
(https://github.com/pytorch/pytorch/issues/135712).
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from facm.distributed.engine import Engine

ROLL_CALL_S = 5.0
ECHO_S = 1.0


class PeerError(RuntimeError):
    """Another rank failed and reports the reason itself, so that this rank prints nothing."""


class LostRankError(RuntimeError):
    """Some ranks did not arrive at a point where the others waited for them."""


@dataclass(frozen=True)
class World:
    """This process among all ranks of the run.

    rank: Index of this process, from 0 to ranks - 1.
    ranks: Number of processes.
    local_rank: Index of this process on its machine, which is also its GPU's.
    timeout_s: Seconds to wait for another rank.
    group: The gloo group for flags and records; None for one process.
    chosen: The device to compute on, in place of the default; None for the default.
    store: The key-value store that the ranks share; None for one process.
    """

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    timeout_s: int = 600
    group: Any = field(default=None, repr=False, compare=False)
    store: Any = field(default=None, repr=False, compare=False)
    chosen: torch.device | None = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes, prints and holds the lock."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The chosen device, or this rank's GPU, or the CPU without a GPU."""
        if self.chosen is not None:
            return self.chosen
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank) if self.ranks > 1 else torch.device("cuda")


ALONE = World()


def announced() -> World:
    """This process as torchrun's environment variables describe it, before the ranks have met.

    Raises ValueError for values that torchrun does not set.
    """
    values = {}
    for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)):
        text = os.environ.get(name, str(default))
        if not text.isdigit():
            raise ValueError(f"the environment has {name} = {text!r}, expected a number as torchrun sets it")
        values[name] = int(text)
    if not values["RANK"] < values["WORLD_SIZE"]:
        raise ValueError(f"the environment has RANK = {values['RANK']} of WORLD_SIZE = {values['WORLD_SIZE']} ranks")
    return World(values["RANK"], values["WORLD_SIZE"], values["LOCAL_RANK"])


def restarts() -> int:
    """How often torchrun has restarted the processes of this machine."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextlib.contextmanager
def opened(engine: Engine) -> Iterator[World]:
    """A context in which the ranks form a process group. An error on one rank ends all of them.

    Raises ValueError for more ranks on a machine than it has GPUs, LostRankError naming the ranks that did not arrive
    within ``engine.timeout_s``, and PeerError where another rank has reported why it failed.
    """
    here = announced()
    if engine.kind(here.ranks) == "alone":
        yield ALONE
        return
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    cuda = torch.cuda.is_available()
    if cuda:
        if here.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"LOCAL_RANK = {here.local_rank} with {torch.cuda.device_count()} GPUs on this machine, expected a "
                "smaller one: let torchrun start at most one process for each GPU"
            )
        torch.cuda.set_device(here.local_rank)
    timeout = datetime.timedelta(seconds=engine.timeout_s)
    if here.ranks > 1:
        shared, _, _ = next(rendezvous("env://", timeout=timeout))
        store = dist.PrefixStore(_common_name(shared, here, engine.timeout_s), shared)
    else:
        store = dist.PrefixStore("facm", dist.HashStore())
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=here.rank, world_size=here.ranks, timeout=timeout
    )
    group = dist.new_group(backend="gloo", timeout=timeout) if cuda else dist.group.WORLD
    world = World(here.rank, here.ranks, here.local_rank, engine.timeout_s, group, store)
    try:
        yield world
    except Exception as error:
        explained = _explained(error, world)
        if not cuda:  # closing gloo's connections wakes the others; NCCL would wait for them
            dist.destroy_process_group()
        if explained is error:
            raise
        raise explained from error
    dist.destroy_process_group()


def _common_name(store: Any, here: World, timeout_s: int) -> str:
    """A name for the store's keys that these processes share and none before them used; the first rank chooses it.

    Every other rank writes a random word of its own and waits for the name under that word, so that the answer cannot
    be one to a process before it. Raises LostRankError naming the ranks that do not appear.
    """
    word, end = uuid.uuid4().hex, time.monotonic() + timeout_s
    if not here.first:
        store.set(f"facm/hello/{here.rank}", word)
        store.wait([f"facm/name-for/{word}"], datetime.timedelta(seconds=timeout_s))
        name = store.get(f"facm/name-for/{word}").decode()
        store.set(f"facm/{name}/here/{here.rank}", "yes")
        return name
    missing, answered = set(range(1, here.ranks)), set()
    while missing:
        for rank in sorted(missing):
            if store.check([f"facm/{word}/here/{rank}"]):
                missing.discard(rank)
            elif (
                store.check([f"facm/hello/{rank}"])
                and (said := store.get(f"facm/hello/{rank}").decode()) not in answered
            ):
                store.set(f"facm/name-for/{said}", word)
                answered.add(said)
        if missing and time.monotonic() > end:
            raise LostRankError(_lost(sorted(missing), here.ranks, timeout_s, "at the start"))
        time.sleep(0.01)
    return word


def _lost(ranks: list[int], of: int, timeout_s: int, where: str) -> str:
    return (
        f"rank {', '.join(map(str, ranks))} of {of} did not arrive: dead, or busy for longer than "
        f"engine.timeout_s = {timeout_s} ({where})"
    )


def _explained(error: Exception, world: World) -> Exception:
    """``error``, or the error behind it: that another rank failed or is lost."""
    if isinstance(error, PeerError):
        return error
    try:
        if not _is_about_others(error):
            return _said_once(error, world)
        world.store.set(f"facm/waited/{world.rank}", "yes")
        return _roll_call(error, world)
    except Exception:  # the store is gone with its machine: keep the first error
        return error


def _is_about_others(error: Exception) -> bool:
    import torch.distributed as dist

    text = str(error)
    signs = ("gloo", "Connection closed by peer", "Connection reset by peer", "monitoredBarrier", "NCCL")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in signs)
    )


def _said_once(error: Exception, world: World) -> Exception:
    """PeerError for an error that the first rank meets as well, such as a bad setting, and will print."""
    text = f"{type(error).__name__}: {error}"
    world.store.set(f"facm/failed/{world.rank}", text)
    end = time.monotonic() + ECHO_S
    while not world.first and time.monotonic() < end:
        if world.store.check(["facm/failed/0"]):
            same = world.store.get("facm/failed/0").decode() == text
            return PeerError("rank 0 failed in the same way") if same else error
        time.sleep(0.02)
    return error


def _roll_call(error: Exception, world: World) -> Exception:
    """The error that names the ranks that failed, or those that neither failed nor wait as this rank does."""
    others = [rank for rank in range(world.ranks) if rank != world.rank]
    end = time.monotonic() + ROLL_CALL_S
    while True:
        failed = [rank for rank in others if world.store.check([f"facm/failed/{rank}"])]
        if failed:
            return PeerError(f"rank {failed[0]} failed: {world.store.get(f'facm/failed/{failed[0]}').decode()}")
        lost = [rank for rank in others if not world.store.check([f"facm/waited/{rank}"])]
        if not lost or time.monotonic() > end:
            break
        time.sleep(0.05)
    if not lost:
        return RuntimeError(f"the ranks lost each other, though all of them are there: {error}")
    message = _lost(lost, world.ranks, world.timeout_s, str(error).splitlines()[0])
    speaks = not any(rank < world.rank and rank not in lost for rank in others)
    return LostRankError(message) if speaks else PeerError(message)
