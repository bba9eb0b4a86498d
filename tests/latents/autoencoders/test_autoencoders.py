"""The autoencoders give the numbers of the public ones, take exactly their own weights, and say what is wrong."""

import argparse
import io
import json
import os
import pickle
import socket
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from facm.core.hashing import identity_of
from facm.core.serialize import from_json, to_json
from facm.core.untrusted.torch_files import read_foreign
from facm.latents.autoencoders import TAEF2, VAVAE, StableDiffusionVAE
from facm.latents.autoencoders.kl import KLAutoencoder
from facm.latents.autoencoders.taef2 import TinyAutoencoder
from facm.latents.autoencoders.types import AutoencoderConfig
from tests.golden.gold import fill, tensor
from tests.paths import GOLDEN, needs, outside

SHARED = outside("data")
TINY = load_file(GOLDEN / "vae_tiny.safetensors")
IMAGE, NOISE = torch.tanh(tensor("vae:img", (2, 3, 64, 64))), tensor("vae:noise", (2, 4, 4, 4))


def close(a, b, rtol=1e-5):
    """Within rtol of the largest element: fp32 sums in another order."""
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item())


def saved(content, path):
    (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    return str(path)


@pytest.fixture(scope="module")
def tiny_state():
    return fill(KLAutoencoder(32, (1, 1, 2, 2, 4), 4, 2, (16,)), "vae").state_dict()


@pytest.fixture(scope="module")
def small_state():
    """Factor 2, two channels: small enough to be saved again and again."""
    return fill(KLAutoencoder(32, (1, 1), 2, 1, ()), "vae").state_dict()


def small(path):
    return VAVAE(str(path), ch=32, ch_mult=(1, 1), z_channels=2, num_res_blocks=1, attention=())


def is_frozen_autoencoder(module, factor, channels):
    """What facm.latents.autoencoders.types promises."""
    assert (module.factor, module.channels) == (factor, channels)
    assert not module.training
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in module.parameters())
    assert not any(p.requires_grad for p in module.parameters())
    x, z = torch.zeros(1, 3, 2 * factor, 3 * factor), torch.zeros(1, channels, 2, 3)
    assert module.encode(x).shape == z.shape
    assert module.decode(z).shape == x.shape
    for wrong in (x[0], x[:, :1], x.double(), (x * 255).byte()):
        with pytest.raises(ValueError, match=rf"^images of shape .*{wrong.dtype}, expected float32 \(B, 3, H, W\)"):
            module.encode(wrong)
    for wrong in (x[..., :-1], x[:, :, 1:], x[:, :, :0]):
        size = f"{wrong.shape[2]} x {wrong.shape[3]}"
        with pytest.raises(ValueError, match=f"^images of {size}, expected multiples of {factor} "):
            module.encode(wrong)
    for wrong in (z[0], z[:, 1:], z.half()):
        with pytest.raises(ValueError, match=rf"^latents of shape .*, expected float32 \(B, {channels}, h, w\)"):
            module.decode(wrong)


# VA-VAE


def test_vavae_has_the_public_checkpoints_names_shapes_and_order():
    expected = json.loads((GOLDEN / "vae_state_dict.json").read_text())
    network = VAVAE("nowhere").architecture()
    assert [(name, list(p.shape)) for name, p in network.named_parameters()] == list(expected["param_order"].items())
    assert network.state_dict().keys() == expected["param_order"].keys()
    assert sum(p.numel() for p in network.parameters()) == expected["n_params"] == 69_836_067
    assert (network.factor, network.channels) == (16, 32)


def test_vavae_gives_the_references_numbers(tiny_state, tmp_path):
    network = VAVAE(saved(tiny_state, tmp_path / "vae.pt"), ch=32, z_channels=4).build()
    mean, std = network.posterior(IMAGE)
    close(mean, TINY["mean"])
    close(std, TINY["std"])
    assert torch.equal(network.encode(IMAGE), mean)
    close(network.encode(IMAGE, NOISE), TINY["sample"])
    close(network.decode(TINY["sample"]), TINY["decoded"])
    close(network.decode(tensor("vae:z", (2, 4, 8, 8)))[:1], TINY["decoded8"])
    assert network.identity == identity_of("vavae-f16d4", network)
    is_frozen_autoencoder(network, 16, 4)


def test_logarithm_of_the_variance_is_clamped(small_state, tmp_path):
    state = {name: value.clone() for name, value in small_state.items()}
    state["quant_conv.weight"][2:] = 0
    state["quant_conv.bias"][2:] = torch.tensor([-31.0, 21.0])
    network = small(saved(state, tmp_path / "vae.pt")).build()
    std = network.posterior(torch.zeros(1, 3, 4, 4))[1]
    close(std[:, 0], torch.tensor(-15.0).exp().expand(1, 2, 2))
    close(std[:, 1], torch.tensor(10.0).exp().expand(1, 2, 2))


def test_noise_of_another_shape_is_refused(small_state, tmp_path):
    network = small(saved(small_state, tmp_path / "vae.pt")).build()
    with pytest.raises(ValueError, match=r"^noise of shape \(1, 2, 2, 2\) .*, expected \(2, 2, 2, 2\)"):
        network.encode(torch.zeros(2, 3, 4, 4), torch.zeros(1, 2, 2, 2))


def test_every_layout_of_a_checkpoint_gives_the_same_autoencoder(small_state, tmp_path):
    training = {
        "loss.discriminator.main.0.weight": torch.ones(2),
        "loss.logvar": torch.ones(()),
        "loss.perceptual_loss.lin0.model.1.weight": torch.ones(2),
        "foundation_model.model.cls_token": torch.ones(2),
        "linear_proj.weight": torch.ones(2),
        "colorize": torch.ones(2),
    }
    lightning = {"epoch": 3, "global_step": 9, "state_dict": small_state | training, "hyper_parameters": {"lr": 1e-4}}
    contents = {
        "bare.pt": small_state,
        "bare.safetensors": small_state,
        "training.safetensors": small_state | training,
        "lightning.ckpt": lightning,
        "options.ckpt": lightning | {"args": argparse.Namespace(lr=1e-4)},
        "parameters.pt": {name: torch.nn.Parameter(value) for name, value in small_state.items()},
    }
    built = {name: small(saved(content, tmp_path / name)).build() for name, content in contents.items()}
    torch.save(small_state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    built["old.pt"] = small(tmp_path / "old.pt").build()
    assert len({network.identity for network in built.values()}) == 1
    for name, value in built["lightning.ckpt"].state_dict().items():
        assert torch.equal(value, small_state[name])
    half = small(saved({n: v.half() for n, v in small_state.items()}, tmp_path / "half.pt")).build()
    assert torch.equal(half.quant_conv.weight, small_state["quant_conv.weight"].half().float())
    is_frozen_autoencoder(half, 2, 2)


def test_weights_are_the_networks_own(small_state, tmp_path):
    path = tmp_path / "vae.pt"
    network = small(saved(small_state, path)).build()
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(network.quant_conv.weight, small_state["quant_conv.weight"])


def test_vavae_names_what_does_not_fit(small_state, tmp_path):
    path = tmp_path / "vae.pt"
    names = list(small_state)
    for content, message in (
        (dict(list(small_state.items())[7:]), rf"7 missing: {', '.join(names[:5])}, \.\.\.$"),
        (small_state | {"model_ema.decay": torch.ones(1)}, r"1 unexpected: model_ema\.decay$"),
        (
            small_state | {"post_quant_conv.bias": torch.ones(3), "extra": torch.ones(1)},
            r"1 unexpected: extra; 1 of another shape: post_quant_conv\.bias \(3,\) instead of \(2,\)$",
        ),
    ):
        with pytest.raises(ValueError, match=rf"^{path} does not fit: {message}"):
            small(saved(content, path)).build()


def test_vavae_says_what_another_shape_looks_like(small_state, tiny_state, tmp_path):
    path = saved(small_state, tmp_path / "vae.pt")
    with pytest.raises(ValueError, match=r"vae\.pt \(looks like z_channels = 2\) does not fit: 7 of another shape: "):
        VAVAE(path, ch=32, ch_mult=(1, 1), z_channels=4, num_res_blocks=1, attention=()).build()
    everything = r"\(looks like ch = 32, ch_mult = \(1, 1\), z_channels = 2, num_res_blocks = 1, attention = \(\)\)"
    with pytest.raises(ValueError, match=everything):
        VAVAE(path).build()
    path = saved(tiny_state, tmp_path / "tiny.pt")
    with pytest.raises(ValueError, match=r"\(looks like ch_mult = \(1, 1, 2, 2, 4\), attention = \(16,\)\)"):
        VAVAE(path, 32, (1, 1, 2, 2), 4, 2, ()).build()


def test_vavae_names_another_content(small_state, tmp_path):
    path = tmp_path / "vae.pt"
    for content, holds in (
        ({"model": small_state, "step": 3}, "the keys model, step"),
        ({}, "the keys "),
        ({"state_dict": {"epoch": 3}}, "the keys epoch"),
        ([torch.ones(1)], "a list"),
        ({"state_dict": torch.ones(1)}, "a Tensor"),
    ):
        with pytest.raises(ValueError, match=f"^{path} holds {holds}, expected the weights of a VA-VAE: named tensors"):
            small(saved(content, path)).build()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ch": 0}, "ch = 0, expected an integer within"),
        ({"ch": 48}, "ch = 48, expected a multiple of 32"),
        ({"z_channels": 0}, "z_channels = 0, expected an integer within"),
        ({"num_res_blocks": 0}, "num_res_blocks = 0, expected an integer within"),
        ({"ch_mult": ()}, r"ch_mult = \(\), expected a tuple of a length within \[1, 10\]"),
        ({"ch_mult": (1, 0)}, r"ch_mult = \(1, 0\), expected a tuple"),
        ({"attention": (32,)}, r"attention = \(32,\), expected factors of the levels, of \[1, 2, 4, 8, 16\]"),
    ],
)
def test_vavae_checks_its_fields(fields, message):
    with pytest.raises(ValueError, match=f"^VAVAE: {message}"):
        VAVAE("vae.pt", **fields)


# TAEF2


def tiny_autoencoder(folder):
    whole = TinyAutoencoder()
    fill(whole.encoder, "taef2 encoder")
    fill(whole.decoder, "taef2 decoder")
    paths = [saved(getattr(whole, part).state_dict(), folder / f"{part}.pth") for part in ("encoder", "decoder")]
    return TAEF2(*paths)


def test_taef2_gives_the_public_codes_numbers(tmp_path):
    expected = load_file(GOLDEN / "vae_taef2.safetensors")
    network = tiny_autoencoder(tmp_path).build()
    x, z = torch.tanh(tensor("vae:taef2 image", (1, 3, 32, 48))), 2 * tensor("vae:taef2 latent", (1, 32, 4, 6))
    close(network.encode(x), expected["latents"])
    assert torch.equal(network.encode(x, torch.randn(1, 32, 4, 6)), network.encode(x))
    close(network.decode(z), 2 * expected["images_01"] - 1)
    assert network.identity == identity_of("taef2-f8d32", network)
    is_frozen_autoencoder(network, 8, 32)


def test_taef2_names_the_file_that_does_not_fit(tmp_path):
    config = tiny_autoencoder(tmp_path)
    with pytest.raises(ValueError, match=r"encoder\.pth as the weights of TAEF2's decoder does not fit: \d+ missing: "):
        TAEF2(config.encoder, config.encoder).build()
    with pytest.raises(ValueError, match=r"decoder\.pth as the weights of TAEF2's encoder does not fit: \d+ missing: "):
        TAEF2(config.decoder, config.decoder).build()
    with pytest.raises(ValueError, match=r"nowhere\.pth: there is no such file; expected the weights of TAEF2's enc"):
        TAEF2("nowhere.pth", config.decoder).build()


def test_taef2_reconstructs_real_images():
    files = [SHARED / "taef2" / f"taef2_{part}.pth" for part in ("encoder", "decoder")]
    images = SHARED / "cifar10" / "cifar10_webp.zip"
    for file in (*files, images):
        needs(file)
    network = TAEF2(*map(str, files)).build()
    with zipfile.ZipFile(images) as sheets:
        sheet = Image.open(io.BytesIO(sheets.read("test/000_airplane_00.webp"))).convert("RGB")
    image = sheet.crop((0, 0, 64, 64)).resize((256, 256), Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    psnr = -10 * torch.log10(((network.decode(network.encode(x)) - x) / 2).square().mean())
    assert psnr > 34


# Stable Diffusion


@pytest.fixture(scope="module")
def kl():
    """A tiny AutoencoderKL of diffusers, factor 2 and 6 channels, nothing of it at zero."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=6,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    return fill(vae, "vae").eval()


def rewritten(folder, change):
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@torch.no_grad()
def test_diffusers_autoencoder(kl, tmp_path, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("reached for the network"))
    kl.save_pretrained(tmp_path / "pipeline" / "vae")
    network = StableDiffusionVAE(str(tmp_path / "pipeline"), "vae").build()
    x, noise = torch.tanh(tensor("x", (2, 3, 8, 6))), tensor("noise", (2, 6, 4, 3))
    posterior = kl.encode(x).latent_dist
    assert torch.equal(network.encode(x), posterior.mean)
    assert torch.equal(network.encode(x, noise), posterior.mean + posterior.std * noise)
    assert torch.equal(network.decode(noise), kl.decode(noise).sample)
    assert (network.scaling_factor, network.shift_factor) == (0.3611, 0.1159)
    assert network.identity == identity_of("autoencoder-kl-f2d6", kl)
    with pytest.raises(ValueError, match=r"^noise of shape \(1, 6, 4, 3\)"):
        network.encode(x, noise[:1])
    is_frozen_autoencoder(network, 2, 6)


def test_diffusers_autoencoder_in_half_precision_and_with_the_names_of_old_releases(kl, tmp_path):
    kl.save_pretrained(tmp_path)
    network = StableDiffusionVAE(str(tmp_path)).build()
    old = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))

    def renamed(state):
        for new, name in old:
            state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
        assert any(".proj_attn." in key for key in state)
        return state

    rewritten(tmp_path, renamed)
    assert StableDiffusionVAE(str(tmp_path)).build().identity == network.identity
    kl.save_pretrained(tmp_path)
    rewritten(tmp_path, lambda state: {name: value.half() for name, value in state.items()})
    half = StableDiffusionVAE(str(tmp_path)).build()
    is_frozen_autoencoder(half, 2, 6)
    assert torch.equal(half.vae.quant_conv.weight, kl.quant_conv.weight.half().float())


def test_a_shift_that_is_not_given_is_none(kl, tmp_path):
    kl.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "shift_factor"}))
    assert StableDiffusionVAE(str(tmp_path)).build().shift_factor == 0.0


def test_diffusers_autoencoder_says_what_is_wrong_with_its_folder(kl, tmp_path):
    config, weights = tmp_path / "config.json", tmp_path / "diffusion_pytorch_model.safetensors"

    def refused(message):
        with pytest.raises(ValueError, match=message):
            StableDiffusionVAE(str(tmp_path)).build()

    refused(rf"^{config}: there is no such file; expected a folder with config\.json and diffusion_pytorch_model")
    kl.save_pretrained(tmp_path)
    rewritten(tmp_path, lambda state: {n: v for n, v in state.items() if n != "quant_conv.bias"})
    refused(rf"^{tmp_path} does not fit: 1 missing: quant_conv\.bias$")
    rewritten(tmp_path, lambda state: state | {"quant_conv.bias": torch.ones(12), "extra": torch.ones(1)})
    refused(rf"^{tmp_path} does not fit: 1 unexpected: extra$")
    kl.save_pretrained(tmp_path)
    rewritten(tmp_path, lambda state: state | {"quant_conv.bias": torch.ones(13)})
    refused(rf"(?s)^{tmp_path}: .*quant_conv\.bias.*13.*expected a folder")
    weights.write_bytes(weights.read_bytes()[:-1])
    refused(rf"^{weights}: .*truncated or damaged; expected a folder")
    weights.unlink()
    torch.save(kl.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    refused(rf"^{weights}: .*No such file or directory.*; expected a folder")
    config.write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    refused(rf"^{config}: AutoencoderTiny from 3 to 3 channels, expected AutoencoderKL from 3 to 3")
    config.write_text(json.dumps({"_class_name": "AutoencoderKL", "in_channels": 4}))
    refused(rf"^{config}: AutoencoderKL from 4 to 3 channels, expected AutoencoderKL from 3 to 3")
    for broken, error in (("{", "is not JSON"), ("{}", "KeyError"), ("[]", "TypeError")):
        config.write_text(broken)
        refused(rf"^{config}.* {error}.*expected a folder with config\.json")
    with pytest.raises(ValueError, match=r"^stabilityai/sd-vae: there is no such folder; expected a folder with"):
        StableDiffusionVAE("stabilityai/sd-vae").build()


def test_diffusers_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"needs diffusers, which is not installed: pip install 'facm\[hf\]'"):
        StableDiffusionVAE("folder").build()


def test_configurations_are_recorded_and_rebuilt():
    for config in (VAVAE("a.pt", attention=(8, 16)), TAEF2("a.pth", "b.pth"), StableDiffusionVAE("folder", "vae")):
        assert isinstance(config, AutoencoderConfig)
        assert from_json(json.loads(json.dumps(to_json(config)))) == config


# Reading files of others


class Runs:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def refused(path, message):
    with pytest.raises(ValueError, match=rf"(?s)^{path}.*{message}"):
        read_foreign(path, "weights")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_by_name_and_not_run(zipped, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "file.pt"
    torch.save({"a": torch.ones(2), "b": Runs(str(mark))}, path, _use_new_zipfile_serialization=zipped)
    refused(path, r" holds posix\.mkdir: reading it could run code, so it is refused\. Expected weights made of")
    assert not mark.exists()
    torch.save({"a": path}, path, _use_new_zipfile_serialization=zipped)
    refused(path, r" holds pathlib\.PosixPath: reading it could run code")


def test_modules_that_torch_blocks_and_programs_are_refused(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"a": os.kill}, path)
    refused(path, r" holds posix\.kill: reading it could run code")
    torch.save({"a": sys.exit}, path)
    refused(path, r" holds sys\.exit: reading it could run code")
    torch.save({"a": torch.ones(2)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("file/constants.pkl", b"")  # what tells a program from a checkpoint
    refused(path, r" holds a TorchScript program: reading it could run code")


def test_options_are_read_beside_tensors(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"a": torch.arange(3), "args": argparse.Namespace(lr=0.5, name="x")}, path)
    content = read_foreign(path, "weights")
    assert torch.equal(content["a"], torch.arange(3))
    assert content["args"] == argparse.Namespace(lr=0.5, name="x")
    with pytest.raises(pickle.UnpicklingError):  # only here
        torch.load(path, weights_only=True)


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "file.pt"
    refused(path, ": there is no such file; expected weights$")
    refused(tmp_path, " is a folder, expected a regular file: weights$")
    torch.save({"a": torch.ones(100)}, path)
    whole = path.read_bytes()
    pickled = pickle.dumps({"a": 1}, protocol=4)
    for content in (b"", whole[: len(whole) // 2], whole[:-1], b"<html>404</html>", pickled):
        path.write_bytes(content)
        refused(path, r": truncated or not a checkpoint \(.*\); expected weights$")
    path.write_bytes(whole[:-1])
    refused(path, r"\(not a whole zip archive \(.*\)\)")
    path.write_bytes(b"<html>404</html>")
    refused(path, r"\(no zip archive or pickle, as torch\.save writes them\)")
    save_file({"a": torch.ones(100)}, path)
    whole = path.read_bytes()
    assert torch.equal(read_foreign(path, "weights")["a"], torch.ones(100))  # whatever its name
    path.write_bytes(whole[:-1])
    refused(path, r": truncated or damaged \(.*\); expected weights$")
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-1])
    refused(path, ": truncated or not a checkpoint")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to measure memory with")
def test_a_large_file_is_mapped_and_not_read(tmp_path):
    def resident_private():
        pages, shared = (int(n) for n in Path("/proc/self/statm").read_text().split()[1:3])
        return (pages - shared) * os.sysconf("SC_PAGE_SIZE")

    torch.save({"a": torch.ones(2**24)}, tmp_path / "file.pt")
    before = resident_private()
    content = read_foreign(tmp_path / "file.pt", "weights")
    assert resident_private() - before < content["a"].nbytes / 4
    assert content["a"][-1] == 1
