"""Our networks in the authors' layout."""

import pytest
import torch

from facm.networks.lightning_dit import LightningDiT
from facm.pretrained import export_reference, open_published

CONFIG = LightningDiT(input_size=4, patch_size=2, in_channels=3, hidden_size=16, depth=1, num_heads=2, num_classes=5)


@pytest.mark.parametrize(
    ("learns_shortcut", "origin", "family"),
    [
        (True, "PostHocEMA, by facm", "facm"),
        (False, "Standard EMA, by facm", "lightningdit"),
        (None, "facm", "lightningdit"),
    ],
)
def test_an_exported_student_is_one_and_a_teacher_is_a_teacher(tmp_path, learns_shortcut, origin, family):
    """The authors' files of students are extracted from "PostHocEMA", those of teachers from a "Standard EMA"."""
    out = tmp_path / "them.pt"
    export_reference(CONFIG.build(), CONFIG, out, learns_shortcut)
    assert torch.load(out, weights_only=True)["_extracted_from"] == origin
    read = open_published(out, heads=2)
    assert (read.family, read.learns_shortcut) == (family, learns_shortcut)
