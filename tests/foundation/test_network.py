"""A diffusers transformer as a network: built for every family, whole and with adapters, and its base untouched."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from facm.derivative import OpLevel
from facm.derivative.base import Prediction
from facm.distributed.wrap import without_parameters
from facm.foundation import DiffusersModel, LoRA
from facm.foundation.folder import TRANSFORMER, open_model
from facm.foundation.network import DiffusersNetwork
from tests.foundation.conformance_parts import PROMPTS, SOME_FAST, Opened, opened
from tests.foundation.tiny_pipelines_parts import saved

T = torch.tensor([0.2, 0.7])


@pytest.fixture(scope="session", params=SOME_FAST)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    kind = request.param
    return opened(kind, saved(kind, tmp_path_factory.mktemp(f"tiny-{kind}") / kind))


def model(subject: Opened, **settings: Any) -> DiffusersModel:
    return DiffusersModel(str(subject.path), embedded_guidance=subject.case.told, **settings)


@torch.no_grad()
def inputs(subject: Opened) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    return subject.noise(), T, subject.family.encode(subject.pipe, PROMPTS)


@torch.no_grad()
def test_the_whole_network_is_the_pipelines_transformer(subject: Opened) -> None:
    network = model(subject).build()
    x, t, cond = inputs(subject)
    assert torch.equal(network(x, t, cond), subject.velocity(cond)(x, t))
    assert list(network.state_dict()) == [f"transformer.{name}" for name, _ in network.transformer.named_parameters()]


def woken(network: DiffusersNetwork) -> DiffusersNetwork:
    """Adapters as after some training."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.3)
    return network


@torch.no_grad()
def test_the_base_of_adapters_and_smoothing_is_the_untouched_transformer(subject: Opened) -> None:
    slow = float(subject.family.time_embedding(subject.pipe.transformer).frequencies.median())
    network = woken(model(subject, lora=LoRA(2), smooth=slow).build())
    x, t, cond = inputs(subject)
    want = subject.velocity(cond)(x, t)
    moved = network(x, t, cond)
    assert not torch.equal(moved, want)
    with network.as_base():
        assert torch.equal(network(x, t, cond), want)
    assert torch.equal(network(x, t, cond), moved)


def test_adapters_sit_on_every_layer_that_the_family_names(subject: Opened) -> None:
    network = model(subject, lora=LoRA(2)).build()
    names = list(network.state_dict())
    assert names
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    assert set(names) == {name for name, p in network.named_parameters() if p.requires_grad}
    for target in subject.family.lora_targets:
        assert any(f".{target}.lora_A." in name for name in names), target


def test_without_memory_it_has_the_same_shapes(subject: Opened) -> None:
    with torch.device("meta"):
        empty = model(subject, lora=LoRA(2)).build()
    there = model(subject, lora=LoRA(2)).build()
    assert {name: value.shape for name, value in empty.state_dict().items()} == {
        name: value.shape for name, value in there.state_dict().items()
    }
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    noise, time, cond = inputs(subject)
    x, t, everything = noise.to("meta"), time.to("meta"), {name: value.to("meta") for name, value in cond.items()}
    assert empty(x, t, everything).shape == x.shape
    value, tangent = OpLevel()(Prediction(empty, lambda c: {"t": c}, everything), (x, t), (x, t))
    assert (value.shape, tangent.shape) == (x.shape, x.shape)


def test_nothing_is_said_where_nothing_is_wrong(subject: Opened) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("diffusers")
    logger.addHandler(handler)
    try:
        for where in ("meta", "cpu"):
            with torch.device(where):
                model(subject, lora=LoRA(2)).build()
        with without_parameters():
            model(subject).build()
    finally:
        logger.removeHandler(handler)
    assert said == []


def test_gradients_beside_a_tangent_are_those_of_a_plain_pass(subject: Opened) -> None:
    network = woken(model(subject, lora=LoRA(2)).build())
    x, t, cond = inputs(subject)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    value, _ = OpLevel()(Prediction(network, lambda c: {"t": c}, cond), (x, t), (weights, torch.ones(2)))
    got = torch.autograd.grad((value * weights).sum(), trained, allow_unused=True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        want = torch.autograd.grad((network(x, t, cond) * weights).sum(), trained, allow_unused=True)
    largest = max(float(g.abs().max()) for g in want if g is not None)
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * largest)


def test_weights_in_bfloat16_keep_adapters_in_float32(subject: Opened) -> None:
    network = woken(model(subject, lora=LoRA(2), dtype="bf16").build())
    assert {p.dtype for p in network.parameters() if p.requires_grad} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in network.parameters()}
    x, t, cond = inputs(subject)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(x, t, cond)
    out.float().square().mean().backward()
    gradients = [p.grad for p in network.parameters() if p.requires_grad]
    assert sum(g is not None and bool(g.abs().max() > 0) for g in gradients) > len(gradients) // 2
    with torch.no_grad():
        assert network(x, t, cond).shape == x.shape


def test_a_transformer_of_another_hash_is_refused(tmp_path: Path) -> None:
    folder = saved("z_image", tmp_path / "z")
    right = open_model(folder).identity(TRANSFORMER)[TRANSFORMER]
    DiffusersModel(str(folder), sha256=right).build()
    with pytest.raises(ValueError, match=rf"hash {right}, expected the one with 0123456789abcdef"):
        DiffusersModel(str(folder), sha256="0123456789abcdef").build()


def test_a_network_without_a_prompt_is_an_error(tmp_path: Path) -> None:
    network = DiffusersModel(str(saved("z_image", tmp_path / "z"))).build()
    with pytest.raises(ValueError, match=r"cond = NoneType, expected a mapping with the prompts' embeddings"):
        network(torch.zeros(1, 4, 8, 8), T[:1])


def test_targets_that_no_layer_has_are_named(tmp_path: Path) -> None:
    folder = saved("z_image", tmp_path / "z")
    with pytest.raises(ValueError, match=r"lora\.targets names to_nowhere, .*there are .*attention\.to_q"):
        DiffusersModel(str(folder), lora=LoRA(2, targets=("to_nowhere", "to_q"))).build()


def test_a_transformer_that_is_told_its_guidance_wants_one(tmp_path: Path) -> None:
    network = DiffusersModel(str(saved("flux-dev", tmp_path / "flux"))).build()
    cond = {"embeddings": torch.zeros(1, 4, 16), "pooled": torch.zeros(1, 16)}
    with pytest.raises(ValueError, match=r"guidance = None.*expected a number, such as 3\.5.*embedded_guidance"):
        network(torch.zeros(1, 4, 8, 8), T[:1], cond)
