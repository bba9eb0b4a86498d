"""facm prepare, and what facm latents verify says of its folders."""

import pytest

pytest.importorskip("diffusers")

from tests.cli.cli_parts import command, refused
from tests.foundation.prepared_parts import photos, prompts_file
from tests.foundation.wan_parts import tiny_wan


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with a model, prompts and pictures."""
    monkeypatch.chdir(tmp_path)
    tiny_wan(tmp_path / "wan")
    prompts_file(tmp_path, ["a fox", "", "long " * 120, "seven"])
    photos(tmp_path / "photos")
    return tmp_path


TEACHER = ["prepare", "--prompts", "prompts.txt", "--model", "wan", "--out", "data", "--size", 32]
GUIDED = ["--steps", 2, "--guidance-scale", 3]


def test_prompts_alone(place, capsys):
    command(*TEACHER, *GUIDED, "--dry-run")
    said = capsys.readouterr().out
    assert "3 samples for WanPipeline, to be made by the teacher in 2 steps: 32 x 32 (3); latents (4, 1, 4, 4)" in said
    assert "would write to data: 1 files of prompts and 1 of latents are left" in said
    assert not (place / "data").exists()
    command(*TEACHER, *GUIDED)
    said = capsys.readouterr()
    assert "1 empty lines of prompts.txt are skipped" in said.out
    assert said.out.index("to be made by the teacher") < said.out.index(", made by the teacher")
    assert "3 samples for WanPipeline, made by the teacher in 2 steps: 32 x 32 (3); condition: embeddings" in said.out
    assert "3 of them made in " in said.out
    assert "1 prompts are longer than the text encoder takes, and were cut:" in said.err
    assert "number 2, 'long long" in said.err
    assert "without its last " in said.err
    command("latents", "verify", "data")
    assert "3 latents (4, 1, 4, 4) (3) with prompts for WanPipeline in 3 files, whole" in capsys.readouterr().out
    (place / "data" / "samples_00000.safetensors").unlink()
    assert "samples_00000.safetensors is missing" in refused(capsys, "latents", "verify", "data")


def test_pictures(place, capsys):
    words = ["prepare", "photos", "--model", "wan", "--out", "data"]
    message = refused(capsys, *words)
    assert "the pictures have 5 sizes, such as" in message
    assert "expected --buckets for sizes of about one area, or --size, to which all are cropped" in message
    command(*words, "--buckets", "--size", 48)
    assert "6 samples for WanPipeline, pictures: " in capsys.readouterr().out


def test_what_is_refused(place, capsys):
    for words, message in (
        (["prepare", "--model", "wan", "--out", "data"], "expected either a folder of pictures or --prompts FILE"),
        ([*TEACHER, "photos"], "expected either a folder of pictures or --prompts FILE, and one of them"),
        (["prepare", "--prompts", "photos", "--model", "wan", "--out", "d"], "photos has pictures"),
        (TEACHER, "prompts alone without --guidance-scale, of which the teacher makes the data"),
        ([*TEACHER, *GUIDED, "--batch-size", 0], "batch_size = 0, expected at least 1"),
        (["prepare", "photos", "--model", "photos", "--out", "data"], "photos is no model, expected a folder with"),
    ):
        assert message in refused(capsys, *words)
    assert not (place / "data").exists()
