"""Runs whose network is a diffusers model: with adapters, the base is the teacher, and is in no checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from facm.distributed.collectives import by_first
from facm.distributed.engine import Engine
from facm.distributed.process_group import opened
from facm.foundation import DiffusersModel, FromExperts, OtherExpert, OwnBase
from facm.foundation.folder import SECOND
from facm.pretrained.trained import load_trained
from facm.runs.checkpoint import load
from facm.runs.folder import RunFolder, create
from facm.training.checks import check_resting
from facm.training.loop import train
from facm.training.memory_plan import Plan, plan
from tests.distributed.parallel_parts import call
from tests.foundation import recipe_of_wan_parts
from tests.foundation.wan_parts import tiny_wan, wan_run

PARTS = Path(recipe_of_wan_parts.__file__)


@pytest.fixture(scope="session")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan(tmp_path_factory.mktemp("models") / "wan")


def tensors(folder: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in load(folder.checkpoints()[-1]).tensors.items() if "rng" not in name}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(
            value, b[name], rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n} {text}"
        )


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("lora", [True, False], ids=["adapters", "all weights"])
def test_a_run_that_was_interrupted_ends_as_one_that_was_not(wan: Path, tmp_path: Path, lora: bool) -> None:
    run = wan_run(wan, lora)
    through, resumed = create(tmp_path / "through", run), create(tmp_path / "resumed", run)
    train(run, through)

    def stop(trainer: Any) -> None:
        if trainer.state.images == 16:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(run, resumed, on_checkpoint=stop)
    train(run, resumed)
    assert_equal(tensors(through), tensors(resumed))


def test_checkpoints_and_averages_of_adapters_hold_the_adapters_alone(wan: Path, tmp_path: Path) -> None:
    run = wan_run(wan, lora=True)
    folder = create(tmp_path / "run", run, None, PARTS)
    train(run, folder)
    weights = [name for name in tensors(folder) if name.startswith(("network/", "ema/"))]
    assert weights
    assert all(".lora_A." in name or ".lora_B." in name for name in weights)
    trained = load_trained(folder.path, raw=True)
    batch = run.data.open().read([0, 1])
    fresh = run.network.build().eval()
    time = torch.tensor([0.2, 0.7])
    with torch.no_grad():
        moved = trained.network(batch.x_1, time, batch.cond)
        assert not torch.equal(moved, fresh(batch.x_1, time, batch.cond))
        base = OwnBase().within(trained.network)(batch.x_1, time, batch.cond)
        assert torch.equal(base, DiffusersModel(str(wan)).build()(batch.x_1, time, batch.cond))


def test_the_base_of_a_network_without_adapters_cannot_be_its_teacher(wan: Path, tmp_path: Path) -> None:
    run = wan_run(wan, lora=False, teacher=OwnBase())
    with pytest.raises(ValueError, match=r"teacher = OwnBase\(\) with network = DiffusersNetwork.*FromModel"):
        train(run, create(tmp_path / "run", run))


@pytest.mark.slow
def test_the_plan_of_adapters_counts_one_copy_of_the_base(wan: Path) -> None:
    adapters, whole = (plan(wan_run(wan, lora), device="cpu") for lora in (True, False))
    network = DiffusersModel(str(wan)).build()
    base = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    assert adapters.teacher == 0
    assert whole.teacher == base
    lora = adapters.parameters - base
    assert 0 < lora < base / 4
    assert (adapters.gradients, adapters.optimizer, adapters.ema) == (lora, 2 * lora, lora)


def both_engines(model: str, root: str, lora: bool) -> None:
    """What a rank does: each engine without and with an interruption."""
    run = wan_run(Path(model), lora)

    def stop(trainer: Any) -> None:
        if trainer.state.images == 16:
            raise Interrupted

    with opened(Engine(timeout_s=300)) as world:
        for name, engine in {"ddp": Engine(parallel="ddp"), "fsdp": Engine(parallel="fsdp")}.items():
            through, resumed = (RunFolder(Path(root) / which) for which in (name, f"{name}-resumed"))
            for folder in (through, resumed):
                by_first(world, lambda path=folder.path: create(path, run, None, PARTS) and None)
            train(run, through, engine=engine, world=world)
            try:
                train(run, resumed, engine=engine, world=world, on_checkpoint=stop)
            except Interrupted:
                train(run, resumed, engine=engine, world=world)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [True, False], ids=["adapters", "all weights"])
def test_two_processes_train_as_one_does(wan: Path, tmp_path: Path, lora: bool) -> None:
    run = wan_run(wan, lora)
    alone = create(tmp_path / "alone", run, None, PARTS)
    train(run, alone)
    call(2, __name__, "both_engines", str(wan), str(tmp_path), lora)
    want = load_trained(alone.path, raw=True).network.state_dict()
    for name in ("ddp", "fsdp"):
        got = load_trained(tmp_path / name, raw=True).network.state_dict()
        assert_equal(got, want, 2e-5)
        assert_equal(load_trained(tmp_path / f"{name}-resumed", raw=True).network.state_dict(), got)


def test_the_plan_does_not_count_a_resting_expert(wan22: Path) -> None:
    def planned(lora: bool, resident: Any, gpu_memory: float = 8e9, **engine: Any) -> Plan:
        network = replace(wan_run(wan22, lora).network, part=SECOND)  # type: ignore[type-var]
        high, low = DiffusersModel(str(wan22)), DiffusersModel(str(wan22), part=SECOND)
        teacher = OtherExpert(high, resident) if lora else FromExperts(high, low, resident)
        run = replace(wan_run(wan22, lora), network=network, teacher=teacher)
        return plan(run, 2, gpu_memory, Engine(**engine), device="cpu")

    network = DiffusersModel(str(wan22)).build()
    expert = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    both, one = planned(False, "both"), planned(False, "one")
    assert (both.teacher, one.teacher) == (2 * expert, expert)
    assert both.activations == one.activations
    both, one = planned(True, "both"), planned(True, "one")
    assert (both.teacher, one.teacher) == (expert, 0)
    assert both.activations == one.activations
    with pytest.raises(ValueError, match=r"resident = 'one' with engine.parallel = 'fsdp'.*expected resident = 'both'"):
        planned(True, "one", parallel="fsdp")
    checkpointed = {"checkpointing": True, "accumulate": 4}
    resting = planned(True, "one", **checkpointed).total
    advice = planned(True, "both", **checkpointed, gpu_memory=resting).advice
    assert advice == (f"with resident = 'one': {resting / 1e6:.0f} MB, fits",)


def test_a_resting_expert_is_refused_before_a_sharded_step(wan22: Path) -> None:
    teacher = OtherExpert(DiffusersModel(str(wan22)), "one").load()
    check_resting(teacher, "ddp")
    with pytest.raises(ValueError, match=r"resident = 'one' with engine\.parallel = 'fsdp'"):
        check_resting(teacher, "fsdp")
