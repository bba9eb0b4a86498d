"""Folders of models: which are opened, which are refused and why, and that none runs code of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from facm.foundation.folder import TRANSFORMER, VAE, load_pipeline, load_transformer, open_model
from tests.foundation.tiny_pipelines_parts import saved


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("sd3", tmp_path_factory.mktemp("tiny-sd3") / "sd3")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    change(content)
    index.write_text(json.dumps(content))


def test_what_the_index_says(original: Path) -> None:
    model = open_model(original)
    assert model.pipeline == "StableDiffusion3Pipeline"
    assert model.family.transformer == "SD3Transformer2DModel"
    assert model.parts["transformer"] == ("diffusers", "SD3Transformer2DModel")
    assert model.encoders[-1] == "text_encoder_3"
    assert "image_encoder" not in model.parts


def test_an_unknown_family_is_refused_with_the_file_to_write(folder: Path) -> None:
    rewrite(folder, lambda index: index.update(_class_name="KandinskyPipeline"))
    with pytest.raises(ValueError, match=r"KandinskyPipeline.*FluxPipeline.*ZImagePipeline.*families/kandinsky\.py"):
        open_model(folder)


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no model, expected a folder with model_index\.json"):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"model_index\.json"),
        ("[]", r"_class_name = None, expected the name of a pipeline"),
        ("{}", r"_class_name = None, expected the name of a pipeline"),
        ('{"_class_name": ["os", "system"]}', r"_class_name = \['os', 'system'\], expected the name of a pipeline"),
        ("\x00\x01", r"model_index\.json"),
        ("[" * 100_000, r"model_index\.json"),
        ('{"_class_name": "\ud800"}'.encode("utf-8", "surrogatepass").decode("latin-1"), "."),
    ],
)
def test_an_index_that_is_none_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "model_index.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_model(folder)


@pytest.mark.parametrize(
    "entry",
    [
        ["pipeline", "SD3Transformer2DModel"],
        ["evil", "Transformer"],
        ["diffusers_modules.local", "Transformer"],
        ["diffusers", 3],
        ["diffusers"],
        ["diffusers", "SD3Transformer2DModel", "more"],
        [["diffusers"], "SD3Transformer2DModel"],
        ["os", "system"],
    ],
)
def test_components_that_bring_code_are_refused(folder: Path, entry: list[Any]) -> None:
    (folder / "pipeline.py").write_text("raise SystemExit('code was run')")
    rewrite(folder, lambda index: index.update(transformer=entry))
    with pytest.raises(ValueError, match=r"transformer = .*expected a class of diffusers or transformers"):
        open_model(folder)


def test_a_class_that_its_library_does_not_have_is_refused(folder: Path) -> None:
    rewrite(folder, lambda index: index.update(vae=["diffusers", "NoSuchAutoencoder"]))
    model = open_model(folder)
    with pytest.raises(ValueError, match=r"NoSuchAutoencoder"):
        load_pipeline(model, (VAE,))
    with pytest.raises(ValueError, match=r"NoSuchAutoencoder"):
        load_pipeline(model, model.encoders)


def test_a_transformer_of_another_family_is_refused(folder: Path) -> None:
    rewrite(folder, lambda index: index.update(transformer=["diffusers", "FluxTransformer2DModel"]))
    with pytest.raises(ValueError, match=r"transformer = FluxTransformer2DModel, expected SD3Transformer2DModel"):
        open_model(folder)


@pytest.mark.parametrize("name", ["transformer", "vae", "scheduler", "text_encoder_2", "tokenizer"])
def test_a_missing_part_is_named(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name)
    with pytest.raises(ValueError, match=rf"{name}: there is no such folder"):
        open_model(folder)
    rewrite(folder, lambda index: index.pop(name))
    with pytest.raises(ValueError, match=rf"names no {name}, expected one in a StableDiffusion3Pipeline"):
        open_model(folder)


def test_a_model_may_lack_its_optional_encoder(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder_3")
    shutil.rmtree(folder / "tokenizer_3")
    rewrite(folder, lambda index: index.update(text_encoder_3=[None, None], tokenizer_3=[None, None]))
    model = open_model(folder)
    assert model.encoders == ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    pipe = load_pipeline(model, model.encoders)
    with torch.no_grad():
        cond = model.family.encode(pipe, ["a fox"])
    assert cond["embeddings"].shape[1] == 77 + 256
    assert model.family.most_tokens(pipe) == 77


class Runs:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_weights_that_are_pickled_are_not_read(folder: Path, tmp_path: Path) -> None:
    weights = folder / TRANSFORMER / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({"proj_out.weight": Runs(tmp_path / "run")}, folder / TRANSFORMER / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=rf"{folder}/{TRANSFORMER} .* weights in .*\.bin, .*expected .safetensors"):
        load_transformer(open_model(folder))
    (folder / VAE / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"a": Runs(tmp_path / "run")}, folder / VAE / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=rf"{folder}"):
        load_pipeline(open_model(folder), (VAE,))
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_are_named(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = folder / TRANSFORMER / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["stranger.weight"] = tensors.pop("proj_out.bias")
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"weights do not fit config\.json.*(proj_out\.bias|stranger)"):
        load_transformer(open_model(folder))


@pytest.mark.parametrize("part", ["text_encoder", VAE])
def test_a_weight_that_is_missing_is_not_drawn_at_random(folder: Path, part: str) -> None:
    from safetensors.torch import load_file, save_file

    [weights] = (folder / part).glob("*.safetensors")
    tensors = load_file(weights)
    gone = sorted(name for name in tensors if name.endswith("weight"))[3]
    del tensors[gone]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{part}: weights do not fit config.json: .*{gone}"):
        load_pipeline(open_model(folder), (part,))


@pytest.mark.parametrize("damage", [b"", b"not safetensors at all", b"\xff" * 64])
def test_damaged_weights_are_one_error(folder: Path, damage: bytes) -> None:
    (folder / TRANSFORMER / "diffusion_pytorch_model.safetensors").write_bytes(damage)
    with pytest.raises(ValueError, match=rf"{folder / TRANSFORMER}.*expected a folder with model_index\.json"):
        load_transformer(open_model(folder))


def test_code_beside_a_config_is_not_run(folder: Path, tmp_path: Path) -> None:
    """auto_map, with which transformers runs a model's own code where it is trusted."""
    config = folder / "text_encoder" / "config.json"
    content = json.loads(config.read_text())
    content["auto_map"] = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    config.write_text(json.dumps(content))
    (folder / "text_encoder" / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w').close()")
    model = open_model(folder)
    load_pipeline(model, model.encoders)
    load_pipeline(model, (VAE,))
    assert not (tmp_path / "run").exists()


def test_only_the_parts_that_are_asked_for_have_weights(original: Path) -> None:
    pipe = load_pipeline(open_model(original), (VAE,))
    assert {p.device.type for p in pipe.vae.parameters()} == {"cpu"}
    for empty in (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3):
        assert {p.device.type for p in empty.parameters()} == {"meta"}


def test_the_identity_follows_the_files(folder: Path) -> None:
    model = open_model(folder)
    before = model.identity(TRANSFORMER, VAE)
    assert before == open_model(folder).identity(TRANSFORMER, VAE)
    weights = folder / TRANSFORMER / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    after = model.identity(TRANSFORMER, VAE)
    assert after[TRANSFORMER] != before[TRANSFORMER]
    assert after[VAE] == before[VAE]
    for file in (folder / VAE).iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"vae has no files"):
        model.identity(VAE)
