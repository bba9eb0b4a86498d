"""How the network in a file is asked: as the file says, or as its user says."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from facm.networks.unet import UNet
from facm.objectives.facm import FACM
from facm.objectives.flow_matching import FlowMatching
from facm.run import to_json
from facm.tasks import ExpandedInterval
from facm.trained import Trained, load_file

NETWORK = UNet(size=8, channels=8, multipliers=(1, 2), blocks=1, attention=(4,), num_classes=10)


def exported(path: Path, **said: str) -> Path:
    """A file as ``facm export`` writes it."""
    save_file(NETWORK.build().state_dict(), path, {"config": json.dumps(to_json(NETWORK)), **said})
    return path


@pytest.mark.parametrize("said", ["true", "false", None])
@pytest.mark.parametrize("asked", [True, False, None])
def test_the_user_is_believed_before_the_file(tmp_path: Path, said: str | None, asked: bool | None) -> None:
    file = exported(tmp_path / "x.safetensors", **({} if said is None else {"learns_shortcut": said}))
    if (asked, said) == (None, None):
        with pytest.raises(ValueError, match=r"x.safetensors does not say whether its network learned the shortcut"):
            load_file(file)
        return
    trained = load_file(file, learns_shortcut=asked)
    student = asked if asked is not None else said == "true"
    assert isinstance(trained.objective, FACM if student else FlowMatching)
    assert isinstance(trained.objective.task, ExpandedInterval) or not student
    assert trained.objective.condition.classes == 10
    assert (trained.config, trained.data.open().shape, trained.images_seen) == (NETWORK, (3, 8, 8), None)


def test_rows_and_pictures_lie_beside_the_file(tmp_path: Path) -> None:
    trained = load_file(exported(tmp_path / "x.safetensors", learns_shortcut="true"))
    assert isinstance(trained, Trained)
    assert not trained.network.training
    assert not any(p.requires_grad for p in trained.network.parameters())
    assert trained.evaluations == tmp_path / "x.evaluations.jsonl"
    assert trained.samples == tmp_path / "x.samples"
    expected = NETWORK.build().state_dict()
    assert {name: value.shape for name, value in trained.network.state_dict().items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert trained.network(torch.zeros(1, 3, 8, 8), torch.ones(1), torch.zeros(1, dtype=torch.long)).shape[1] == 3
