"""--device and --precision: where a command computes, and in which precision."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from facm.api.device import cast_forward, placed, with_compiled_blocks
from facm.distributed.process_group import ALONE, World
from tests.cli.cli_parts import arrays, command, refused


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine that shows two GPUs, and the one that was made the current one."""
    current = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", current.append)
    return current


@pytest.mark.parametrize(
    ("name", "device"), [("auto", "cuda"), ("cuda", "cuda"), ("cpu", "cpu"), ("cuda:0", "cuda:0"), ("cuda:1", "cuda:1")]
)
def test_a_device_is_chosen_by_name(two_gpus, name, device):
    assert placed(ALONE, name).device == torch.device(device)
    assert two_gpus == ([torch.device(device)] if ":" in name else [])


def test_ranks_keep_their_own_gpus(two_gpus):
    second = World(1, 2, 1)
    assert placed(second, "auto").device == placed(second, "cuda").device == torch.device("cuda", 1)
    assert placed(second, "cpu").device == torch.device("cpu")
    with pytest.raises(ValueError, match="device = cuda:0 with 2 ranks, which have a GPU each"):
        placed(second, "cuda:0")


def test_a_gpu_that_is_not_there_is_named(two_gpus):
    with pytest.raises(ValueError, match="device = cuda:2, and PyTorch sees 2 GPUs: expected cuda:0 to cuda:1"):
        placed(ALONE, "cuda:2")
    for name in ("gpu", "cuda:", "cuda:x", "cuda:-1", ""):
        with pytest.raises(ValueError, match="expected auto, cpu, cuda, or a GPU's number"):
            placed(ALONE, name)


def test_bf16_is_autocast_of_the_forward_pass_alone():
    seen = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x, cond=None):
            seen.append((torch.is_autocast_enabled("cpu"), self.linear(x).dtype, cond))
            return self.linear(x)

    network, x = Net(), torch.randn(2, 4)
    exact = network(x)
    cast_forward(network, torch.device("cpu"))
    rounded = network(x, cond=3)
    assert seen[-1] == (True, torch.bfloat16, 3)
    assert not torch.is_autocast_enabled("cpu")
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05


def test_samples_in_bf16_are_near_those_in_fp32(runs, tmp_path):
    options = ["--num-samples", 6, "--num-steps", 4, "--npz"]
    for name, more in {
        "default": [],
        "cpu": ["--device", "cpu", "--precision", "fp32"],
        "bf16": ["--precision", "bf16"],
    }.items():
        command("sample", runs / "teacher", *options, "--out", tmp_path / f"{name}.png", *more)
    default, cpu, bf16 = (arrays(tmp_path / f"{name}.npz")["images"].astype(int) for name in ("default", "cpu", "bf16"))
    assert np.array_equal(default, cpu) or torch.cuda.is_available()
    assert 0 < np.abs(bf16 - cpu).mean() < 2


@pytest.mark.parametrize("what", ["sample", "evaluate"])
def test_a_device_or_precision_that_there_is_not_is_named(runs, capsys, monkeypatch, what):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--device cuda, and PyTorch sees no GPU" in refused(capsys, what, runs / "teacher", "--device", "cuda")
    assert "invalid choice 'fp16'" in refused(capsys, what, runs / "teacher", "--precision", "fp16")


def test_a_row_names_device_and_precision(runs, tmp_path):
    run = shutil.copytree(runs / "teacher", tmp_path / "run")
    options = ["--num-samples", 20, "--num-steps", 1, "--quiet", "--device", "cpu"]
    for precision in ("auto", "bf16"):
        command("evaluate", run, *options, "--precision", precision)
    fp32, bf16 = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert (fp32["device"], bf16["device"]) == ("cpu", "cpu")
    assert (fp32["network_precision"], bf16["network_precision"]) == ("fp32", "bf16")
    assert fp32["frechet_distance"] != bf16["frechet_distance"]


def trained(network):
    from facm.core.objective import NetworkInterface
    from facm.flow.conditions import Labels

    return SimpleNamespace(network=network, interface=NetworkInterface(Labels(10)))


def test_a_network_without_blocks_is_not_compiled():
    with pytest.raises(ValueError, match=r"--compile with Linear, which has no ModuleList of blocks"):
        with_compiled_blocks(trained(torch.nn.Linear(2, 2)), compile=True)
    network = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    assert with_compiled_blocks(trained(network), compile=False).network is network


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch.compile needs a C++ compiler")
def test_compiled_samples_are_the_eager_ones(tmp_path, monkeypatch):
    """To 1e-5 after two steps."""
    from facm.sampling.generate import sample
    from facm.sampling.methods import Consistency
    from facm.sampling.source import Source
    from tests.distributed.parallel_parts import Awake

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    torch.manual_seed(0)
    one = trained(Awake(2).build().eval())

    def drawn():
        source = Source(one.network, one.interface, (1, 8, 8), torch.device("cpu"))
        return sample(source, Consistency(2), range(4), torch.arange(4))

    eager = drawn()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with_compiled_blocks(one, compile=True)
    torch.testing.assert_close(drawn(), eager, rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs
