"""Looking through a pickle before it is read: how much a few of its bytes could become."""

from __future__ import annotations

import pickletools
from typing import IO

MOST_OPCODES = 5_000_000
MOST_GROWTH = 10_000
"""Items of a tuple, with all that is inside it."""
MOST_MEMO = 5_000_000
"""Highest place in the memo."""
UNFOLD = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "DUP")
"""Opcodes whose result may be hashed through all that is inside it."""


class Growth(ValueError):
    """A pickle that would take more time or memory than its size says."""


def check_growth(file: IO[bytes]) -> None:
    """Scan one pickle without creating any object, and leave ``file`` behind it.

    A tuple of two equal tuples, repeated to some depth, takes 2**depth steps to hash or to print.
    Raises Growth for such a pickle and for one with more opcodes than weights need, ValueError for a damaged one.
    """
    stack: list[int | None] = []  # how many objects each item holds, itself included; None for a mark
    memo: dict[int, int] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count >= MOST_OPCODES or (isinstance(argument, int) and "PUT" in opcode.name and argument > MOST_MEMO):
            raise Growth(f"a pickle of more than {MOST_OPCODES} opcodes")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1] or 1 if stack else 1
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(int(argument or 0), 1))
        else:
            held = _popped(stack, opcode.stack_before)
            if opcode.name in UNFOLD and held > MOST_GROWTH:
                raise Growth(f"a tuple that unfolds to more than {MOST_GROWTH} items")
            size = 1 + held * (opcode.name in UNFOLD)
            stack += [None if pushed is pickletools.markobject else size for pushed in opcode.stack_after]


def _popped(stack: list[int | None], before: list[pickletools.StackObject]) -> int:
    """Take from the stack what an opcode does, and return how many objects that holds."""
    held, up_to_mark = 0, pickletools.stackslice in before
    if up_to_mark:
        while stack and (value := stack.pop()) is not None:
            held += value
    for _ in range(sum(item not in (pickletools.stackslice, pickletools.markobject) for item in before)):
        if stack:
            held += stack.pop() or 0
    return held
