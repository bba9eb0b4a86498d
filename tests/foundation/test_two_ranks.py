"""Students of two experts on two ranks, sharded or not, as on one process; sharded, nothing is whole in one place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from facm.distributed.collectives import by_first
from facm.distributed.engine import Engine
from facm.distributed.parts_of_files import read_parts
from facm.distributed.process_group import opened
from facm.foundation import folder as model_folder
from facm.foundation.prepare.pipeline import Options, prepare
from facm.foundation.prepare.sources import source_at
from facm.pretrained.trained import load_trained
from facm.recipes.text_to_image import distill
from facm.runs.config import Intervals, Run
from facm.runs.folder import RunFolder, create
from facm.training.loop import train
from tests.distributed.parallel_parts import call
from tests.foundation.prepared_parts import prompts_file
from tests.foundation.wan_parts import tiny_wan22

RUNS = {
    f"{student}-{'lora' if rank else 'full'}{'-bf16' if base == 'bf16' else ''}": (student, rank, base)
    for student, rank, base in (
        ("one", 2, "fp32"),
        ("one", 0, "fp32"),
        ("high-noise", 2, "bf16"),
        ("high-noise", 0, "fp32"),
        ("low-noise", 2, "fp32"),
    )
}
ENGINES = {"ddp": Engine(parallel="ddp"), "fsdp": Engine(parallel="fsdp", checkpointing=True)}


def run_of(model: str, data: str, name: str) -> Run:
    """Three steps; the rate is small, since AdamW's first steps are signs of gradients, which rounding flips near 0."""
    student, rank, base = RUNS[name]
    run = distill(
        model, data, lora_rank=rank, base=base, student=student, images=24, batch_size=8, guidance_scale_2=2.0
    )
    return replace(run, every=Intervals(log=8, checkpoint=24, ema_snapshots=0))


def on_ranks(model: str, data: str, root: str) -> None:
    """What a rank does: all runs by both engines. Sharded, no transformer may be read whole."""
    whole = model_folder._whole

    def refuse(kind: Any, folder: Path, *rest: Any) -> Any:
        if folder.name.startswith("transformer"):
            raise AssertionError(f"{folder} is read whole")
        return whole(kind, folder, *rest)

    with opened(Engine(timeout_s=300)) as world:
        for engine_name, engine in ENGINES.items():
            model_folder._whole = refuse if engine_name == "fsdp" else whole
            for name in RUNS:
                run = run_of(model, data, name)
                folder = RunFolder(Path(root) / f"{engine_name}-{name}")
                by_first(world, lambda path=folder.path, run=run: create(path, run) and None)
                train(run, folder, engine=engine, world=world)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ranks")
    model = tiny_wan22(root / "model")
    source = source_at(prompts_file(root, [f"number {i}" for i in range(16)]))
    prepare(source, model, root / "data", Options(size=(32,), steps=2, guidance_scale=3.0))
    for name in RUNS:
        run = run_of(str(model), str(root / "data"), name)
        train(run, create(root / f"alone-{name}", run))
    call(2, __name__, "on_ranks", str(model), str(root / "data"), str(root), timeout=900)
    return root


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in load_trained(path, raw=True).network.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("name", list(RUNS))
def test_two_ranks_train_as_one_process_does(trained: Path, engine: str, name: str) -> None:
    alone, both = (weights(trained / f"{which}-{name}") for which in ("alone", engine))
    assert alone.keys() == both.keys()
    worst = max(float((value - both[key]).abs().max()) for key, value in alone.items())
    assert worst < 1e-6


def test_weights_are_read_by_name_and_a_misfit_is_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    a, b = torch.randn(4, 3), torch.randn(2)
    for i, part in enumerate(({"a": a}, {"b": b.bfloat16()})):
        save_file(part, tmp_path / f"part{i}.safetensors")
    into = {"a": torch.zeros(4, 3), "b": torch.zeros(2)}
    read_parts(tmp_path, into)
    assert torch.equal(into["a"], a)
    assert torch.equal(into["b"], b.bfloat16().float())
    for wrong, message in (
        ({"a": torch.zeros(4, 3)}, "b is unknown"),
        ({**into, "c": torch.zeros(1)}, "c is missing"),
        ({"a": torch.zeros(3, 4), "b": torch.zeros(2)}, r"a is \(4, 3\), expected \(3, 4\)"),
    ):
        with pytest.raises(ValueError, match=rf"do not fit config.json: .*{message}"):
            read_parts(tmp_path, wrong)
    (tmp_path / "part1.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match="expected whole safetensors"):
        read_parts(tmp_path, into)
    with pytest.raises(ValueError, match=r"has no \.safetensors"):
        read_parts(tmp_path / "none", into)
