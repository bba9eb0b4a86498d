"""What is drawn for a step, and the point between noise and data."""

import pytest
import torch

from facm.core.types import Batch
from facm.flow.conditions import Labels
from facm.flow.interpolant import Interpolant, draw_noise, draw_subset, drop_labels, rows, step_size
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


class Half:
    """A distribution that draws, and has other marginals than noise and dropout."""

    def sample(self, n, rng):
        return 0.5 * torch.rand(n, generator=rng)


@pytest.mark.parametrize("label_dropout", [0.0, 0.4])
def test_noise_then_times_then_dropped_labels_are_drawn(label_dropout):
    batch, rng, by_hand = Batch(randn(16, DIM, 2), LABELS), generator(5), generator(5)
    point = Interpolant.draw(batch, Half(), Labels(CLASSES), label_dropout, rng)
    x_0 = torch.randn(16, DIM, 2, generator=by_hand, dtype=torch.float64)
    t = 0.5 * torch.rand(16, generator=by_hand)
    assert torch.equal(point.x_0, x_0)
    assert torch.equal(point.t, t.double())
    if label_dropout:
        dropped = torch.rand(16, generator=by_hand) < label_dropout
        assert torch.equal(point.dropped, dropped)
        assert torch.equal(point.cond, torch.where(dropped, CLASSES, LABELS))
    else:
        assert point.dropped is None
        assert point.cond is LABELS
    assert torch.equal(rng.get_state(), by_hand.get_state())  # and nothing else
    torch.testing.assert_close(point.x_t, (1 - t)[:, None, None] * x_0 + t[:, None, None] * batch.x_1)
    torch.testing.assert_close(point.v, batch.x_1 - x_0)
    assert len(point) == 16


@pytest.mark.parametrize("sizes", SIZES)
def test_each_draw_of_a_part_is_its_rows_of_the_whole(sizes):
    batch = Batch(randn(16, DIM), LABELS)
    draws = (
        draw_noise,
        lambda part, rng: draw_subset(part, 0.5, rng),
        lambda part, rng: drop_labels(part, Labels(CLASSES), 0.5, rng)[0],
    )
    for draw in draws:
        whole = draw(batch, generator(3))
        assert torch.equal(torch.cat([draw(part, generator(3)) for part in split(batch, sizes)]), whole)
        assert torch.equal(torch.cat([rows(whole, part) for part in split(batch, sizes)]), whole)
    assert {step_size(part) for part in split(batch, sizes)} == {16} == {step_size(batch)}


def test_the_point_between_two_ends_is_checked():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="expected equal shapes"):
        Interpolant.between(x, torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        Interpolant.between(x, x, torch.tensor([0.0, 1.5]))
