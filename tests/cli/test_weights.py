"""facm weights export | import: files of weights, out and in."""

import json

import pytest
import torch
from safetensors import safe_open

from facm.core.serialize import from_json
from facm.pretrained.trained import load_trained
from tests.cli.cli_parts import arrays, command, refused


def test_export_writes_one_plain_file_and_overwrites_nothing(runs, tmp_path, capsys):
    out = tmp_path / "network.safetensors"
    command("weights", "export", runs / "teacher", "--out", out)
    assert "EMA 0.05 at 64 images" in capsys.readouterr().out
    trained = load_trained(runs / "teacher")
    with safe_open(out, "pt") as file:
        assert set(file.keys()) == set(trained.network.state_dict())
        for name, value in trained.network.state_dict().items():
            assert torch.equal(file.get_tensor(name), value)
        metadata = file.metadata()
    assert from_json(json.loads(metadata["config"])) == trained.config
    assert (metadata["sigma_rel"], metadata["images"]) == ("0.05", "64")
    assert "exists and is not overwritten" in refused(capsys, "weights", "export", runs / "teacher", "--out", out)


@pytest.mark.parametrize(
    ("option", "expected"), [(("--raw",), "raw"), (("--ema", "0.1"), "0.1"), (("--ema", "0.07"), "0.07")]
)
def test_export_chooses_weights(runs, tmp_path, option, expected):
    out = tmp_path / "network.safetensors"
    command("weights", "export", runs / "teacher", "--out", out, *option)
    with safe_open(out, "pt") as file:
        assert file.metadata()["sigma_rel"] == expected


def test_export_wants_a_name_that_says_what_it_is(runs, capsys):
    words = refused(capsys, "weights", "export", runs / "teacher", "--out", "network.bin")
    assert "--out network.bin, expected a name that ends in .safetensors, or in .pt" in words


def test_what_is_exported_is_sampled_and_imported_again(runs, tmp_path, capsys):
    out, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    command("weights", "export", runs / "teacher", "--out", out)
    command("weights", "import", out, "--out", again)
    assert "a teacher" in capsys.readouterr().out
    for name, network in {"run": runs / "teacher", "a": out, "b": again}.items():
        command("sample", network, "--num-samples", 4, "--npz", "--out", tmp_path / f"{name}.png")
    images = [arrays(tmp_path / f"{name}.npz")["images"] for name in ("run", "a", "b")]
    assert (images[0] == images[1]).all()
    assert (images[0] == images[2]).all()


def test_an_option_of_the_other_kind_is_named(runs, tmp_path, capsys):
    out = tmp_path / "a.safetensors"
    command("weights", "export", runs / "teacher", "--out", out)
    for what in ("sample", "evaluate"):
        words = refused(capsys, what, out, "--ema", 0.1)
        assert f"with the file {out}, expected it with a run only; --family and --weights choose in a file" in words
        words = refused(capsys, what, runs / "teacher", "--latent-scale", 2)
        assert f"--latent-scale 2.0 with the run {runs / 'teacher'}, expected it with a file only" in words
        assert "gone.pt: there is no such file" in refused(capsys, what, "gone.pt")
