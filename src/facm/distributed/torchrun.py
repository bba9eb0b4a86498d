"""What torchrun learns of a rank that fails: its summary names the error of the rank that failed first."""

from __future__ import annotations

from collections.abc import Callable

from torch.distributed.elastic.multiprocessing.errors import record


def recorded(main: Callable[[], None]) -> None:
    """Run ``main`` and leave its error where torchrun looks for it (``TORCHELASTIC_ERROR_FILE``).

    ``main`` ends with ``SystemExit`` after it has printed an error in one message; what is recorded is the error behind
    it, and the exit status stays as it is.
    """
    ended: list[SystemExit] = []

    @record
    def run() -> None:
        try:
            main()
        except SystemExit as end:
            if not isinstance(end.__cause__, Exception):
                raise
            ended.append(end)
            raise end.__cause__ from None

    try:
        run()
    except Exception:
        if ended:
            raise ended[0] from None
        raise
