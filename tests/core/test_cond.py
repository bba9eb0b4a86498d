"""Conditions of several named tensors: everything that a step does to a condition, and errors that name the part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from facm.core.cond import Cond, chosen, joined, parts, repeated, size, taken
from facm.core.objective import Condition
from facm.core.types import Batch
from facm.data.checked import read_checked
from facm.flow.guidance import Guidance, guided_velocity
from facm.flow.time_conditioning import native
from facm.flow.velocity import DataVelocity
from facm.objectives.facm import FACM
from facm.sampling import Euler, Source
from facm.sampling.generate import sample


def prompts(n: int, tokens: int = 3, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    mask = torch.arange(tokens) < torch.randint(1, tokens + 1, (n, 1), generator=rng)
    return {"embeddings": torch.randn(n, tokens, 4, generator=rng) * mask[..., None], "mask": mask}


@dataclass(frozen=True)
class Prompts(Condition):
    """A user's own condition: embeddings and mask; the null is one token of ones."""

    def null(self, cond: Any) -> Cond:
        one = {"embeddings": torch.ones(1, 1, 4), "mask": torch.ones(1, 1, dtype=torch.bool)}
        return repeated(one, len(cond["mask"]))

    def check(self, cond: Any, n: int) -> None:
        if not isinstance(cond, Mapping) or size(cond) != n:
            raise ValueError(f"expected {n} prompts")

    def drop(self, cond: Any, dropped: Tensor) -> Cond:
        return chosen(dropped, self.null(cond), cond)


class Mean(torch.nn.Module):
    """A velocity that depends on time, state and the mean of the tokens that are not padding."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.5, -1.0, 2.0, 0.25]))

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        mask = cond["mask"][..., None]
        mean = (cond["embeddings"] * mask).sum(1) / mask.sum(1)
        return torch.tanh(x * t[:, None]) + mean * self.weight


def test_conditions_of_unequal_length_are_padded_where_they_meet() -> None:
    a, b = prompts(2, 3), prompts(1, 5, seed=1)
    both = parts(joined(a, b))
    assert both["embeddings"].shape == (3, 5, 4)
    torch.testing.assert_close(both["embeddings"][:2, :3], a["embeddings"], rtol=0, atol=0)
    assert not both["mask"][:2, 3:].any()
    assert not both["embeddings"][:2, 3:].any()
    picked = parts(chosen(torch.tensor([True, False]), a, prompts(2, 5, seed=2)))
    torch.testing.assert_close(picked["embeddings"][0, :3], a["embeddings"][0], rtol=0, atol=0)


def test_embeddings_without_a_mask_are_never_padded() -> None:
    with pytest.raises(ValueError, match=r"embeddings has 3 tokens in one condition, 5 in the other"):
        joined({"embeddings": torch.zeros(1, 3, 4)}, {"embeddings": torch.zeros(1, 5, 4)})


def test_parts_that_do_not_match_are_named() -> None:
    with pytest.raises(ValueError, match=r"the parts embeddings, mask, the other pooled"):
        joined(prompts(1), {"pooled": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match="embeddings 2, mask 1"):
        size({"embeddings": torch.zeros(2, 1), "mask": torch.zeros(1, 1)})


def test_guided_velocity_is_that_of_each_sample_alone() -> None:
    network, cond, condition = Mean(), prompts(4, 5), Prompts()
    x, t = torch.randn(4, 4, generator=torch.Generator().manual_seed(3)), torch.tensor([0.0, 0.3, 0.6, 0.9])
    guidance = Guidance(3.0, 0.25, 0.75)
    got = guided_velocity(network, lambda t: native(network, t), x, t, cond, condition, guidance)
    for k in range(4):
        one = taken(cond, torch.tensor([k]))
        v = network(x[k : k + 1], t[k : k + 1], one)
        if 0.25 <= t[k] <= 0.75:
            v_u = network(x[k : k + 1], t[k : k + 1], condition.null(one))
            v = v_u + 3.0 * (v - v_u)
        torch.testing.assert_close(got[k : k + 1], v)


def test_a_structured_condition_trains_and_samples_and_its_parts_of_a_step_add_up() -> None:
    network, condition = Mean(), Prompts()
    objective = FACM(condition, DataVelocity(Guidance(2.0, 0.0)), label_dropout=0.5)
    x_1, cond = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), prompts(6, 4)

    def gradient(batches: list[Batch]) -> Tensor:
        network.weight.grad = None
        for batch in batches:
            loss = objective(network, batch, torch.Generator().manual_seed(2))
            (loss.total * len(batch.x_1) / 6).backward()
        assert network.weight.grad is not None
        return network.weight.grad.clone()

    whole = gradient([Batch(x_1, cond)])
    split = gradient([Batch(x_1[k : k + 3], taken(cond, slice(k, k + 3)), k, 6) for k in (0, 3)])
    assert whole.abs().max() > 0
    torch.testing.assert_close(split, whole)
    source = Source(network, objective.interface, (4,), torch.device("cpu"))
    both = sample(source, Euler(4), range(6), cond, guidance=Guidance(2.0, 0.0))
    last = sample(source, Euler(4), range(5, 6), taken(cond, slice(5, 6)), guidance=Guidance(2.0, 0.0))
    torch.testing.assert_close(both[5:], last)


@dataclass
class Captioned:
    """A data set of vectors with prompts."""

    cond: Any
    shape: tuple[int, ...] = (4,)
    num_classes: int | None = None
    flip: bool = False

    def __len__(self) -> int:
        return 3

    def read(self, indices: np.ndarray) -> Batch:
        return Batch(torch.zeros(len(indices), 4), self.cond)


def test_a_bad_part_of_a_condition_is_named_when_it_is_read() -> None:
    good = prompts(3)
    assert read_checked(Captioned(good), np.arange(3)).cond is good
    bad = good["embeddings"].clone()
    bad[1, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"sample 1 has non-finite values in cond\['embeddings'\]"):
        read_checked(Captioned({**good, "embeddings": bad}), np.arange(3))
    with pytest.raises(ValueError, match=r"cond\['mask'\] has shape \(2, 3\), expected \(3, \.\.\.\)"):
        read_checked(Captioned({**good, "mask": good["mask"][:2]}), np.arange(3))
