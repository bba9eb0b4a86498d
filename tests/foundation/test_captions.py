"""Prepared data in training: the null is the negative prompt's embedding, and every stop resumes exactly."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers")

from facm import FACM, Guidance, TeacherVelocity
from facm.core.serialize import from_json, to_json
from facm.foundation import Captioned, Captions
from facm.foundation.captions.shards import NULL
from facm.runs.folder import create
from facm.training.checks import check
from facm.training.loop import train
from tests.foundation.prepared_parts import PROMPTS
from tests.foundation.wan_parts import wan_run


def test_the_null_is_the_embedding_of_the_negative_prompt(by_teacher: Path) -> None:
    condition, dataset = Captions(str(by_teacher)), Captioned(str(by_teacher)).open()
    cond = dataset.read(np.arange(3)).cond
    condition.check(cond, 3)
    null = condition.null(cond)["embeddings"]
    stored = load_file(by_teacher / NULL)["part.embeddings"]
    assert null.shape == cond["embeddings"].shape
    assert torch.equal(null[2, : len(stored)], stored)
    assert not null[:, len(stored) :].any()
    dropped = condition.drop(cond, torch.tensor([False, True, False]))["embeddings"]
    assert torch.equal(dropped[1], null[1])
    assert torch.equal(dropped[0], cond["embeddings"][0])
    half = condition.null({"embeddings": cond["embeddings"].bfloat16()})["embeddings"]
    assert half.dtype == torch.bfloat16
    assert from_json(to_json(condition)) == condition
    assert from_json(to_json(Captioned(str(by_teacher)))) == Captioned(str(by_teacher))


def test_conditions_that_do_not_fit(by_teacher: Path, tmp_path: Path) -> None:
    condition = Captions(str(by_teacher))
    good = torch.zeros(2, 512, 16)
    for cond, message in (
        (None, "cond is NoneType, expected named tensors"),
        (good, "cond is Tensor, expected named tensors"),
        ({"embeddings": good[:1]}, "embeddings of 1 prompts, expected 2"),
        ({"embeddings": good, "mask": good[..., 0] > 0}, "parts embeddings, mask, expected embeddings"),
        ({"embeddings": good[..., :8]}, r"embeddings has shape \(2, 512, 8\), expected that of the null"),
    ):
        with pytest.raises(ValueError, match=message):
            condition.check(cond, 2)
    folder = shutil.copytree(by_teacher, tmp_path / "data")
    (folder / NULL).unlink()
    with pytest.raises(ValueError, match=r"null.safetensors is missing"):
        Captions(str(folder)).check({"embeddings": good}, 2)
    (tmp_path / NULL).write_bytes(b"")
    with pytest.raises(ValueError, match=r"has no manifest.json, expected a folder that facm prepare wrote"):
        Captions(str(tmp_path)).check({"embeddings": good}, 2)
    with pytest.raises(ValueError, match=r"path = '.*gone', expected an existing folder"):
        Captioned(str(tmp_path / "gone")).open()


def test_reading(by_teacher: Path) -> None:
    dataset = Captioned(str(by_teacher)).open()
    assert (len(dataset), dataset.num_classes, dataset.flip, dataset.shape) == (5, None, False, (4, 1, 4, 4))
    assert dataset.prompts([4, 0]) == [PROMPTS[4], PROMPTS[0]]
    assert dataset.place(3) == "samples_00001.safetensors, row 1"
    assert dataset.fingerprint == Captioned(str(by_teacher)).open().fingerprint
    one, two = dataset.read(np.array([1])), dataset.read(np.array([4, 1]))
    assert torch.equal(one.x_1[0], two.x_1[1])
    assert torch.equal(one.cond["embeddings"][0], two.cond["embeddings"][1])
    with pytest.raises(IndexError, match="indices run over"):
        dataset.read(np.array([5]))


@pytest.mark.slow
def test_buckets_in_training_and_exact_resume(wan: Path, of_pictures: Path, tmp_path: Path) -> None:
    dataset = Captioned(str(of_pictures)).open()
    assert len(dataset.buckets) > 1
    with pytest.raises(ValueError, match="expected one bucket's"):
        dataset.read(np.arange(len(dataset)))
    objective = FACM(Captions(str(of_pictures)), TeacherVelocity(Guidance(2.0, 0.0)))
    run = wan_run(wan, True, data=Captioned(str(of_pictures)), objective=objective, images=16, batch_size=2)
    check(run)
    whole, parts = (create(tmp_path / name, run) for name in ("whole", "parts"))
    train(run, whole)

    class Stop(Exception):
        pass

    def stop(trainer) -> None:  # type: ignore[no-untyped-def]
        raise Stop

    with pytest.raises(Stop):
        train(run, parts, on_checkpoint=stop)
    train(run, parts)
    one, two = (load_file(folder.checkpoints()[-1]) for folder in (whole, parts))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
