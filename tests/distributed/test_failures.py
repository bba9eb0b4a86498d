"""What can go wrong between ranks: each case ends promptly, on all of them, with one message that names it."""

import dataclasses
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from facm import FACM, DataVelocity, FlowMatching, Labels
from facm.core.state_dict import CheckpointError
from facm.core.types import Batch, Loss
from facm.distributed.engine import Engine
from facm.distributed.process_group import opened
from facm.networks.mlp import MLP
from facm.pretrained.trained import load_trained
from facm.runs import checkpointer as storage
from facm.runs.folder import RunFolder
from tests.distributed.parallel_parts import call, difference, facm, moons_run, torchrun, train_in

NETWORK = MLP(width=16, depth=2, num_classes=2)


@dataclasses.dataclass(frozen=True)
class Through:
    """Flow matching through the network inside the wrapper, whose gradients stay with their rank."""

    condition: Labels = Labels(2)

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any = None) -> Loss:
        return FlowMatching(self.condition)(network.module, batch, rng, teacher)


@dataclasses.dataclass(frozen=True)
class Ignores:
    """A loss in which one parameter has no part."""

    condition: Labels = Labels(2)

    def __call__(self, network: Any, batch: Batch, rng: torch.Generator, teacher: Any = None) -> Loss:
        return Loss(network(batch.x_1, batch.x_1[:, 0].abs().clamp(0, 1), batch.cond).mean(), {})


@dataclasses.dataclass(frozen=True)
class Unused:
    """An MLP with a parameter that nothing uses."""

    def build(self) -> torch.nn.Module:
        network = NETWORK.build()
        network.spare = torch.nn.Linear(3, 3)  # behind parameters that take part, which DDP then leaves unreduced
        return network


class Writing(torch.nn.Module):
    """Points (B, 2) through blocks whose outputs are written into, with weights that are not contiguous."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.inward, self.outward = torch.nn.Linear(3, 8), torch.nn.Linear(8, 2)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(2))
        self.mix = torch.nn.Parameter(torch.randn(8, 8).t())
        if tied:
            self.blocks[1].weight = self.blocks[0].weight

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        h = self.inward(torch.cat([x, t[:, None]], 1)) @ self.mix
        for block in self.blocks:
            out = block(torch.tanh(h))
            out += h
            out[:, 0].mul_(2)
            h = out
        return self.outward(h)


@dataclasses.dataclass(frozen=True)
class Written:
    tied: bool = False

    def build(self) -> torch.nn.Module:
        torch.manual_seed(1)
        return Writing(self.tied)


def written_run(network: Written) -> Any:
    return moons_run(network=network, objective=FACM(Labels(2), DataVelocity(), label_dropout=0.1), images=48)


@dataclasses.dataclass(frozen=True)
class Different:
    """A network that every rank initialises in its own way."""

    def build(self) -> torch.nn.Module:
        torch.manual_seed(int(os.environ["RANK"]))
        return NETWORK.build()


def misuses(root):
    """name -> the error of each rank, by name and message."""
    said = {}
    with opened(Engine(timeout_s=300)) as here:

        def attempt(name, run, engine=Engine()):  # noqa: B008
            try:
                train_in(f"{root}/{name}", run, engine, here)
                said[name] = "nothing"
            except (ValueError, RuntimeError) as error:
                said[name] = f"{type(error).__name__}: {error}"

        attempt("through", moons_run(objective=Through()))
        attempt("unused", moons_run(network=Unused()))
        attempt("found", moons_run(network=Unused()), Engine(find_unused=True))
        attempt("unused-fsdp", moons_run(network=Unused()), Engine(parallel="fsdp"))
        attempt("different", moons_run(network=Different()))
        attempt("seeds", moons_run(seed=here.rank))
        attempt("odd", moons_run(batch_size=15))
        attempt("replicas", moons_run(), Engine(parallel="fsdp", replicas=3))
        attempt("whole", moons_run())
        attempt("sharded", moons_run(), Engine(parallel="fsdp"))
        attempt("written-fsdp", written_run(Written()), Engine(parallel="fsdp"))
        attempt("tied-fsdp", written_run(Written(tied=True)), Engine(parallel="fsdp"))
        assert not RunFolder(Path(f"{root}/tied-fsdp")).checkpoints()
    try:
        train_in(f"{root}/written-one-{here.rank}", written_run(Written()))
        said["written-one"] = "nothing"
    except (ValueError, RuntimeError) as error:
        said["written-one"] = f"{type(error).__name__}: {error}"
    return said


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("failures")


@pytest.fixture(scope="module")
def said(root):
    return call(2, "tests.distributed.test_failures", "misuses", str(root))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("through", "RuntimeError: the gradient of parameter inward.weight is not synchronised: rank 0 and rank 1"),
        ("unused", "RuntimeError: parameter spare.weight has no gradient on rank 0, 1"),
        ("found", "nothing"),
        ("unused-fsdp", "nothing"),
        ("different", "RuntimeError: parameter inward.weight differs between rank 0 and rank 1"),
        ("seeds", "ValueError: the run's fingerprint differs between the ranks"),
        ("odd", "ValueError: batch_size = 15 over 2 ranks"),
        ("replicas", "ValueError: engine.replicas = 3 with 2 ranks"),
        ("whole", "nothing"),
        ("sharded", "nothing"),
        ("written-one", "nothing"),
        ("written-fsdp", "nothing"),
        ("tied-fsdp", "ValueError: engine.parallel = 'fsdp' cannot shard blocks.0.weight and blocks.1.weight"),
    ],
)
def test_misuse_is_named_on_every_rank(said, name, expected):
    assert all(rank[name].startswith(expected) for rank in said), [rank[name] for rank in said]


@pytest.mark.slow
def test_blocks_whose_output_is_written_into_train_as_in_one_process(root, said):
    """With a tangent an output is a view, and FSDP2 hooks views, which writing into them unhooks."""
    assert difference(RunFolder(root / "written-one-0"), RunFolder(root / "written-fsdp")) < 1e-6


# --- checkpoints in directories --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sharded_checkpoint_is_read_in_one_process(root, said):
    whole, sharded = (load_trained(root / name).network.state_dict() for name in ("whole", "sharded"))
    assert whole.keys() == sharded.keys()
    assert all(torch.allclose(whole[name], sharded[name], atol=1e-6) for name in whole)
    snapshots = RunFolder(root / "sharded").ema_snapshots()
    assert [(images, sigma) for images, sigma, _ in snapshots] == [(80, 0.05), (80, 0.2), (160, 0.05), (160, 0.2)]
    load_trained(root / "sharded", sigma_rel=0.1)  # synthesised from directories


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["bytes", "truncated", "a file missing", "no record", "record", "meta"])
def test_a_damaged_one_is_named_and_the_one_before_loads(root, said, tmp_path, damage):
    shutil.copytree(root / "sharded", tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    before, newest = folder.checkpoints()
    shard = sorted(newest.glob("shard-*"))[-1]
    record = newest / storage.RECORD
    if damage == "bytes":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-8])
    elif damage == "a file missing":
        shard.unlink()
    elif damage == "no record":
        record.unlink()
    elif damage == "record":
        record.write_text(record.read_text()[:-9])
    else:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"meta": {"images": 1}}))
    with pytest.raises(CheckpointError, match=rf"{newest} is (damaged|incomplete).*the one before is {before}"):
        load_trained(folder.path)
    shutil.rmtree(newest)
    assert load_trained(folder.path).images_seen == 80


@pytest.mark.slow
def test_no_pickled_code_in_a_directory(root, said):
    newest = RunFolder(root / "sharded").checkpoints()[-1]
    assert {path.suffix for path in newest.iterdir()} == {".safetensors", ".json"}


# --- ranks that are lost ---------------------------------------------------------------------------------------------


RECIPE = """
import os, signal
from facm import FlowMatching, Labels, Run
from facm.data import Moons
from facm.networks.mlp import MLP
from facm.runs.config import Intervals
from facm.data.stream import Stream

original = Stream.at

def at(self, images):
    if images == 112 and self.rank == 1 and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0" and os.environ["KILL"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, images)

Stream.at = at

def run(seed: int = 0):
    return Run(MLP(width=16, num_classes=2), Moons(n=99), FlowMatching(Labels(2)), 160, 16,
               every=Intervals(log=80, checkpoint=80, ema_snapshots=0), seed=seed)
"""


@pytest.mark.slow
def test_a_killed_rank_is_started_again_and_the_run_goes_on(tmp_path, monkeypatch):
    """The command line under torchrun: from the checkpoint at 80, and what comes out is as if nothing had been."""
    from tests.distributed.parallel_parts import ENVIRONMENT, contents

    recipe = tmp_path / "mine.py"
    recipe.write_text(RECIPE)
    started = partial(torchrun, options=("--max-restarts=1",))  # the first restart must succeed
    for name, kill, launch in (("killed", "yes", started), ("calm", "", facm)):
        monkeypatch.setitem(ENVIRONMENT, "KILL", kill)
        command = ("train", f"{recipe}:run", "--out", tmp_path / name, "--engine.timeout-s", 100)
        code, said, errors = launch(2, *command)
        assert code == 0, errors
        assert said.count("done: 160 images") == 1
    killed, calm = (contents(RunFolder(tmp_path / name)) for name in ("killed", "calm"))
    assert killed == calm
    sessions = (tmp_path / "killed" / "sessions.jsonl").read_text().splitlines()
    assert [json.loads(line)["images"] for line in sessions] == [0, 80]


@pytest.mark.slow
def test_a_folder_in_use_ends_all_ranks_with_one_message_and_resume_goes_on(tmp_path, monkeypatch):
    from tests.distributed.parallel_parts import ENVIRONMENT

    monkeypatch.setitem(ENVIRONMENT, "KILL", "")
    recipe = tmp_path / "mine.py"
    recipe.write_text(RECIPE)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    code, said, errors = facm(2, "train", f"{recipe}:run", "--out", tmp_path / "run")
    assert code != 0
    assert said == ""
    assert errors.count(f"error: --out {tmp_path / 'run'} is in use and is never overwritten") == 1


@pytest.mark.slow
def test_torchrun_is_told_why_a_rank_failed(tmp_path):
    """Its summary, which otherwise says only that there is no error file."""
    code, _, errors = torchrun(1, "show", tmp_path / "nothing-here")
    assert code != 0
    first, summary = errors.split("Root Cause", 1)
    (message,) = [line for line in first.splitlines() if line.startswith("error: ")]
    assert message.removeprefix("error: ") in summary
    assert "exitcode  : 2" in summary


# --- one process -----------------------------------------------------------------------------------------------------


def test_train_resume_continues_this_very_run_and_no_other(tmp_path, monkeypatch, capsys):
    from facm import cli

    monkeypatch.setenv("KILL", "")
    recipe = tmp_path / "mine.py"
    recipe.write_text(RECIPE)
    command = ["train", f"{recipe}:run", "--out", str(tmp_path / "run"), "--quiet"]
    cli.main([*command, "--resume"])  # nothing there yet
    with pytest.raises(SystemExit):
        cli.main(command)
    assert "is in use and is never overwritten" in capsys.readouterr().err
    cli.main([*command, "--resume"])  # finished: nothing to do
    with pytest.raises(SystemExit):
        cli.main([*command, "--resume", "--seed", "1"])
    assert "holds another run than this command's (seed differ)" in capsys.readouterr().err
