"""Labels, the null label and its dropout."""

import pytest
import torch

from facm.flow.conditions import Labels, Unconditional


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Labels(0), "classes = 0"),
    ],
)
def test_an_impossible_option_is_an_error_that_names_it(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_the_null_label_follows_the_last_class():
    assert Labels(10).null(torch.tensor([0, 3, 9])).tolist() == [10, 10, 10]


@pytest.mark.parametrize("labels", [[0, 9], [10, 3]])
def test_labels_and_the_null_label_are_accepted(labels):
    Labels(10).check(torch.tensor(labels), 2)


@pytest.mark.parametrize(
    ("cond", "named"),
    [
        (torch.tensor([-1, 3]), r"\[-1, 3\].*\[0, 9\]"),
        (torch.tensor([3, 11]), r"\[3, 11\].*\[0, 9\]"),
        (torch.tensor([3]), r"\(1,\).*expected \(2,\)"),
        (torch.tensor([[3], [3]]), r"expected \(2,\)"),
        (torch.tensor([3, 3], dtype=torch.int32), "int32"),
        (None, "no labels"),
    ],
)
def test_labels_out_of_range_or_of_a_wrong_shape_are_an_error_that_names_them(cond, named):
    with pytest.raises(ValueError, match=named):
        Labels(10).check(cond, 2)


def test_without_labels_there_is_no_null():
    with pytest.raises(ValueError, match="no labels"):
        Labels(10).null(None)
    with pytest.raises(ValueError, match="no null condition"):
        Unconditional().null(None)


def test_dropping_replaces_the_marked_labels_and_only_those():
    cond = torch.arange(200) % 10
    dropped = torch.arange(200) % 3 == 0
    out = Labels(10).drop(cond, dropped)
    assert (out[dropped] == 10).all()
    assert torch.equal(out[~dropped], cond[~dropped])


def test_unconditional_data_has_no_labels_to_drop():
    Unconditional().check(None, 3)
    with pytest.raises(ValueError, match="use label_dropout 0"):
        Unconditional().drop(None, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="batch has conditions"):
        Unconditional().check(torch.zeros(3), 3)
