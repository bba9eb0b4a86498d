"""Improved precision and recall against a literal transcription and on sets whose answer is evident."""

import pytest
import torch

from facm.evaluation import precision_recall
from facm.evaluation.precision_recall import _squared_distances


def literal(real, generated, k):
    def inside(points, members):
        count = 0
        for point in points:
            for i, member in enumerate(members):
                others = sorted(float((member - m).norm()) for j, m in enumerate(members) if j != i)
                if float((point - member).norm()) <= others[k - 1]:
                    count += 1
                    break
        return count / len(points)

    return inside(generated, real), inside(real, generated)


@pytest.mark.parametrize("k", [1, 3])
def test_agrees_with_the_definition(k):
    rng = torch.Generator().manual_seed(k)
    real, generated = torch.randn(31, 2, generator=rng), 0.5 * torch.randn(23, 2, generator=rng) + 1.5
    expected = literal(real, generated, k)
    assert 0 < min(expected) < max(expected) < 1
    for block in (1, 7, 1000):
        assert precision_recall(real, generated, k, block) == pytest.approx(expected)


def test_identical_sets_even_with_duplicates_far_from_the_origin():
    rows = 1000 + torch.randn(50, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert precision_recall(rows, rows.flip(0)) == (1.0, 1.0)
    assert (_squared_distances(rows, rows).diagonal() == 0).all()
    for block in (1, 7, 1000):  # rounding depends on the shapes, and six copies make a ball of radius zero
        assert precision_recall(rows.repeat(6, 1), rows.repeat(5, 1).flip(0), block=block) == (1.0, 1.0)


def test_collapse_keeps_precision_and_loses_recall_and_far_samples_lose_both():
    real = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    assert precision_recall(real, real[:1].expand(50, 2)) == (1.0, 1 / 200)
    assert precision_recall(real, real + 100) == (0.0, 0.0)


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="3 generated samples, expected more than k = 3"):
        precision_recall(torch.zeros(9, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"\(9, 2\) and generated \(9, 3\)"):
        precision_recall(torch.zeros(9, 2), torch.zeros(9, 3))
