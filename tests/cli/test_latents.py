"""facm latents encode | verify; at full length they are part of tests/recipes/test_imagenet256.py."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from facm.latents.manifest import MANIFEST
from tests.cli.cli_parts import command, refused


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with images of two classes and an autoencoder of factor 8 with random weights."""
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(tmp_path / "images" / name / f"{i}.png")
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
    ).save_pretrained(tmp_path / "vae")
    return tmp_path


def files(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


ENCODE = ["latents", "encode", "images", "--out", "latents", "--autoencoder", "vae", "--size", 16, "--shard-size", 4]


def test_a_dry_run_checks_everything_and_writes_nothing(place, capsys):
    before = files(place)
    command(*ENCODE, "--dry-run")
    said = capsys.readouterr().out
    assert "6 images of 2 classes as latents (4, 2, 2) by " in said
    assert "would write to latents: 2 of 2 files are left, 7.68e-07 GB altogether" in said
    for options, words in (
        (["--size", 12], "size = 12, expected a multiple of 8"),
        (["--batch-size", 0], "--batch-size 0, expected at least 1"),
        (["--shard-size", 0], "shard_size = 0, expected at least 1"),
        (["--seed", -1], "seed = -1"),
        (["--out", "images/a/0.png"], "is a file or lies below one"),
        (["--device", "tpu"], "--device tpu, expected auto"),
    ):
        assert words in refused(capsys, *ENCODE, "--dry-run", *options)
    assert files(place) == before


def test_a_dry_run_sees_what_is_there_already(place, capsys):
    command(*ENCODE, "--quiet", "--device", "cpu")
    (place / "latents" / "latents_rank00_shard001.safetensors").unlink()
    before = files(place)
    capsys.readouterr()
    command(*ENCODE, "--dry-run")
    assert "would write to latents: 1 of 2 files are left" in capsys.readouterr().out
    assert "holds another preparation: seed = 0, now 1" in refused(capsys, *ENCODE, "--dry-run", "--seed", 1)
    (place / "other").mkdir()
    (place / "other" / "latents_stats.pt").touch()
    words = refused(capsys, *ENCODE, "--dry-run", "--out", "other")
    assert "other holds latents_stats.pt, which no preparation left here" in words
    assert {name: time for name, time in files(place).items() if not name.startswith("other")} == before


def test_encoding_and_verifying(place, capsys):
    command(*ENCODE, "--batch-size", 2)
    assert "6 images of 2 classes as latents (4, 2, 2) in 2 files" in capsys.readouterr().out
    assert json.loads((place / "latents" / MANIFEST).read_text())["seed"] == 0
    command("latents", "verify", "latents", "--grid", "grid.png")
    said = capsys.readouterr().out
    assert "latents: 6 latents (4, 2, 2) F32 in 2 files, whole, as its manifest says" in said
    assert (place / "grid.png").exists()
    words = refused(capsys, "latents", "verify", "latents", "--grid", "grid.png")
    assert "--grid grid.png exists and is not overwritten" in words
