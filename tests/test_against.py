"""benchmarks/step.py --against DIR, with a stand-in for the authors' code that has its interface."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.paths import ROOT

NETWORK = """
import torch
from torch import nn
from timm.models.vision_transformer import PatchEmbed
from facm.networks.lightning_dit import LightningDiT as Config


class LightningDiT(nn.Module):
    def __new__(cls, use_qknorm, use_swiglu, use_rope, use_rmsnorm, disable_label_dropout, **sizes):
        network = Config(qk_norm=use_qknorm, swiglu=use_swiglu, rope=use_rope, rmsnorm=use_rmsnorm, **sizes).build()
        network.__class__ = type("LightningDiT", (type(network),), {"forward": lambda self, x, t, r, y: SCALE * super(
            type(self), self).forward(x, t, y)})
        return network
"""
LOSS = """
import fairscale.nn.model_parallel.initialize
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from utils import mean_flat
from facm.flow.distances import L2Cosine, NormL2


class FACMLoss:
    def sample_t(self, device, size, type, args):
        raise AssertionError("the times are the benchmark's")

    def __call__(self, accelerator, model, compiled, ema, images, iters, model_kwargs, args, freezed_teacher):
        y = model_kwargs["y"]
        t = self.sample_t(images.device, len(images), args.t_type, args)
        noise, flat = torch.randn_like(images), t.flatten()
        torch.cuda.set_rng_state(torch.cuda.get_rng_state())
        x_t = t * images + (1 - t) * noise
        with torch.no_grad():
            v_c, v_u = (freezed_teacher(x_t, flat, flat, label) for label in (y, torch.full_like(y, 1000)))
            guided = ((flat >= args.glow) & (flat <= args.ghigh)).reshape(-1, 1, 1, 1)
            v = torch.where(guided, v_u + args.cfgw * (v_c - v_u), v_c)
        anchor = L2Cosine()(compiled(x_t, 2 - flat, 2 - flat, y), v)
        with sdpa_kernel(SDPBackend.MATH):
            F, dF = torch.func.jvp(lambda x, t: model(x, t.flatten(), None, y), (x_t, t), (v, torch.ones_like(t)))
        g = F.detach() - v - (1 - t) * dF.detach()
        target = F.detach() - (1 - t**args.p) * g.clamp(-1, 1)
        shortcut = NormL2()(F, target) * torch.cos(flat * torch.pi / 2)
        assert mean_flat(x_t).shape == flat.shape
        return shortcut.mean() + anchor.mean(), shortcut.mean(), anchor.mean()
"""


def run(folder, *options):
    small = ("--width", "32", "--depth", "1", "--tokens", "4", "--batch", "2", "--rounds", "2", "--only", "op_level")
    command = [sys.executable, "benchmarks/step.py", "--against", str(folder), *small, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def stand_in(folder, scale="1.0"):
    (folder / "ldit").mkdir()
    (folder / "ldit" / "lightningdit.py").write_text(NETWORK.replace("SCALE", scale))
    (folder / "losses.py").write_text(LOSS)
    return folder


@pytest.mark.slow
def test_the_comparison_checks_loss_and_gradients_first_and_writes_ratios(tmp_path):
    done = run(stand_in(tmp_path), "--json", str(tmp_path / "rows.json"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["against"]
    assert list(rows) == ["theirs", "op_level"]
    assert rows["op_level"]["loss"] == pytest.approx(rows["theirs"]["loss"], rel=1e-4)
    assert rows["theirs"]["of_theirs"] == [1, 1, 1]
    middle, low, high = rows["op_level"]["of_theirs"]
    assert 0 < low <= middle <= high


@pytest.mark.slow
def test_another_loss_is_refused(tmp_path):
    done = run(stand_in(tmp_path, "1.1"))
    assert done.returncode != 0
    assert "op_level: the loss is" in done.stderr


@pytest.mark.slow
def test_a_folder_without_the_code_is_refused(tmp_path):
    done = run(tmp_path)
    assert done.returncode != 0
    assert "there is no losses.py, expected a copy of github.com/ali-vilab/FACM" in done.stderr


def test_the_interval_of_a_ratio_holds_the_ratio():
    spec = importlib.util.spec_from_file_location("benchmark_of_a_step", ROOT / "benchmarks" / "step.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    middle, low, high = module.ratio([2.0, 2.2, 1.8, 2.0, 2.1], [1.0, 1.1, 0.9, 1.0, 1.0])
    assert middle == 2.0
    assert 1.6 < low <= middle <= high < 2.5
    assert module.ratio([3.0] * 4, [2.0] * 4) == [1.5, 1.5, 1.5]
