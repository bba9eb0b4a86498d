"""Flow matching with mixed conditioning against a slow loop."""

import pytest
import torch

from facm.core.types import Batch
from facm.flow.conditions import Labels
from facm.flow.interpolant import Interpolant
from facm.flow.time_conditioning import AuxiliaryTime
from facm.objectives.flow_matching import FlowMatching
from tests.core.core_parts import generator, randn
from tests.flow.flow_parts import SIZES
from tests.objectives.facm_parts import TASKS, ask, mlp
from tests.objectives.objective_parts import CLASSES, DIM, LABELS, TIMES, Halved, check_parts


def test_flow_matching_lifts_half_precision():
    x = randn(16, DIM).float()
    terms = FlowMatching(Labels(CLASSES)).evaluate(
        Halved(mlp(1).float()), Interpolant.between(x.flip(0), x, TIMES.float(), LABELS)
    )
    assert terms.F.dtype == terms.L_FM.dtype == torch.float32


@pytest.mark.parametrize("task", TASKS)
def test_flow_matching_with_mixed_conditioning_matches_the_slow_loop(task):
    network, x_1, x_0 = mlp(1, task == AuxiliaryTime()), randn(16, DIM), randn(16, DIM, seed=1)
    anchored = torch.arange(16) % 3 == 0
    terms = FlowMatching(Labels(CLASSES), task).evaluate(
        network, Interpolant.between(x_0, x_1, TIMES, LABELS), anchored
    )
    losses = []
    for i in range(16):
        s, v = TIMES[i].item(), x_1[i : i + 1] - x_0[i : i + 1]
        x = (1 - s) * x_0[i : i + 1] + s * x_1[i : i + 1]
        F = ask(network, task, "anchor" if i % 3 == 0 else "shortcut", x, s, LABELS[i : i + 1])
        losses.append(((F - v) ** 2).mean() + 1 - (F * v).sum() / F.norm() / v.norm())
    slow, parameters = torch.stack(losses), list(network.parameters())
    torch.testing.assert_close(terms.L_FM, slow)
    torch.testing.assert_close(terms.loss().total, slow.mean())
    torch.testing.assert_close(terms.loss().terms["flow"], slow.detach())
    fast_gradients = torch.autograd.grad(terms.loss().total, parameters)
    torch.testing.assert_close(fast_gradients, torch.autograd.grad(slow.mean(), parameters))


def test_flow_matching_without_a_mask_asks_at_the_plain_time():
    network, x_1, x_0 = mlp(1), randn(16, DIM), randn(16, DIM, seed=1)
    plain = FlowMatching(Labels(CLASSES)).evaluate(network, Interpolant.between(x_0, x_1, TIMES, LABELS))
    torch.testing.assert_close(plain.F, network(plain.x_t, TIMES, LABELS))


@pytest.mark.parametrize(("mixed", "label_dropout"), [(0.5, 0.1), (0.2, 0.0), (0.0, 0.5), (1.0, 1.0)])
def test_flow_matching_mixes_and_drops_the_wanted_fractions(mixed, label_dropout):
    class Recorder(torch.nn.Module):
        def forward(self, x, t, cond):
            self.t, self.cond = t, cond
            return x

    network, n = Recorder(), 8000
    loss = FlowMatching(Labels(CLASSES), p_flow_condition=mixed, label_dropout=label_dropout)
    batch = Batch(torch.randn(n, 2, generator=generator()), torch.arange(n) % CLASSES)
    loss(network, batch, generator(1))
    assert (network.t > 1).float().mean().item() == pytest.approx(mixed, abs=0.02)
    assert (network.cond == CLASSES).float().mean().item() == pytest.approx(label_dropout, abs=0.02)
    independent = ((network.t > 1) & (network.cond == CLASSES)).float().mean().item()
    assert independent == pytest.approx(mixed * label_dropout, abs=0.02)
    rng = generator(1)
    torch.randn(n, 2, generator=rng)
    t = loss.time.sample(n, rng)
    anchored = torch.rand(n, generator=rng) < mixed
    assert torch.equal(network.t, torch.where(anchored, 2 - t, t))


def test_flow_matching_checks_its_arguments():
    loss, x = FlowMatching(Labels(CLASSES)), randn(16, DIM)
    with pytest.raises(ValueError, match=r"labels run over \[0, 4\]"):
        loss.evaluate(mlp(1), Interpolant.between(x, x, TIMES, LABELS * 2))
    with pytest.raises(ValueError, match=r"t has shape \(1,\)"):
        loss.evaluate(mlp(1), Interpolant.between(x, x, TIMES[:1], LABELS))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: FlowMatching(Labels(3), p_flow_condition=1.5), "p_flow_condition = 1.5"),
        (lambda: FlowMatching(Labels(3), label_dropout=-0.5), "label_dropout = -0.5"),
    ],
)
def test_an_impossible_option_is_an_error_that_names_it(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(
    "objective",
    [
        FlowMatching(Labels(CLASSES), p_flow_condition=0.5, label_dropout=0.4),
        FlowMatching(Labels(CLASSES), p_flow_condition=0.3, label_dropout=0.0),
    ],
    ids=lambda o: f"{type(o).__name__}-{o.label_dropout}",
)
def test_the_mean_over_the_parts_of_a_batch_is_that_of_the_whole(objective, sizes):
    check_parts(objective, mlp(1), mlp(2), sizes)
