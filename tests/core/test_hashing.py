"""The digest of tensors."""

import pytest
import torch

from facm.core.hashing import digest
from tests.core.core_parts import TENSORS


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "b": torch.ones(2).bfloat16()},
        lambda t: {**t, "b": torch.zeros(2).half()},
        lambda t: {**t, "b": torch.zeros(1, 2).bfloat16()},
        lambda t: {("c" if name == "b" else name): value for name, value in t.items()},
        lambda t: {**t, "c": torch.zeros(0)},
    ],
    ids=["value", "type", "shape", "name", "one more"],
)
def test_the_digest_sees_every_change(change):
    assert digest(change(TENSORS)) != digest(TENSORS)


def test_the_digest_does_not_depend_on_order_or_layout():
    layout = {name: value.t().contiguous().t() if value.ndim == 2 else value for name, value in TENSORS.items()}
    assert digest(dict(reversed(layout.items()))) == digest(TENSORS)
