"""Every family against its pipeline: what the transformer is called with, two steps unguided and guided, pictures."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad as fwAD

from facm.derivative import OpLevel
from facm.derivative.base import Prediction
from facm.foundation.network import DiffusersNetwork
from tests.foundation.conformance_parts import CASES, PROMPTS, STEPS, Opened, opened, recorded, relative
from tests.foundation.tiny_pipelines_parts import saved

KINDS = list(CASES)
LENGTHS = {"encoder_hidden_states", "encoder_hidden_states_mask", "encoder_attention_mask"}
FLOAT32 = 2e-6


@pytest.fixture(scope="session", params=KINDS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    kind = request.param
    return opened(kind, saved(kind, tmp_path_factory.mktemp(f"tiny-{kind}") / kind))


def assert_same_argument(name: str, got: Any, want: Any) -> None:
    if isinstance(want, list) and isinstance(want[0], Tensor):
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            assert_same_argument(name, a, b)
    elif isinstance(want, Tensor):
        if want.ndim == 3 and name in ("txt_ids", "img_ids"):
            want = want[0]  # FLUX.2 repeats them, and its transformer takes the first
        torch.testing.assert_close(got.to(want.dtype), want, rtol=1e-6, atol=1e-6, msg=lambda text: f"{name}: {text}")
    elif name == "rope_interpolation_scale":
        assert tuple(got) == pytest.approx(tuple(want))
    else:
        assert got == want, name


def test_the_transformer_is_called_with_what_the_pipeline_calls_it_with(subject: Opened) -> None:
    """One prompt at a time, so that no padding of our own, shorter than the pipeline's, is in between."""
    with recorded(subject.pipe.transformer) as theirs:
        subject.call(PROMPTS)
    assert len(theirs) == STEPS, "with the family's unguided() arguments there is one pass at each step"
    first = theirs[0]
    with recorded(subject.pipe.transformer) as ours, torch.no_grad():
        cond = subject.family.encode(subject.pipe, PROMPTS)
        time = torch.full((2,), subject.times()[0])
        subject.velocity(cond)(subject.noise(), time)
    assert ours[0].keys() == first.keys()
    for name, want in first.items():
        padded = name in LENGTHS and "mask" in cond
        assert_same_argument(name, ours[0][name], _cut(name, want, cond["mask"]) if padded else want)


def _cut(name: str, want: Any, mask: Tensor) -> Tensor:
    """The pipeline's embeddings or mask without padding that takes no part."""
    common = want[:, : mask.shape[1]]
    if name == "encoder_hidden_states":
        return common * mask.unsqueeze(-1)
    assert want[:, mask.shape[1] :].sum() == 0
    return common


def test_a_batch_of_prompts_is_encoded_as_each_alone(subject: Opened) -> None:
    together = subject.family.encode(subject.pipe, PROMPTS)
    assert {len(value) for value in together.values()} == {2}
    for i, prompt in enumerate(PROMPTS):
        for name, value in subject.family.encode(subject.pipe, [prompt]).items():
            common = together[name][i, : value.shape[1]] if name in ("embeddings", "mask") else together[name][i]
            torch.testing.assert_close(common, value[0], rtol=1e-5, atol=1e-5)
            if name in ("embeddings", "mask"):
                assert not together[name][i, value.shape[1] :].any(), "padding is zeros"


@torch.no_grad()
def test_a_prompt_is_cut_where_the_family_says(subject: Opened) -> None:
    """The last letter of a prompt of just as many tokens counts; of one that is longer by a token, or where a template
    follows the prompt by more than that, it does not."""
    family, pipe = subject.family, subject.pipe
    most, few = family.most_tokens(pipe), family.count_tokens(pipe, "a")

    def differs(letters: int) -> bool:
        text = "a" * letters
        assert family.count_tokens(pipe, text) == few + letters - 1
        one, other = family.encode(pipe, [text]), family.encode(pipe, [text[:-1] + "b"])
        return any(not torch.equal(one[name], other[name]) for name in one)

    templates = ("z_image", "qwen_image", "flux2", "flux2-klein")
    assert differs(most - few + 1)
    assert not differs(most - few + (60 if subject.kind in templates else 2))


def test_two_steps_are_those_of_the_pipeline(subject: Opened) -> None:
    want = subject.call(PROMPTS)
    assert relative(want[:1], want[1:]) > 0.05, "the prompts make a difference"
    assert relative(subject.solved(PROMPTS), want) < FLOAT32


def test_two_guided_steps_are_those_of_the_pipeline(subject: Opened) -> None:
    if subject.case.guided is None:
        pytest.skip("it is told its guidance, and has no other")
    want = subject.call(PROMPTS, guided=True)
    unguided = subject.call(PROMPTS)
    assert relative(want, unguided) > 0.02
    assert relative(subject.solved(PROMPTS, guided=True), want) < 5 * FLOAT32


@torch.no_grad()
def test_pictures_are_those_of_the_pipeline(subject: Opened) -> None:
    x_1 = subject.call(PROMPTS)
    want = subject.call(PROMPTS, latent=False)
    want = want[:, 0] if want.ndim == 5 else want
    got = (subject.family.to_images(subject.pipe.vae, x_1) / 2 + 0.5).clamp(0, 1)
    assert got.shape == (2, 3, subject.case.size, subject.case.size)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@torch.no_grad()
def test_pictures_go_in_as_they_come_out(subject: Opened) -> None:
    """The VAE's own latents, decoded by the VAE itself, are what ``to_images`` makes of ``to_latents``."""
    family, vae = subject.family, subject.pipe.vae
    size = subject.case.size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1
    x_1 = family.to_latents(vae, images)
    assert x_1.shape == (2, *subject.shape)
    video = x_1.ndim == 5 or subject.kind == "qwen_image"
    encoded = vae.encode(images.unsqueeze(2) if video else images)
    latents = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
    decoded = vae.decode(latents, return_dict=False)[0]
    torch.testing.assert_close(family.to_images(vae, x_1), decoded[:, :, 0] if video else decoded, rtol=1e-4, atol=1e-5)


def test_packing_is_undone(subject: Opened) -> None:
    x = subject.noise()
    assert torch.equal(subject.family.unpacked(subject.family.packed(x), subject.shape), x)


@torch.no_grad()
def test_prompts_of_unequal_length_in_one_batch_are_each_as_alone(subject: Opened) -> None:
    family, x, t = subject.family, subject.noise(), torch.tensor([0.2, 0.7])
    together = subject.velocity(family.encode(subject.pipe, PROMPTS))(x, t)
    for i, prompt in enumerate(PROMPTS):
        alone = subject.velocity(family.encode(subject.pipe, [prompt]))(x[i : i + 1], t[i : i + 1])
        assert relative(together[i : i + 1], alone) < FLOAT32


@torch.no_grad()
def test_times_enter_where_the_family_says_and_as_fast(subject: Opened) -> None:
    """Of a sine and a cosine of one frequency, the derivatives' squares sum to the frequency's square."""
    transformer = subject.pipe.transformer
    embedding = subject.family.time_embedding(transformer)
    velocity = subject.velocity(subject.family.encode(subject.pipe, PROMPTS))
    for time in (0.3, 1.6):
        with fwAD.dual_level():
            t = fwAD.make_dual(torch.full((2,), time), torch.ones(2))
            _, tangent = time_inputs(transformer, embedding.layer, partial(velocity, subject.noise(), t))
        assert tangent is not None
        pairs = tangent[0].reshape(2, -1)
        torch.testing.assert_close(pairs.norm(dim=0).repeat(2), embedding.frequencies, rtol=1e-3, atol=1e-4)


def time_inputs(transformer: Any, layer: str, run: Any) -> tuple[Tensor, Tensor | None]:
    """What the first layer of the time embedding is given, and its tangent."""
    seen: list[tuple[Tensor, Tensor | None]] = []
    handle = transformer.get_submodule(layer).register_forward_pre_hook(
        lambda _, inputs: seen.append(tuple(fwAD.unpack_dual(inputs[0])))
    )
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            run()
    finally:
        handle.remove()
    return seen[0]


@pytest.mark.parametrize("how", [pytest.param("autocast", marks=pytest.mark.slow), "weights"])
@torch.no_grad()
def test_in_bfloat16_times_stay_in_float32(subject: Opened, how: str) -> None:
    family, layer = subject.family, subject.family.time_embedding(subject.pipe.transformer).layer
    cond, x, t = family.encode(subject.pipe, PROMPTS), subject.noise(), torch.tensor([0.123, 0.789])
    transformer = subject.pipe.transformer
    exact = family.velocity(transformer, x, t, cond, subject.case.told)
    want, _ = time_inputs(transformer, layer, lambda: family.velocity(transformer, x, t, cond, subject.case.told))
    outputs: list[Tensor] = []

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            outputs.append(family.velocity(reduced, x, t, cond, subject.case.told))

    reduced = transformer
    if how == "weights":
        reduced = opened(subject.kind, subject.path, torch.bfloat16).pipe.transformer
    got, _ = time_inputs(reduced, layer, run)
    torch.testing.assert_close(got.float(), want, rtol=0, atol=2**-8)
    assert relative(outputs[0].float(), exact) < 0.1


@pytest.mark.parametrize("anchor", [pytest.param(False, marks=pytest.mark.slow), True], ids=["flow", "anchor"])
def test_the_derivative_is_that_of_plain_forward_mode(subject: Opened, anchor: bool) -> None:
    network = DiffusersNetwork(subject.pipe.transformer, subject.family, subject.case.told)
    cond = subject.family.encode(subject.pipe, PROMPTS)
    cond = {name: value.detach() for name, value in cond.items()}
    x, t = subject.noise(), torch.tensor([0.2, 0.9])
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    t, t_dot = (2 - t, -torch.ones(2)) if anchor else (t, torch.ones(2))
    function = Prediction(network, lambda time: {"t": time}, cond)
    value, tangent = OpLevel()(function, (x, t), (v, t_dot))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        want, want_tangent = torch.func.jvp(function, (x, t), (v, t_dot))
    assert relative(value, want) < 2e-6
    assert relative(tangent, want_tangent) < 5e-6
