"""The memory plan: against what a process really takes, and what it says where it does not fit."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from facm import FACM, AdamW, Engine, FlowMatching, Labels, PowerEMA, Run
from facm.cli import main
from facm.data import Noise
from facm.derivative import OpLevel, WholeNetwork
from facm.networks.lightning_dit import LightningDiT
from facm.runs.config import Intervals
from facm.training.memory_plan import plan
from tests.paths import ROOT
from tests.training.run_parts import Untrained

GB = 10**9
SMALL = LightningDiT(input_size=8, patch_size=1, in_channels=4, hidden_size=256, depth=4, num_heads=4, num_classes=10)
TINY = dataclasses.replace(SMALL, hidden_size=16, depth=1)
"""On the meta device an operation takes a millisecond whatever its size: what is planned in tests has few of them."""
WIDE = dataclasses.replace(SMALL, depth=1)


def distillation(network=SMALL, batch_size=16, derivative=None, **changes):
    objective = FACM(Labels(10), derivative=derivative or OpLevel())
    run = Run(
        network=network,
        data=Noise((4, 8, 8), num_classes=10),
        objective=objective,
        images=3 * batch_size,
        batch_size=batch_size,
        optimizer=AdamW(),
        ema=PowerEMA((0.2,)),
        teacher=Untrained(network),
        every=Intervals(ema_snapshots=0, checkpoint=10**9, log=10**9),
        precision="fp32",
    )
    return dataclasses.replace(run, **changes)


CASES = {
    "op level": ({}, {}),
    "whole network": ({"derivative": WholeNetwork()}, {}),
    "checkpointing": ({}, {"checkpointing": True}),
    "micro-batches": ({}, {"accumulate": 4}),
    "flow matching": ({"objective": FlowMatching(Labels(10)), "teacher": None}, {}),
}


def measured(case: str) -> int:
    """Bytes that a process's resident set grows by at most while it trains; runs as a script."""
    import ctypes
    import tempfile

    from facm.runs.folder import create
    from facm.training import loop as training

    torch.set_num_threads(1)
    changes, options = CASES[case]

    def go(run):
        with tempfile.TemporaryDirectory() as folder:
            training.train(run, create(Path(folder) / "run", run), engine=Engine(**options))

    training.save_checkpoint = lambda *_: None  # type: ignore[assignment]  # a copy for the disk is not part of a step
    go(distillation(TINY, **changes))  # what PyTorch loads when it is first used

    def status(key):
        return next(int(s.split()[1]) * 1024 for s in open("/proc/self/status") if s.startswith(key))

    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    go(distillation(**changes))
    return status("VmHWM") - before


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's resettable high-water mark")
@pytest.mark.parametrize("case", CASES)
def test_plan_is_within_15_percent_of_what_a_process_takes(case):
    changes, options = CASES[case]
    predicted = plan(distillation(**changes), 1, 8 * GB, Engine(**options), device="cpu").total
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",  # freed tensors go back to the system at once
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__, case],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(predicted, rel=0.15)


# What it says


def test_no_tensor_of_the_network_is_made(monkeypatch):
    monkeypatch.setattr(torch.nn.Parameter, "cpu", None)
    large = dataclasses.replace(SMALL, hidden_size=4096, depth=1)
    found = plan(distillation(large), 8, 80 * GB, Engine(parallel="fsdp"), device="cuda")
    with torch.device("meta"):
        size = sum(p.nbytes for p in large.build().parameters())
    assert found.parameters == pytest.approx(size / 8, rel=0.01)
    assert found.optimizer == 2 * found.gradients


@pytest.mark.slow
def test_shards_and_copies():
    run = distillation(WIDE)
    alone, ddp, fsdp = (
        plan(run, gpus, 80 * GB, Engine(parallel=kind), device="cpu")
        for gpus, kind in ((1, "auto"), (4, "ddp"), (4, "fsdp"))
    )
    assert ddp.parameters == alone.parameters == pytest.approx(4 * fsdp.parameters, rel=0.01)
    assert ddp.teacher == alone.teacher == alone.parameters > 0  # the same network
    assert ddp.activations < alone.activations / 3
    assert ddp.buckets == ddp.gradients
    assert fsdp.activations == ddp.activations
    assert fsdp.teacher == pytest.approx(ddp.teacher / 4, rel=0.01)
    assert fsdp.gathered > 0 == ddp.gathered
    replicated = plan(run, 4, 80 * GB, Engine(parallel="fsdp", replicas=2), device="cpu")
    assert replicated.parameters == pytest.approx(2 * fsdp.parameters, rel=0.01)
    offloaded = plan(run, 4, 80 * GB, Engine(parallel="fsdp", cpu_offload=True), device="cpu")
    assert offloaded.parameters == offloaded.optimizer == 0


@pytest.mark.slow
def test_tangent_does_not_grow_with_depth_and_whole_networks_does():
    def tangent(depth, derivative):
        run = distillation(dataclasses.replace(SMALL, hidden_size=16, depth=depth), derivative=derivative)
        return plan(run, device="cpu").tangent

    assert tangent(4, OpLevel()) == pytest.approx(tangent(1, OpLevel()), rel=0.02)
    assert tangent(4, WholeNetwork()) > 3 * tangent(1, WholeNetwork())


@pytest.mark.slow
def test_bf16_halves_most_activations_on_a_gpu():
    run = distillation(WIDE)
    single, half = (plan(dataclasses.replace(run, precision=name), device="cuda") for name in ("fp32", "bf16"))
    assert 0.4 < half.activations / single.activations < 0.75
    assert half.cast > single.cast == 0


@pytest.mark.slow
def test_what_does_not_fit_says_what_would():
    run = distillation(WIDE, batch_size=64, precision="bf16")
    needed = plan(run, advise=False).total
    found = plan(run, 1, needed - 50 * 10**6)
    assert not found.fits
    assert found.advice[-1].startswith("with engine.checkpointing = True")
    assert found.advice[-1].endswith("fits")
    hopeless = plan(run, 1, 1 * GB)
    assert hopeless.advice[-1] == "expected more GPUs, or more memory on each"
    assert plan(run, 1, needed + 1).fits


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--gpus", "0"], "--gpus 0"),
        (["--gpu-memory", "0"], "--gpu-memory 0"),
        (["--gpus", "3"], "--run.batch-size 128 over 3 ranks"),
        (["--gpus", "2", "--engine.accumulate", "3"], "--engine.accumulate 3"),
    ],
)
def test_impossible_plans_name_the_option(arguments, named, capsys):
    with pytest.raises(SystemExit):
        main(["plan", "digits-student", *arguments])
    assert named in capsys.readouterr().err


def test_the_command_needs_neither_teacher_nor_data(capsys, tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from facm import *\nfrom facm.data import ImageFolder\nfrom facm.networks.lightning_dit import LightningDiT\n"
        "def big():\n"
        "    net = LightningDiT(input_size=8, in_channels=3, hidden_size=64, depth=2, num_heads=1, num_classes=10)\n"
        "    return Run(net, ImageFolder('nowhere', size=8), FACM(Labels(10)), 1000, teacher=FromRun('nowhere'))\n"
    )
    main(["plan", f"{recipe}:big", "--shape", "3", "8", "8", "--gpus", "4"])
    assert "fits" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["plan", f"{recipe}:big"])
    assert "expected --shape" in capsys.readouterr().err


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1])))
