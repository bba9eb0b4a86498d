"""What a line of the log says of its steps: means, what was not finite, time spent waiting, memory."""

import time

import pytest
import torch

from facm.core.types import Loss
from facm.training import window as windows
from facm.training.window import Window, averaged_by_time, memory


def loss(total, **terms):
    return Loss(torch.tensor(total, requires_grad=True), {name: torch.tensor(value) for name, value in terms.items()})


def test_means_are_over_the_steps_of_means_over_the_samples():
    window = Window()
    window.add(loss(1.0, anchor=[1.0, 3.0], shortcut=[0.0, 1.0]), torch.tensor(10.0))
    window.add(loss(4.0, anchor=[4.0, 4.0], shortcut=[2.0, 3.0]), torch.tensor(20.0))
    assert window.means() == {"loss": 2.5, "anchor": 3.0, "shortcut": 1.5, "grad_norm": 15.0}
    assert list(window.means()) == ["loss", "anchor", "shortcut", "grad_norm"]  # as the log has them
    assert not any(value.requires_grad for value in window.sums.values())
    assert Window().means() == {}


def test_losses_by_quarters_of_time_are_means_over_the_samples_in_each():
    window = Window()
    window.add(loss(1.0, anchor=[1.0, 3.0], clamped=[0.0, 1.0]).at(torch.tensor([0.1, 0.9])), torch.tensor(1.0))
    window.add(loss(4.0, anchor=[4.0, 8.0], clamped=[2.0, 3.0]).at(torch.tensor([1.0, 0.25])), torch.tensor(1.0))
    found = averaged_by_time(window.means())
    quarters = {"anchor_t1": 1.0, "anchor_t2": 8.0, "anchor_t4": 3.5}  # none fell into the third
    assert found == {"loss": 2.5, "anchor": 4.0, "clamped": 1.5, "grad_norm": 1.0} | quarters
    assert averaged_by_time({"loss": 1.0}) == {"loss": 1.0}
    again = Window.of(window.flat(), window.count)
    assert again.sums.keys() == window.sums.keys()
    assert all(torch.equal(again.sums[name], value) for name, value in window.sums.items())
    assert Window.of({"own_t1": torch.tensor(1.0)}, 1).means() == {"own_t1": 1.0}  # a term of a user's own


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_terms_that_were_not_finite_in_some_step_are_named(bad):
    window = Window()
    window.add(loss(1.0, anchor=[1.0], shortcut=[1.0]), torch.tensor(1.0))
    assert window.non_finite() == []
    window.add(loss(bad, anchor=[1.0], shortcut=[bad]), torch.tensor(bad))
    window.add(loss(1.0, anchor=[1.0], shortcut=[1.0]), torch.tensor(1.0))
    assert window.non_finite() == ["loss", "shortcut"]  # the gradient is not a term


def test_speed_and_the_share_of_time_spent_waiting(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(windows.time, "monotonic", lambda: now[0])
    window = Window(count=3)
    window.began = 100.0
    window.waited += 1.0
    now[0] = 104.0
    assert window.speed(16) == {"images_per_s": 12.0, "data_wait": 0.25}


def test_a_window_begins_when_it_is_made():
    before = time.monotonic()
    assert before <= Window().began <= time.monotonic()


@pytest.mark.skipif(not windows._resident(), reason="there is no /proc")
def test_memory_of_this_process_now_and_at_its_peak():
    numbers = memory(torch.device("cpu"))
    assert numbers.keys() == {"memory_gb", "peak_memory_gb"}
    assert 0.01 < numbers["memory_gb"] <= numbers["peak_memory_gb"] < 1000


def test_without_proc_there_is_no_memory_to_log(monkeypatch):
    def missing(*arguments, **options):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)
    assert memory(torch.device("cpu")) == {}
