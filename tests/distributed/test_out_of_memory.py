"""What helps where memory runs out."""

import pytest
import torch

from facm.distributed.out_of_memory import OutOfMemory, explained


def test_out_of_memory_says_what_helps():
    hint = r"out of memory: .*engine.accumulate.*engine.checkpointing.*facm plan"
    with pytest.raises(OutOfMemory, match=hint), explained():
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"^something else$"), explained():
        raise RuntimeError("something else")
