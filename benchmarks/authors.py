"""The authors' own distillation step, from a folder with their code (github.com/ali-vilab/FACM) that the user fetched.

Nothing of that code is part of this package: it is imported from where it lies and run as it is, on the weights, the
noise and the times that this package's rows get. It needs einops. What its files import and the step does not use
(fairscale, and a ``utils`` full of decoders and evaluation) is replaced by empty modules; timm, where it cannot be
imported, by the convolution that its patch embedding is; without a GPU, the random state of torch.cuda by the CPU's.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from facm.core.types import Batch
from facm.flow.conditions import Labels
from facm.flow.interpolant import Interpolant
from facm.flow.times import ArctanLogNormal
from facm.networks.lightning_dit import LightningDiT

FILES = ("losses.py", "ldit/lightningdit.py")
CLASSES = 1000  # their null label is 1000, whatever the number of classes
SETTINGS: dict[str, Any] = {  # scripts/train.sh and the defaults of train.py
    "distill": True,
    "cfgw": 1.75,
    "glow": 0.125,
    "ghigh": 1.0,
    "mean": 0.8,
    "std": 1.6,
    "p": 0.5,
    "t_type": "default",
}


@functools.cache
def load(folder: Path) -> tuple[Any, Any]:
    """Their modules ``ldit.lightningdit`` and ``losses``."""
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        sys.exit(f"--against {folder}: there is no {missing[0]}, expected a copy of github.com/ali-vilab/FACM")
    for name in ("fairscale", "fairscale.nn", "fairscale.nn.model_parallel", "fairscale.nn.model_parallel.initialize"):
        sys.modules.setdefault(name, types.ModuleType(name))
    layers = types.ModuleType("fairscale.nn.model_parallel.layers")
    vars(layers).update(ColumnParallelLinear=None, ParallelEmbedding=None, RowParallelLinear=None)
    sys.modules.setdefault(layers.__name__, layers)
    try:
        importlib.import_module("timm.models.vision_transformer")
    except (ImportError, RuntimeError):  # it needs torchvision, which must fit torch
        for name in ("timm", "timm.models", "timm.models.vision_transformer"):
            sys.modules[name] = types.ModuleType(name)
        vars(sys.modules["timm.models.vision_transformer"]).update(PatchEmbed=PatchEmbed, Mlp=None)
    utils = types.ModuleType("utils")
    vars(utils)["mean_flat"] = lambda x: x.flatten(1).mean(1)
    sys.modules["utils"] = utils  # and no more is undone: what they import, numpy's parts among it, imports only once
    with mock.patch.object(sys, "path", [str(folder), *sys.path]):
        try:
            return importlib.import_module("ldit.lightningdit"), importlib.import_module("losses")
        except ModuleNotFoundError as error:
            sys.exit(f"--against {folder}: their code needs {error.name} (pip install {error.name})")
        finally:
            del sys.modules["utils"]


class PatchEmbed(nn.Module):
    """timm's: images (B, C, H, W) -> tokens (B, H W / p^2, dim), in the convolution's layout."""

    def __init__(self, side: int, patch: int, channels: int, dim: int, bias: bool = True) -> None:
        super().__init__()
        self.patch_size, self.num_patches = (patch, patch), (side // patch) ** 2
        self.proj = nn.Conv2d(channels, dim, patch, patch, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TheirStep:
    """Their network, loss, optimiser and an average in a loop, and one step of them (train.py: training_loop).

    compile: the network that gives the anchor, and the teacher, are compiled whole, as train.py does; the derivative
    is not, there or here.
    """

    def __init__(
        self, folder: Path, config: LightningDiT, weights: dict[str, Tensor], device: torch.device, compile: bool
    ) -> None:
        model, losses = load(folder)
        self.device = device
        self.network = model.LightningDiT(
            input_size=config.input_size,
            patch_size=config.patch_size,
            in_channels=config.in_channels,
            hidden_size=config.hidden_size,
            depth=config.depth,
            num_heads=config.num_heads,
            num_classes=CLASSES,
            use_qknorm=config.qk_norm,
            use_swiglu=config.swiglu,
            use_rope=config.rope,
            use_rmsnorm=config.rmsnorm,
            disable_label_dropout=True,
        ).to(device)
        self.network.load_state_dict(weights)
        self.teacher: Any = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.compiled: Any = self.network
        if compile:
            self.compiled, self.teacher = torch.compile(self.network), torch.compile(self.teacher)
        self.network.train()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-5, weight_decay=0.0)
        self.average = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.loss = losses.FACMLoss()
        self.args = argparse.Namespace(**SETTINGS)

    def gradients(self, batch: Batch, seed: int = 0) -> float:
        """Gradients of the loss into ``.grad``, at the noise and the times that FACM draws from ``seed``; the loss."""
        rng = torch.Generator(self.device).manual_seed(seed)
        point = Interpolant.draw(batch, ArctanLogNormal(-SETTINGS["mean"], SETTINGS["std"]), Labels(CLASSES), 0.0, rng)
        with self._at(point), self._autocast():
            out = self.loss(
                None,
                self.network,
                self.compiled,
                None,
                batch.x_1,
                0,
                model_kwargs={"y": batch.cond},
                args=self.args,
                freezed_teacher=self.teacher,
            )
        total = torch.nan_to_num(out[0], nan=0.0)
        total.backward()
        return float(total.detach())

    def __call__(self, batch: Batch) -> None:
        self.gradients(batch)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                self.average[name].lerp_(value, 0.001)

    @contextmanager
    def _at(self, point: Interpolant) -> Iterator[None]:
        """Their draws are those of ``point``."""
        at = [
            mock.patch.object(self.loss, "sample_t", return_value=point.t.reshape(-1, 1, 1, 1)),
            mock.patch("torch.randn_like", return_value=point.x_0),
        ]
        if self.device.type == "cpu":
            at += [
                mock.patch("torch.cuda.get_rng_state", torch.get_rng_state),
                mock.patch("torch.cuda.set_rng_state", torch.set_rng_state),
            ]
        for each in at:
            each.start()
        try:
            yield
        finally:
            for each in at:
                each.stop()

    def _autocast(self) -> Any:
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()
