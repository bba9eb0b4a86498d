"""What the tests of derivatives share."""

import pytest
import torch


@pytest.fixture
def double():
    """Numbers are float64 unless said otherwise, so that strategies can be compared closely."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
