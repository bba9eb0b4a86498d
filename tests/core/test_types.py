"""A batch."""

import torch

from facm.core.types import Batch


def test_a_batch_on_another_device_is_the_same_part_of_its_step():
    batch = Batch(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 4, 8).to("meta")
    assert batch.x_1.is_meta
    assert batch.cond.is_meta
    assert (batch.start, batch.of) == (4, 8)
    assert Batch(torch.zeros(2, 3)).to("meta").cond is None
    assert (Batch(torch.zeros(2, 3)).start, Batch(torch.zeros(2, 3)).of) == (0, None)
