"""Exports of every family in diffusers' own pipelines: the folder, the adapter files, and what is said about them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from facm.core.files import TakenError
from facm.foundation.export.comfyui import NAMES, write_comfyui
from facm.foundation.export.diffusers_folder import write_folder
from facm.foundation.export.lora_file import metadata, write_lora
from facm.foundation.export.lowrank import LowRank, added, merged
from facm.foundation.export.schedule import MOST_STEPS, levels_by, new_scheduler
from facm.foundation.export.student import Student
from facm.foundation.export.svd import low_rank
from facm.foundation.families.table import FAMILIES
from facm.foundation.folder import load_transformer, open_model
from tests.foundation.export_parts import Drawn, relative, student
from tests.foundation.tiny_pipelines_parts import MAKERS, saved

FLOAT32 = 3e-6
ROUNDED = {"sana", "lumina2", "ltx", "flux2-klein"}
"""Whose pipelines pad prompts further than this package, so that sums have another order, or whose latents come out
scaled for the VAE, and are scaled back."""


def opened(path: Path) -> Any:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny-models")


FAST = ("wan", "sd3", "z_image")
"""One of each way in which noise levels reach a pipeline; the others run with the slow tests."""


@pytest.fixture(
    scope="session", params=[kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in MAKERS]
)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def trained(kind: str, models: Path) -> Student:
    return student(saved(kind, models / kind))


@pytest.fixture(scope="session")
def wan(models: Path) -> Path:
    return saved("wan", models / "wan")


def moved(drawn: Drawn, network: Any) -> tuple[float, float]:
    """How far the pipeline's transformer is from ``network``, and how far that is from its model."""
    x, cond, time = drawn.noise(), drawn.cond(), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        want = network(x, time, cond)
        with network.as_base():
            base = network(x, time, cond)
        return relative(drawn.network()(x, time, cond), want), relative(base, want)


def test_the_folder_opens_in_diffusers_and_samples_as_this_package_does(
    kind: str, trained: Student, tmp_path: Path
) -> None:
    from facm.foundation.export.scheduler import FewStepScheduler

    write_folder(trained, tmp_path / "out", num_steps=2)
    pipe = opened(tmp_path / "out")
    drawn = Drawn(trained, pipe)
    error, distance = moved(drawn, trained.network)
    assert error < FLOAT32 < 0.03 < distance
    by_scheduler = levels_by(trained.model.pipeline) == "scheduler"
    stock = pipe.scheduler
    assert type(stock).__name__ == "FlowMatchEulerDiscreteScheduler"
    for n in (2, 1, 4, 8):
        want = drawn.by_sampler(n)
        pipe.scheduler = stock if n == 2 or not by_scheduler else new_scheduler(trained.model.pipeline, n, "stock")
        assert relative(drawn.by_pipeline(n), want) < FLOAT32, f"diffusers' scheduler, {n} steps"
        pipe.scheduler = FewStepScheduler.from_config(stock.config)
        error = relative(drawn.by_pipeline(n, "facm"), want)
        assert error < FLOAT32 if kind in ROUNDED else error == 0, f"this package's scheduler, {n} steps"


def test_the_scheduler_on_both_heads_samples_as_this_package_does(kind: str, trained: Student, tmp_path: Path) -> None:
    """The anchor is asked at negative timesteps, which no pipeline stumbles over."""
    write_folder(trained, tmp_path / "out", num_steps=3, kind="flow-jump")
    pipe = opened(tmp_path / "out")
    assert type(pipe.scheduler).__name__ == "FlowJumpScheduler"
    drawn = Drawn(trained, pipe)
    for n in (3, 1, 2, 4, 6):
        got, want = drawn.by_pipeline(n, "flow-jump"), drawn.by_flow_then_jump(n)
        error = relative(got, want)
        assert error < FLOAT32 if kind in ROUNDED else error == 0, f"{n} evaluations"
        if n < 3:
            assert relative(want, drawn.by_sampler(n)) == 0
        else:
            assert relative(want, drawn.by_sampler(n)) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("family", "frames"), [("wan", 5), ("ltx", 9)])
def test_clips_are_those_of_this_package(family: str, frames: int, models: Path, tmp_path: Path) -> None:
    clips = dataclasses.replace(student(saved(family, models / family)), frames=frames)
    write_folder(clips, tmp_path / "out", num_steps=2)
    drawn = Drawn(clips, opened(tmp_path / "out"))
    assert drawn.shape[1] == 2
    assert relative(drawn.by_pipeline(2), drawn.by_sampler(2)) < FLOAT32
    assert f"num_frames={frames}, " in (tmp_path / "out" / "README.md").read_text()


def test_the_adapter_file_makes_the_same_network_in_diffusers(kind: str, trained: Student, tmp_path: Path) -> None:
    differences = added(trained.network)
    assert len({difference.rank for difference in differences.values()}) > 1, "smoothing has a rank of its own"
    write_lora(trained, {"transformer": differences}, tmp_path / "lora")
    pipe = opened(trained.model.path)
    pipe.load_lora_weights(tmp_path / "lora")
    error, distance = moved(Drawn(trained, pipe), trained.network)
    assert error < FLOAT32 < 0.03 < distance


def test_diffusers_reads_the_file_for_comfyui(kind: str, trained: Student, tmp_path: Path) -> None:
    out, pipeline = tmp_path / "lora.safetensors", trained.model.pipeline
    if pipeline not in NAMES:
        with pytest.raises(ValueError, match="whose layers ComfyUI has no names for"):
            write_comfyui(trained, added(trained.network), out)
        assert not out.exists()
        return
    write_comfyui(trained, added(trained.network), out)
    if pipeline == "LTXPipeline":
        assert any("adaln_single.emb.timestep_embedder.linear_1" in key for key in load_file(out))
        return  # diffusers does not map these names back
    pipe = opened(trained.model.path)
    pipe.load_lora_weights(tmp_path, weight_name=out.name)
    error, distance = moved(Drawn(trained, pipe), trained.network)
    assert error < FLOAT32 < 0.03 < distance


def test_no_linear_layer_is_dropped_where_diffusers_loads_adapters(kind: str, models: Path, tmp_path: Path) -> None:
    full = student(saved(kind, models / kind), lora=False)
    base = load_transformer(full.model)
    largest = max(min(m.weight.shape) for m in base.modules() if isinstance(m, torch.nn.Linear))
    differences, kept = low_rank(full.network, base, largest)
    assert kept.linear == pytest.approx(1, abs=1e-6)
    write_lora(full, {"transformer": differences}, tmp_path / "lora")
    pipe = opened(full.model.path)
    pipe.load_lora_weights(tmp_path / "lora")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    got, want = pipe.transformer.state_dict(), merged(full.network)
    for layer in differences:
        torch.testing.assert_close(got[f"{layer}.weight"], want[f"{layer}.weight"], atol=1e-6, rtol=1e-6)


def test_every_family_has_a_schedule() -> None:
    assert {levels_by(name) for name in FAMILIES} == {"pipeline", "caller", "scheduler"}
    with pytest.raises(ValueError, match="NewPipeline: how it comes by its noise levels is not known"):
        levels_by("NewPipeline")


@pytest.mark.parametrize("n", range(1, MOST_STEPS + 1))
def test_wans_own_scheduler_has_the_levels_of_its_number_of_steps(n: int) -> None:
    scheduler = new_scheduler("WanPipeline", n, "stock")
    scheduler.set_timesteps(n)
    torch.testing.assert_close(scheduler.sigmas, torch.linspace(1, 0, n + 1), atol=1e-7, rtol=0)


def test_a_seeded_scheduler_repeats_its_noise(wan: Path, tmp_path: Path) -> None:
    one = student(wan)
    write_folder(one, tmp_path / "out", kind="facm")
    pipe = opened(tmp_path / "out")
    assert open_model(tmp_path / "out").parts["scheduler"][1] == type(pipe.scheduler).__name__ == "FewStepScheduler"
    drawn = Drawn(one, pipe)
    pictures = []
    for seed in (1, 1, 2):
        pipe.scheduler.generator = torch.Generator().manual_seed(seed)
        pictures.append(drawn.by_pipeline(4, "facm"))
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


def test_a_model_that_was_only_fine_tuned_keeps_its_scheduler(wan: Path, tmp_path: Path) -> None:
    write_folder(student(wan, lora=False, few_step=False), tmp_path / "out")
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        one, other = (json.loads((folder / name).read_text()) for folder in (wan, tmp_path / "out"))
        one.pop("_name_or_path", None)
        assert one == other
    assert "has not been distilled" in (tmp_path / "out/README.md").read_text()


def test_weights_are_written_in_half_precision_after_they_are_added(wan: Path, tmp_path: Path) -> None:
    one = student(wan)
    write_folder(one, tmp_path / "out", dtype=torch.bfloat16)
    got = load_file(tmp_path / "out/transformer/diffusion_pytorch_model.safetensors")
    for name, value in merged(one.network).items():
        assert torch.equal(got[name], value.bfloat16())


def test_nothing_is_overwritten_and_nothing_half_written_stays(
    wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = student(wan)
    differences = added(one.network)
    (tmp_path / "out").mkdir()
    (tmp_path / "out.safetensors").touch()
    with pytest.raises(TakenError):
        write_folder(one, tmp_path / "out")
    with pytest.raises(TakenError):
        write_lora(one, {"transformer": differences}, tmp_path / "out")
    with pytest.raises(TakenError):
        write_comfyui(one, differences, tmp_path / "out.safetensors")
    monkeypatch.setattr("facm.foundation.export.diffusers_folder.card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_folder(one, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.safetensors"]


def test_code_and_pickles_beside_a_model_are_not_copied(wan: Path, tmp_path: Path) -> None:
    import shutil

    model = shutil.copytree(wan, tmp_path / "model")
    for name in ("vae/modeling.py", "vae/weights.bin", "text_encoder/.cache", "tokenizer/LICENSE.txt", "LICENSE"):
        (model / name).write_text("text")
    write_folder(student(model), tmp_path / "out")
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    assert {"LICENSE", "tokenizer/LICENSE.txt", "README.md", "facm_export.json"} < written
    assert not {"vae/modeling.py", "vae/weights.bin", "text_encoder/.cache"} & written


def test_low_rank_keeps_the_largest_directions_and_says_how_much(wan: Path) -> None:
    full = student(wan, lora=False)
    base = load_transformer(full.model)
    shares = []
    for rank in (1, 4, 16):
        differences, kept = low_rank(full.network, base, rank)
        shares.append(kept.linear)
        assert all(0 < share <= 1 + 1e-6 for share in kept.layers.values())
        assert kept.total < kept.linear
    assert shares == sorted(shares)
    layer = "blocks.0.attn1.to_q"
    change = merged(full.network)[f"{layer}.weight"] - base.state_dict()[f"{layer}.weight"]
    differences, kept = low_rank(full.network, base, 4)
    singular = torch.linalg.svdvals(change.double()).square()
    assert kept.layers[layer] == pytest.approx(float(singular[:4].sum() / singular.sum()), rel=1e-4)
    smoothed = "condition_embedder.time_embedder.linear_1"
    assert kept.layers[smoothed] == 1.0
    torch.testing.assert_close(differences[smoothed].product(), added(full.network)[smoothed].product())


@pytest.mark.parametrize("rank", [0, 1000])
def test_a_rank_that_no_layer_has(wan: Path, rank: int) -> None:
    full = student(wan, lora=False)
    with pytest.raises(ValueError, match=rf"lora_rank = {rank}, expected 1 to \d+"):
        low_rank(full.network, load_transformer(full.model), rank)


def test_an_adapter_is_tied_to_its_own_layer() -> None:
    differences = {
        name: LowRank(torch.ones(3, r), torch.ones(r, 2)) for name, r in (("a.out", 4), ("b", 4), ("out", 2))
    }
    said = metadata(differences)
    assert said["r"] == said["lora_alpha"] == 4
    assert said["rank_pattern"] == said["alpha_pattern"] == {"^out": 2}


def test_the_card_says_how_both_heads_are_sampled(wan: Path, tmp_path: Path) -> None:
    one = student(wan)
    write_folder(one, tmp_path / "out", num_steps=3, kind="flow-jump")
    write_lora(one, {"transformer": added(one.network)}, tmp_path / "lora", 3, kind="flow-jump")
    for name in ("out", "lora"):
        text = (tmp_path / name / "README.md").read_text()
        assert "num_inference_steps=3" in text
        assert "`num_inference_steps` counts evaluations, 1 to 8." in text
        assert "`FlowJumpScheduler` has a `generator` of its own" in text
    assert "pipe.scheduler = FlowJumpScheduler()" in text
    scheduler = opened(tmp_path / "out").scheduler
    with pytest.raises(ValueError, match="expected num_inference_steps"):
        scheduler.set_timesteps(timesteps=[1.0])
    scheduler.set_timesteps(4)  # 0, 0.55 along the flow, which is asked beyond 1, then from 0.55 and 0.865 to the data
    assert scheduler.timesteps.tolist() == pytest.approx([-1000, -450, 450, 135])


def test_the_card_shows_a_call_that_runs(kind: str, trained: Student, tmp_path: Path) -> None:
    write_folder(trained, tmp_path / "out", num_steps=4)
    text = (tmp_path / "out/README.md").read_text()
    call = re.search(r"pipe\(\"a red fox in snow\", (.*)\)\.(images|frames)", text)
    assert call is not None
    arguments = eval(f"dict({call[1]})")
    assert arguments["num_inference_steps"] == 4
    assert trained.unguided.items() <= arguments.items()
    assert trained.origin["base_transformer"] in text
    assert f"{trained.model.path.name}: that model's licence applies" in text
    drawn = Drawn(trained, opened(tmp_path / "out"))
    assert relative(drawn.by_pipeline(4, **arguments), drawn.by_sampler(4)) < FLOAT32
