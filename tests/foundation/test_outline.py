"""The outline of Wan 2.2 A14B: sizes as published, without weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from facm.foundation import Captioned
from facm.foundation.folder import SECOND, load_transformer, open_model
from facm.foundation.outline import outline_wan22
from tests.cli.cli_parts import command, refused


def test_it_is_a_model_of_two_experts_with_data_of_its_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("outline", "wan2.2-a14b", "--size", 480, 832, "--frames", 81, "--out", tmp_path / "wan")
    assert f"facm plan wan2.2-t2i --model {tmp_path}/wan/model --data {tmp_path}/wan/data" in capsys.readouterr().out
    model = open_model(tmp_path / "wan" / "model")
    assert (model.pipeline, model.boundary) == ("WanPipeline", 0.875)
    data = Captioned(str(tmp_path / "wan" / "data")).open()
    assert tuple(data.shape) == (16, 21, 60, 104)
    assert data.read(np.array([0])).cond["embeddings"].shape == (1, 512, 4096)
    with torch.device("meta"):
        weights = sum(p.numel() for p in load_transformer(model, part=SECOND).parameters())
    assert weights == pytest.approx(14.3e9, rel=0.01)
    assert "exists and is not overwritten" in refused(capsys, "outline", "wan2.2-a14b", "--out", tmp_path / "wan")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1000, 1024, 1), "height = 1000, expected a multiple of 16"),
        ((1024, 0, 1), "width = 0, expected a multiple of 16"),
        ((480, 832, 80), "frames = 80, expected 1 or another multiple of 4 plus 1"),
        ((480, 832, 0), "frames = 0, expected 1 or"),
    ],
)
def test_sizes_that_it_cannot_make(tmp_path: Path, size: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        outline_wan22(tmp_path / "wan", *size)
