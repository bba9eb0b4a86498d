"""Communication of the ranks besides gradients: flags, records and averages. One process returns the value itself.

Values travel over the gloo group on the CPU. All ranks call each function, in the same order.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from facm.distributed.process_group import World

T = TypeVar("T")
R = TypeVar("R")


def any_of(world: World, flag: bool) -> bool:
    """Whether ``flag`` is true on at least one rank."""
    if world.ranks == 1:
        return flag
    import torch.distributed as dist

    value = torch.tensor([int(flag)])
    dist.all_reduce(value, dist.ReduceOp.MAX, group=world.group)
    return bool(value.item())


def any_of_default_group(flags: Sequence[bool]) -> list[bool]:
    """Whether each flag is true on at least one rank of the default group, for networks, which know no world."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return list(flags)
    value = torch.tensor([int(flag) for flag in flags])
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return [bool(flag) for flag in value.tolist()]


def gathered(world: World, value: Any) -> list[Any]:
    """The values of all ranks in order of rank, on every rank."""
    if world.ranks == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world.ranks
    dist.all_gather_object(values, value, group=world.group)
    return values


def from_first(world: World, value: Any) -> Any:
    """The first rank's value."""
    if world.ranks == 1:
        return value
    import torch.distributed as dist

    holder = [value]
    dist.broadcast_object_list(holder, src=0, group=world.group)
    return holder[0]


def meet(world: World) -> None:
    """Wait for all ranks. Raises RuntimeError naming the ranks that do not arrive within the time limit."""
    if world.ranks == 1:
        return
    import torch.distributed as dist

    dist.monitored_barrier(world.group, datetime.timedelta(seconds=world.timeout_s), wait_all_ranks=True)


def by_first(world: World, action: Callable[[], T]) -> T:
    """The result of ``action``, which the first rank runs while the others wait; its error ends all of them."""
    result = action() if world.first else None
    return from_first(world, result)


def means(world: World, values: Mapping[str, float]) -> dict[str, float]:
    """Averages over the ranks, which must have the same names."""
    if world.ranks == 1:
        return dict(values)
    import torch.distributed as dist

    total = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(total, group=world.group)
    return dict(zip(values, (total / world.ranks).tolist(), strict=True))


def check_same(world: World, what: str, value: Any) -> None:
    """Raise ValueError unless all ranks hold an equal ``value``."""
    values = gathered(world, value)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise ValueError(f"{what} differs between the ranks: {values[0]!r} on rank 0, {other!r} on rank {rank}")


def in_order(
    world: World, items: Sequence[T], compute: Callable[[T], tuple[Tensor | None, ...]], ahead: bool | None = None
) -> Iterator[tuple[T, tuple[Tensor | None, ...]]]:
    """``compute`` of each item, with item k on rank k % ranks; the first rank yields all results in order.

    The other ranks yield nothing. Each result must not depend on the rank that computes it, so that the sequence does
    not depend on the number of ranks.

    ahead: whether a thread computes this rank's next item while the last one is used; None: where the world's device is
        a GPU, which would wait for the caller otherwise. On a CPU the two would take each other's cores.
    """

    def on_cpu(item: T) -> tuple[Tensor | None, ...]:
        return tuple(None if x is None else x.cpu() for x in compute(item))

    groups = [items[start : start + world.ranks] for start in range(0, len(items), world.ranks)]
    own = [group[world.rank] for group in groups if world.rank < len(group)]
    if ahead is None:
        ahead = world.device.type == "cuda"
    computed = one_ahead(own, on_cpu, world.device) if ahead else map(on_cpu, own)
    for group in groups:
        mine = next(computed) if world.rank < len(group) else None
        if world.ranks == 1:
            assert mine is not None
            yield group[0], mine
            continue
        import torch.distributed as dist

        results: list[Any] | None = [None] * world.ranks if world.first else None
        dist.gather_object(mine, results, dst=0, group=world.group)
        if results is not None:
            yield from zip(group, results[: len(group)], strict=True)


def one_ahead(items: Sequence[T], compute: Callable[[T], R], device: torch.device) -> Iterator[R]:
    """``compute`` of each item in order, in a thread that is at most one item ahead of the caller.

    device: the GPU, if it is one, that the thread computes on, as the caller does. The thread has the caller's mode of
    gradients, and no other context of it. An error of ``compute`` is raised in its item's place.
    """
    graph = torch.is_grad_enabled()

    def begin() -> None:
        torch.set_grad_enabled(graph)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)

    with ThreadPoolExecutor(1, "ahead", begin) as thread:
        ahead = None
        for item in items:
            ready, ahead = ahead, thread.submit(compute, item)
            if ready is not None:
                yield ready.result()
        if ahead is not None:
            yield ahead.result()
