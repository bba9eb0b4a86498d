"""What is drawn for a step, and the point between noise and data."""

import pytest
import torch

from facm.core.types import Batch
from facm.flow.conditions import Labels
from facm.flow.interpolant import Interpolant
from facm.flow.times import ArctanLogNormal
from tests.core.core_parts import generator, randn
from tests.flow.flow_parts import SIZES, split

CLASSES, DIM = 3, 5
LABELS = torch.arange(16) % CLASSES


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("label_dropout", [0.0, 0.4])
def test_a_part_draws_its_rows_of_what_the_whole_step_draws(sizes, label_dropout):
    batch = Batch(randn(16, DIM, 2), LABELS)
    rng, whole = generator(5), []
    for part in (batch, *split(batch, sizes)):
        rng = generator(5)
        d = Interpolant.draw(part, ArctanLogNormal(), Labels(CLASSES), label_dropout, rng)
        whole = whole or [d, rng.get_state()]
        assert torch.equal(rng.get_state(), whole[1])  # the step after this one draws the same, too
        rows = slice(part.start, part.start + len(part.x_1))
        for name, drawn in vars(d).items():
            expected = getattr(whole[0], name)
            assert drawn is expected is None or torch.equal(drawn, expected[rows]), name
        assert len(d.x_0) == len(d.t) == len(d.cond) == len(part.x_1)
        assert d.t.dtype == d.x_0.dtype == torch.float64
    assert label_dropout == 0 or 0 < whole[0].dropped.sum() < 16
