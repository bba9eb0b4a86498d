"""Plain continuous consistency against the paper's equations written out slowly; test_facm.py has what it shares with
FACM."""

import pytest
import torch

from facm.core.types import Batch
from facm.flow.conditions import Labels
from facm.flow.guidance import Guidance
from facm.flow.time_conditioning import ExpandedInterval
from facm.flow.velocity import DataVelocity, TeacherVelocity
from facm.objectives.continuous_cm import ContinuousCM
from facm.objectives.flow_matching import FlowMatching
from tests.core.core_parts import generator, randn
from tests.flow.flow_parts import SIZES
from tests.objectives.facm_parts import CASES, DISTILLATION, TABLE_4, TASKS, TEACHER, compare, mlp
from tests.objectives.objective_parts import CLASSES, DIM, DROPPED, LABELS, check_parts


@pytest.mark.parametrize("task", TASKS, ids=["expanded", "auxiliary"])
@pytest.mark.parametrize("case", [name for name, o in CASES.items() if not o.get("anchored", True)])
def test_value_and_gradient_match_the_equations_written_slowly(case, task):
    terms = compare(CASES[case] | {"task": task})
    assert 0.05 < (terms.g.abs() > 1).double().mean() < 0.95  # the clamp acts on some elements, and not on others


@pytest.mark.parametrize(
    "case", [name for name, o in CASES.items() if o["velocity"] == "data" and not o.get("anchored", True)]
)
def test_a_sample_whose_label_was_dropped_is_not_guided(case):
    compare(CASES[case] | {"task": ExpandedInterval()}, DROPPED)


@pytest.mark.parametrize("anchored", [False])
@pytest.mark.parametrize(("alpha", "slow_alpha", "beta", "slow_beta"), TABLE_4)
def test_every_kind_of_weighting_in_table_4(alpha, slow_alpha, beta, slow_beta, anchored):
    o = {"alpha": alpha, "beta": beta, "slow_alpha": slow_alpha, "slow_beta": slow_beta, "anchored": anchored}
    compare(DISTILLATION | {"task": ExpandedInterval()} | o)


@pytest.mark.parametrize("anchored", [False])
@pytest.mark.parametrize("clamp", [None, 0.3, 2.0])
def test_clamp_off_and_at_other_bounds(clamp, anchored):
    compare(DISTILLATION | {"task": ExpandedInterval(), "clamp": clamp, "anchored": anchored})


@pytest.mark.parametrize("objective", [ContinuousCM, FlowMatching])
def test_the_loss_of_any_other_objective_is_one_part(objective):
    loss, network, batch = objective(Labels(CLASSES)), mlp(1), Batch(randn(16, DIM), LABELS)
    (term,) = loss.loss_terms(network, batch, generator(5), TEACHER)
    assert torch.equal(term().total, loss(network, batch, generator(5), TEACHER).total)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: ContinuousCM(Labels(3), clamp=-1.0), "clamp = -1.0"),
        (lambda: ContinuousCM(Labels(3), label_dropout=-0.1), "label_dropout = -0.1"),
        (
            lambda: ContinuousCM(Labels(3), DataVelocity(Guidance(1.75))),
            "label_dropout = 0.0, expected a positive one",
        ),
    ],
)
def test_an_impossible_option_is_an_error_that_names_it(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(
    "objective",
    [
        ContinuousCM(Labels(CLASSES), DataVelocity(Guidance(1.75, 0.3, 0.8)), label_dropout=0.4),
        ContinuousCM(Labels(CLASSES), TeacherVelocity(Guidance(1.75, 0.3, 0.8))),
    ],
    ids=lambda o: f"{type(o).__name__}-{o.label_dropout}",
)
def test_the_mean_over_the_parts_of_a_batch_is_that_of_the_whole(objective, sizes):
    check_parts(objective, mlp(1), mlp(2), sizes)
