"""Files of weights that others published: every layout, what is recognised in it, and what is refused."""

import argparse
import json
import os
import pickle
import re
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from facm.core import files
from facm.core.serialize import from_json, to_json
from facm.core.state_dict import CheckpointError
from facm.networks.adapters.foreign import Foreign
from facm.networks.adapters.variance_preserving import VariancePreserving
from facm.networks.ddpm_pp import DDPMpp
from facm.networks.lightning_dit import LightningDiT, from_reference_flags
from facm.networks.mlp import MLP
from facm.networks.presets import dit, repa, sit
from facm.pretrained import FromFile, built, export_reference, import_file, open_published
from facm.runs.config import Pretrained
from tests.golden.gold import fill, probe, tensor, weight
from tests.paths import GOLDEN, needs, outside

SHARED = outside("golden")
CFG = {name: json.loads((GOLDEN / "dit_state_dicts.json").read_text())["tiny" + name]["cfg"] for name in "ABDE"}
FORWARD, SUMS = load_file(GOLDEN / "forward.safetensors"), json.loads((GOLDEN / "forward.json").read_text())
MODERN = from_reference_flags(CFG["A"])
PLAIN = from_reference_flags(CFG["D"])
SIGMA = LightningDiT(
    input_size=4, patch_size=2, in_channels=3, hidden_size=16, depth=2, num_heads=2, num_classes=5, learn_sigma=True,
    qk_norm=False, swiglu=False, rope=False, rmsnorm=False,
)  # fmt: skip


def weights(config, salt="student"):
    return {name: value.clone() for name, value in fill(config.build(), salt).state_dict().items()}


def projectors(hidden=64):
    shapes = {"projectors.0.0.weight": (32, hidden), "projectors.0.0.bias": (32,), "projectors.0.2.weight": (8, 32)}
    return {name: weight("projectors", name, shape) for name, shape in shapes.items()}


def posthoc(config):
    """A FACM training checkpoint."""
    emas = {}
    for i, salt in enumerate(("ema0", "ema1")):
        emas |= {f"ema_models.{i}.initted": torch.tensor(True), f"ema_models.{i}.step": torch.tensor(2)}
        emas |= {f"ema_models.{i}.ema_model.{name}": value for name, value in weights(config, salt).items()}
    model = {f"module.{name}": value for name, value in weights(config).items()}
    args = argparse.Namespace(ckpt_path=None, distill=True, lr=1e-4, cfgw=1.75)
    return {"model": model, "emas": emas, "opt": {"state": {}}, "args": args, "epoch": 1, "step": 2, "scheduler": {}}


def saved(path, content):
    torch.save(content, path)
    return path


def inside(network):
    return network.network if isinstance(network, Foreign | VariancePreserving) else network


def check(published, config, salt, family, learns, which, dropped=()):
    """What is said of a file, and that its state is the weights of ``salt``, under names that fit strictly."""
    assert (published.family, published.learns_shortcut, published.which) == (family, learns, which)
    assert inside(published.network) == config
    assert published.shape == (config.in_channels, config.input_size, config.input_size)
    assert published.num_classes == config.num_classes
    assert published.dropped == tuple(dropped)
    built_ = built(published)
    assert not any(p.requires_grad for p in built_.parameters())
    assert not built_.training
    found = {name.removeprefix("inner."): value for name, value in built_.state_dict().items()}
    assert found.keys() == published.state.keys() or {f"inner.{n}" for n in found} == published.state.keys()
    for name, value in weights(config, salt).items():
        assert torch.equal(found[name], value), name


# Layouts


def test_a_bare_state_dict_is_a_release(tmp_path):
    file = saved(tmp_path / "sit.pt", OrderedDict(weights(PLAIN)))
    check(open_published(file, "sit", heads=4), PLAIN, "student", "sit", False, "the only weights")
    bare = saved(tmp_path / "a.pt", weights(MODERN))
    check(open_published(bare), MODERN, "student", "lightningdit", None, "the only weights")
    check(open_published(bare, "facm"), MODERN, "student", "facm", True, "the only weights")
    check(open_published(bare, "lightningdit"), MODERN, "student", "lightningdit", False, "the only weights")
    assert open_published(bare, weights="model").which == "the only weights"


@pytest.mark.parametrize("name", ["plain.safetensors", "named.pt"])
def test_the_content_tells_safetensors_not_the_name(tmp_path, name):
    save_file(weights(MODERN), tmp_path / name)
    check(open_published(tmp_path / name), MODERN, "student", "lightningdit", None, "the only weights")


def test_training_checkpoints_of_dit_and_sit_say_which_they_are(tmp_path):
    for model, family in (("DiT-XL/2", "dit"), ("SiT-B/4", "sit")):
        args = argparse.Namespace(model=model, epochs=1400, global_seed=0)
        content = {"model": weights(SIGMA, "m"), "ema": weights(SIGMA, "e"), "opt": {"state": {}}, "args": args}
        file = saved(tmp_path / f"{family}.pt", content)
        for given in (None, family):
            check(open_published(file, given, heads=2), SIGMA, "e", family, False, "ema")
        check(open_published(file, weights="model", heads=2), SIGMA, "m", family, False, "model, without EMA")
        other = {"dit": "sit", "sit": "dit"}[family]
        with pytest.raises(ValueError, match=f"family = '{other}', but it says itself that it is a {model}"):
            open_published(file, other, heads=2)


def test_a_repa_checkpoint_drops_its_projectors_and_runs_its_time_the_other_way(tmp_path):
    args = argparse.Namespace(model="SiT-XL/2", prediction="v", path_type="linear", qk_norm=False)
    state = weights(PLAIN, "e") | projectors()
    content = {"model": weights(PLAIN) | projectors(), "ema": state, "opt": {}, "args": args, "steps": 4}
    file = saved(tmp_path / "repa.pt", content)
    published = open_published(file, heads=4)
    check(published, PLAIN, "e", "repa", False, "ema", projectors())
    assert published.network == Foreign(PLAIN, reversed_time=True, time_scale=1.0)
    bare = saved(tmp_path / "last.pt", state)
    check(open_published(bare, heads=4), PLAIN, "e", "repa", False, "the only weights", projectors())
    network, inner = built(published), fill(PLAIN.build(), "e").eval()
    x, c, y = tensor("x", (3, 4, 8, 8)), torch.tensor([0.0, 0.3, 1.8]), torch.tensor([0, 1000, 7])
    torch.testing.assert_close(network(x, c, y), -inner(x, 1 - c, y))


def test_an_early_repa_file_numbers_its_blocks_twice(tmp_path):
    config = LightningDiT(**{**vars(PLAIN), "depth": 5})
    state = {}
    for name, value in weights(config).items():
        parts = name.split(".")
        late = parts[0] == "blocks" and int(parts[1]) >= 2
        state[".".join(["decoder_blocks", str(int(parts[1]) - 2), *parts[2:]]) if late else name] = value
    file = saved(tmp_path / "legacy.pt", state | projectors())
    check(open_published(file, heads=4), config, "student", "repa", False, "the only weights", projectors())


def test_repa_with_norms_of_queries_and_keys(tmp_path):
    config = LightningDiT(**{**vars(PLAIN), "qk_norm": True})
    file = saved(tmp_path / "repa.pt", weights(config) | projectors())
    check(open_published(file), config, "student", "repa", False, "the only weights", projectors())
    bare = saved(tmp_path / "bare.pt", weights(config))
    with pytest.raises(
        ValueError, match="fit REPA, LightningDiT and FACM: expected family = 'repa' or family = 'lightningdit'"
    ):
        open_published(bare)
    assert open_published(bare, "repa").family == "repa"


def test_a_lightningdit_checkpoint_is_a_teacher(tmp_path):
    content = {"model": weights(MODERN), "ema": weights(MODERN, "teacher"), "opt": {"state": {}}}
    transport = {"path_type": "Linear", "prediction": "velocity", "use_cosine_loss": True}
    content["config"] = {"model": {"model_type": "LightningDiT-XL/1"}, "transport": transport}
    file = saved(tmp_path / "lightningdit.pt", content)
    check(open_published(file), MODERN, "teacher", "lightningdit", False, "ema")
    check(open_published(file, weights="model"), MODERN, "student", "lightningdit", False, "model, without EMA")
    silent = saved(tmp_path / "silent.pt", content | {"config": {"note": "no sections"}})
    check(open_published(silent), MODERN, "teacher", "lightningdit", False, "ema")
    named = saved(tmp_path / "named.pt", {"ema": weights(PLAIN), "config": content["config"]})
    assert open_published(named, heads=4).family == "lightningdit"


@pytest.mark.parametrize(
    ("origin", "family", "learns"),
    [
        ("Standard EMA", "lightningdit", False),
        ("PostHocEMA", "facm", True),
        ("PostHocEMA (ema_models.0)", "facm", True),
        ("facm", "lightningdit", None),
    ],
)
def test_what_an_ema_was_extracted_from_tells_a_student_from_a_teacher(tmp_path, origin, family, learns):
    file = saved(tmp_path / "ema.pt", {"ema": weights(MODERN), "_extracted_from": origin})
    check(open_published(file), MODERN, "student", family, learns, f"ema ({origin})")
    assert open_published(file, "facm").learns_shortcut
    assert open_published(file, "lightningdit").learns_shortcut is False


def test_a_facm_checkpoint_has_several_emas(tmp_path):
    file = saved(tmp_path / "0000002.pt", posthoc(MODERN))
    dropped = ["ema_models.1.initted", "ema_models.1.step"]
    check(open_published(file), MODERN, "ema1", "facm", True, "ema_models.1 of 2", dropped)
    other = open_published(file, weights="ema_models.0")
    dropped = ["ema_models.0.initted", "ema_models.0.step"]
    check(other, MODERN, "ema0", "facm", True, "ema_models.0 of 2", dropped)
    check(open_published(file, weights="model"), MODERN, "student", "facm", True, "model, without EMA")
    with pytest.raises(ValueError, match=r"no weights 'ema', expected one of: ema_models\.1, ema_models\.0, model"):
        open_published(file, weights="ema")


def test_a_snapshot_of_an_ema_is_in_half_precision(tmp_path):
    half = {f"ema_model.{name}": value.half() for name, value in weights(MODERN).items()}
    content = {"initted": torch.tensor(True), "step": torch.tensor(20_000), **half}
    published = open_published(saved(tmp_path / "1.20000.pt", content))
    assert (published.family, published.learns_shortcut) == ("facm", True)
    assert published.which == "EMA snapshot at step 20000"
    assert published.dropped == ("initted", "step")
    for name, value in weights(MODERN).items():
        assert published.state[name].dtype == torch.float32
        assert torch.equal(published.state[name], value.half().float())
    del content["step"]
    assert open_published(saved(tmp_path / "other.pt", content)).which == "EMA snapshot"


def within_blocks(*words):
    """The words behind the number of each block, as wrappers of single blocks put them."""
    return lambda name: re.sub(r"^(blocks\.\d+\.)", rf"\1{'.'.join(words)}.", name)


@pytest.mark.parametrize(
    "renamed",
    [
        lambda name: f"module._orig_mod.{name}",
        within_blocks("_orig_mod"),
        within_blocks("_checkpoint_wrapped_module"),
        within_blocks("module", "_checkpoint_wrapped_module"),
        lambda name: f"_fsdp_wrapped_module.{within_blocks('_fsdp_wrapped_module', '_orig_mod')(name)}",
        lambda name: f"_forward_module.{name.replace('.attn.', '.attn._orig_mod.')}",
    ],
)
def test_wrappers_names_are_taken_off(tmp_path, renamed):
    state = {renamed(name): value for name, value in weights(MODERN).items()}
    check(open_published(saved(tmp_path / "a.pt", state)), MODERN, "student", "lightningdit", None, "the only weights")


# The synthetic checkpoints of the authors' own programs

PROBES = [
    ("stg1_ema_only.pt", None, "stg1_ema", "lightningdit", False, "ema (Standard EMA)"),
    ("stg1_lightningdit_layout.pt", None, "stg1_ema", "lightningdit", False, "ema"),
    ("stg2_posthoc_ema.pt", None, "stg2_ema", "facm", True, "ema (PostHocEMA)"),
    ("0000002.pt", "ema_models.1", "stg2_ema", "facm", True, "ema_models.1 of 2"),
    ("ema_checkpoints/1.2.pt", None, "stg2_ema", "facm", True, "EMA snapshot at step 2"),
]


@pytest.mark.parametrize(("name", "part", "expected", "family", "learns", "which"), PROBES, ids=str)
def test_checkpoints_of_the_authors_programs(name, part, expected, family, learns, which):
    needs(SHARED / "ckpt")
    published = open_published(SHARED / "ckpt" / name, weights=part)
    assert (published.family, published.learns_shortcut, published.which) == (family, learns, which)
    assert published.network == MODERN
    probes = json.loads((SHARED / "ckpt_probes.json").read_text())[expected]
    assert published.state.keys() == probes.keys()
    half = "ema_checkpoints" in name
    for key, value in published.state.items():
        assert probe(key, value) == pytest.approx(probes[key], rel=1e-2 if half else 1e-5, abs=0.1 if half else 1e-4)


# Architectures


@pytest.mark.parametrize("model", "ABDE")
def test_the_architecture_is_read_off_the_shapes_and_gives_the_authors_numbers(tmp_path, model):
    config = from_reference_flags(CFG[model])
    file = saved(tmp_path / "file.pt", {"ema": weights(config), "_extracted_from": "PostHocEMA"})
    published = open_published(file, heads=4)
    assert published.network == config
    second = {"r": FORWARD["A.r"]} if model == "B" else {}
    out = built(published)(tensor(f"fwd:{model}:x", (4, 4, 8, 8)), FORWARD["A.t"], FORWARD["A.y"], **second)
    assert out.double().sum().item() == pytest.approx(SUMS[model]["out_sum"], rel=1e-4, abs=1e-2)
    assert out.std().item() == pytest.approx(SUMS[model]["out_std"], rel=1e-4)


@pytest.mark.parametrize(
    "changed",
    [
        {"mlp_ratio": 2.0}, {"swiglu": False, "mlp_ratio": 3.5}, {"num_classes": 0}, {"patch_size": 1}, {"depth": 11},
        {"shift": False}, {"learn_sigma": True}, {"auxiliary_time": True}, {"qk_norm": False}, {"rope": False},
        {"rmsnorm": False}, {"rope": False, "num_heads": 2}, {"input_size": 12, "in_channels": 3},
    ],
    ids=str,
)  # fmt: skip
def test_every_field_is_read_off_the_shapes(tmp_path, changed):
    config = LightningDiT(**{**vars(MODERN), "num_classes": 3, **changed})
    published = open_published(saved(tmp_path / "file.pt", weights(config)))
    assert published.network == config
    assert published.num_classes == (config.num_classes or None)


def dit_shapes(hidden, depth, size=32, patch=2, channels=4, out=8, classes=1000):
    """The state dict of facebookresearch/DiT and willisma/SiT."""
    shapes = {
        "pos_embed": (1, (size // patch) ** 2, hidden),
        "x_embedder.proj.weight": (hidden, channels, patch, patch),
        "x_embedder.proj.bias": (hidden,),
        "t_embedder.mlp.0.weight": (hidden, 256),
        "t_embedder.mlp.0.bias": (hidden,),
        "t_embedder.mlp.2.weight": (hidden, hidden),
        "t_embedder.mlp.2.bias": (hidden,),
        "y_embedder.embedding_table.weight": (classes + 1, hidden),
        "final_layer.linear.weight": (patch**2 * out, hidden),
        "final_layer.linear.bias": (patch**2 * out,),
        "final_layer.adaLN_modulation.1.weight": (2 * hidden, hidden),
        "final_layer.adaLN_modulation.1.bias": (2 * hidden,),
    }
    rows = {"attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 4, "adaLN_modulation.1": 6}
    for i in range(depth):
        for name, times in rows.items():
            shapes |= {
                f"blocks.{i}.{name}.weight": (times * hidden, hidden),
                f"blocks.{i}.{name}.bias": (times * hidden,),
            }
        shapes |= {f"blocks.{i}.mlp.fc2.weight": (hidden, 4 * hidden), f"blocks.{i}.mlp.fc2.bias": (hidden,)}
    return shapes


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (sit("XL/2"), dit_shapes(1152, 28)),
        (dit("XL/2", input_size=64).network, dit_shapes(1152, 28, size=64)),
        (repa("L/4").network, dit_shapes(1024, 24, patch=4, out=4)),
        (sit("S/8"), dit_shapes(384, 12, patch=8)),
    ],
    ids=["SiT-XL/2", "DiT-XL/2 512", "REPA-L/4", "SiT-S/8"],
)
def test_public_state_dicts_have_the_keys_and_shapes_of_our_networks(config, shapes):
    with torch.device("meta"):
        own = {name: tuple(value.shape) for name, value in config.build().state_dict().items()}
    assert own == shapes


@pytest.mark.parametrize(("name", "heads"), [("S/8", 6)])
def test_published_sizes_need_no_number_of_heads(tmp_path, name, heads):
    config = sit(name, num_classes=2)
    file = saved(tmp_path / "sit.pt", {key: value.half() for key, value in config.build().state_dict().items()})
    published = open_published(file, "sit")
    assert published.network == config
    assert published.network.num_heads == heads
    assert published.shape == (4, 32, 32)


def test_a_published_width_of_another_depth_is_no_published_size(tmp_path):
    config = LightningDiT(**{**vars(sit("S/8", num_classes=2)), "depth": 1})
    file = saved(tmp_path / "sit.pt", config.build().state_dict())
    with pytest.raises(ValueError, match=r"1 blocks of width 384 are no published size.*heads = None, expected it"):
        open_published(file, "sit")
    assert open_published(file, "sit", heads=12).network.num_heads == 12


def test_dit_predicts_noise_on_the_path_of_ddpm(tmp_path):
    file = saved(tmp_path / "DiT-XL-2-256x256.pt", weights(SIGMA))
    published = open_published(file, "dit", heads=2)
    check(published, SIGMA, "student", "dit", False, "the only weights")
    assert published.network == VariancePreserving(SIGMA, 1000, 1e-4, 0.02)
    assert all(name.startswith("inner.") for name in published.state)
    assert len(published.sha256) == 64
    assert published.path == file


# What does not fit


def test_what_dit_and_sit_share_must_be_said(tmp_path):
    file = saved(tmp_path / "XL.pt", weights(SIGMA))
    with pytest.raises(
        ValueError, match=r"XL.pt: its keys fit DiT and SiT: expected family = 'dit' or family = 'sit'$"
    ):
        open_published(file, heads=2)
    without = saved(tmp_path / "v.pt", weights(PLAIN))
    with pytest.raises(
        ValueError, match="fit DiT, SiT and REPA: expected family = 'dit' or family = 'sit' or family = 'repa'"
    ):
        open_published(without, heads=4)
    for family in ("sit", "dit", "repa", "lightningdit", "facm"):
        assert open_published(without, family, heads=4).family == family


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (lambda: weights(MODERN), {"family": "sd3"}, "'sd3', expected one of facm, lightningdit, sit, dit, repa"),
        (lambda: weights(MODERN), {"family": "dit"}, "family = 'dit', but its keys look like LightningDiT or FACM's"),
        (lambda: weights(SIGMA), {"family": "repa", "heads": 2}, "family = 'repa', but its keys look like DiT or SiT"),
        (lambda: weights(PLAIN) | projectors(), {"family": "sit", "heads": 4}, "'sit', but its keys look like REPA's"),
        (lambda: weights(MODERN), {"weights": "ema"}, "no weights 'ema', expected one of: model"),
        (lambda: weights(PLAIN), {"family": "sit"}, "2 blocks of width 64 are no published size.*heads"),
        (lambda: weights(MODERN), {"heads": 8}, r"heads = 8, but blocks.0.attn.q_norm.weight of .* expected 4"),
        (lambda: {"a": torch.zeros(2)}, {}, r"not weights of DiT.*no x_embedder.proj.weight among 1 keys \(a\)"),
        (lambda: weights(MLP()), {}, r"no x_embedder.proj.weight among 16 keys \(inward.weight, .*, \.\.\.\)"),
        (lambda: [1, 2], {}, "holds a list, expected a state dict or a training checkpoint"),
        (lambda: {}, {}, "holds nothing"),
        (lambda: torch.zeros(3), {}, "holds a Tensor"),
        (lambda: {"opt": {}, "steps": 3}, {}, "expected ema, emas or model; it has: opt, steps$"),
        (lambda: {**{str(i): i for i in range(9)}}, {}, r"it has: 0, 1, 2, 3, 4, 5, 6, 7, \.\.\. \(9 in all\)"),
        (lambda: {"ema": {"a": 3}, "step": 1}, {}, r"ema is no state dict \('a' is a int\)"),
        (lambda: {"model": {}, "step": 1}, {}, r"model is no state dict \(it is empty\)"),
        (lambda: {"emas": {"first.a": torch.zeros(1)}, "step": 1}, {}, "emas has the key first.a, expected ema_models"),
    ],
)  # fmt: skip
def test_what_is_not_recognised_says_so(tmp_path, content, arguments, message):
    file = saved(tmp_path / "file.pt", content())
    with pytest.raises(ValueError, match=message):
        open_published(file, **arguments)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x_embedder.proj.weight", (64, 4, 2, 1), "patches are 2 x 1, expected squares"),
        ("x_embedder.proj.weight", (64, 4), r"x_embedder.proj.weight has shape \(64, 4\), expected 4 axes"),
        ("pos_embed", (1, 15, 64), "pos_embed has 15 tokens, expected a square"),
        ("final_layer.linear.weight", (48, 64), r"48 rows, expected 16 \(patch 2, 4 channels\) or twice as many"),
        ("blocks.0.adaLN_modulation.1.weight", (320, 64), "320 rows, expected 384 or 256"),
        ("blocks.1.attn.proj.weight", (64, 63), r"1 of another shape: blocks.1.attn.proj.weight \(64, 63\) instead of"),
        ("blocks.0.mlp.w12.weight", (300, 64), r"of another shape: blocks\.0\.mlp\.w12\.(weight|bias)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(tmp_path, name, shape, message):
    file = saved(tmp_path / "file.pt", weights(MODERN) | {name: torch.zeros(shape)})
    with pytest.raises(ValueError, match=message):
        open_published(file)


def test_missing_and_extra_keys_are_listed_and_counted(tmp_path):
    state = weights(MODERN)
    for name in [name for name in state if name.startswith("t_embedder")] + ["blocks.1.attn.proj.bias", "pos_embed"]:
        if name != "pos_embed":
            del state[name]
    state["head.weight"] = torch.zeros(1)
    file = saved(tmp_path / "file.pt", state)
    expected = (
        r"file.pt does not fit LightningDiTNetwork: 5 missing: t_embedder.mlp.0.weight, .*; "
        r"1 unexpected: head.weight. It looks like LightningDiT$"
    )
    with pytest.raises(ValueError, match=expected):
        open_published(file)


def test_files_that_cannot_be_read_are_errors_that_name_them(tmp_path):
    with pytest.raises(ValueError, match=r"nothing.pt.*expected a checkpoint of DiT, SiT, REPA"):
        open_published(tmp_path / "nothing.pt")
    file = saved(tmp_path / "cut.pt", weights(MODERN))
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.pt"):
        open_published(file)


@pytest.mark.parametrize(
    ("family", "config", "options", "message"),
    [
        ("sit", SIGMA, {"model": "SiT-B/4", "prediction": "noise"}, "trained with prediction = 'noise'.*for SiT"),
        ("sit", SIGMA, {"model": "SiT-B/4", "path_type": "GVP"}, "trained with path_type = 'GVP', expected 'linear'"),
        ("repa", PLAIN, {"model": "SiT-B/4", "path_type": "cosine", "prediction": "v"}, "path_type = 'cosine'.*REPA"),
    ],
)
def test_another_path_or_prediction_is_refused(tmp_path, family, config, options, message):
    content = {"ema": weights(config), "args": argparse.Namespace(**options)}
    file = saved(tmp_path / "file.pt", content)
    with pytest.raises(ValueError, match=message):
        open_published(file, family, heads=config.num_heads)
    kept = {"model": "SiT-B/4", "prediction": "velocity", "path_type": "Linear"}
    file = saved(tmp_path / "right.pt", {"ema": weights(config), "args": argparse.Namespace(**kept)})
    assert open_published(file, family, heads=config.num_heads).family == family


class Malicious:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


def test_a_file_that_holds_code_is_refused_and_nothing_is_run(tmp_path):
    victim = tmp_path / "victim"
    file = saved(tmp_path / "bad.pt", {"ema": weights(MODERN), "args": Malicious(victim)})
    old = tmp_path / "bad.ckpt"
    old.write_bytes(pickle.dumps({"ema": Malicious(victim)}))
    for path in (file, old):
        for attempt in (
            lambda path=path: open_published(path),
            lambda path=path: FromFile(str(path)).load(),
            lambda path=path: import_file(path, tmp_path / "out.safetensors"),
        ):
            with pytest.raises(ValueError, match=path.name):
                attempt()
    assert not victim.exists()
    assert not (tmp_path / "out.safetensors").exists()


# A teacher, and where to start from


def test_a_file_is_a_teacher_that_a_run_can_record(tmp_path):
    file = saved(tmp_path / "0000002.pt", posthoc(MODERN))
    teacher = FromFile(str(file), weights="ema_models.1")
    assert isinstance(teacher, Pretrained)
    assert from_json(json.loads(json.dumps(to_json(teacher)))) == teacher
    network = teacher.load()
    for name, value in weights(MODERN, "ema1").items():
        assert torch.equal(network.state_dict()[name], value)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    sized = FromFile(str(saved(tmp_path / "sit.pt", weights(SIGMA))), family="sit", heads=2)
    assert sized.load().config == SIGMA
    with pytest.raises(ValueError, match="expected family = '"):
        FromFile(sized.path, heads=2).load()


# Our own files


def test_an_imported_file_says_what_it_is_and_reads_back(tmp_path):
    cases = [
        (posthoc(MODERN), {"weights": "ema_models.1"}, "ema1", MODERN),
        (weights(SIGMA), {"family": "dit", "heads": 2}, "student", SIGMA),
        (weights(PLAIN) | projectors(), {"heads": 4}, "student", PLAIN),
        (weights(MODERN), {}, "student", MODERN),
    ]
    for i, (content, arguments, salt, config) in enumerate(cases):
        source, out = saved(tmp_path / f"{i}.pt", content), tmp_path / "new" / f"{i}.safetensors"
        published = import_file(source, out, **arguments)
        with safe_open(out, framework="pt") as file:
            metadata = file.metadata()
        assert metadata["source"] == f"{i}.pt"
        assert metadata["source_sha256"] == published.sha256
        read = open_published(out)
        check(read, config, salt, published.family, published.learns_shortcut, published.which)
        assert read.network == published.network
        assert read.sha256 != published.sha256
        assert [f.name for f in out.parent.iterdir() if f.name.startswith(".")] == []
    with pytest.raises(ValueError, match=r"3.safetensors exists and is not overwritten"):
        import_file(source, out)
    with pytest.raises(ValueError, match="no weights 'ema', expected one of: model"):
        open_published(out, weights="ema")
    again = open_published(tmp_path / "new" / "0.safetensors", "facm", "model")
    assert again.learns_shortcut is True
    with pytest.raises(ValueError, match="family = 'sit', but it says itself that it is 'facm'"):
        open_published(tmp_path / "new" / "0.safetensors", "sit")


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    source, out = saved(tmp_path / "a.pt", weights(MODERN)), tmp_path / "out" / "a.file"

    def full(path):
        raise OSError("No space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(CheckpointError, match=r"could not write .*a.file: No space left"):
        import_file(source, out)
    with pytest.raises(CheckpointError, match=r"could not write .*a.file: No space left"):
        export_reference(MODERN.build(), MODERN, out)
    assert list(out.parent.iterdir()) == []


def exported(path, config, /, **said):
    """A file as ``facm weights export`` writes it."""
    metadata = {"format": "pt", "config": json.dumps(to_json(config)), "sigma_rel": "0.05", "images": "1000", **said}
    save_file({name: value.contiguous() for name, value in config.build().state_dict().items()}, path, metadata)
    return path


def test_a_file_that_facm_exported_is_any_of_its_networks(tmp_path):
    unet = DDPMpp(size=8, channels=8, multipliers=(1, 2), blocks=1, attention=(4,), num_classes=10)
    published = open_published(exported(tmp_path / "unet.safetensors", unet))
    assert published.network == unet
    assert (published.family, published.learns_shortcut, published.which) == ("facm", None, "EMA 0.05")
    assert (published.shape, published.num_classes) == ((3, 8, 8), 10)
    raw = open_published(exported(tmp_path / "raw.safetensors", MLP(), sigma_rel="raw", learns_shortcut="true"))
    assert (raw.which, raw.learns_shortcut, raw.shape, raw.num_classes) == ("raw", True, None, None)
    wrapped = open_published(exported(tmp_path / "dit.safetensors", VariancePreserving(SIGMA), learns_shortcut="false"))
    assert (wrapped.learns_shortcut, wrapped.shape, wrapped.num_classes) == (False, (3, 4, 4), 5)
    assert open_published(tmp_path / "unet.safetensors", "lightningdit").learns_shortcut is False
    assert FromFile(str(tmp_path / "raw.safetensors")).load().config == MLP()
    config = {"config": json.dumps(to_json(MLP()))}
    save_file(MLP().build().state_dict(), tmp_path / "least.safetensors", config)
    assert open_published(tmp_path / "least.safetensors").which == "the only weights"


@dataclass(frozen=True)
class Own:
    def build(self):
        return nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "metadata 'config' is not JSON"),
        ("3", "its network is 3, expected one of facm.networks"),
        (json.dumps({"type": "os:system"}), "its network is 'os:system', expected one of facm.networks"),
        (json.dumps({"type": "facm.networks.mlp:nn.Linear"}), "its network is 'facm.networks.mlp:nn.Linear'"),
        (
            json.dumps({"type": "facm.networks.adapters.foreign:Foreign", "network": {"type": "antigravity:X"}}),
            "antigravity:X",
        ),
        (
            json.dumps({"type": "facm.networks:Foreign", "network": [{"type": "a:X"}]}),
            "its network is 'a:X'",
        ),
        (json.dumps({"type": "facm.networks.mlp:MLP", "colour": 3}), "does not describe a network .*colour"),
        (json.dumps({"type": "facm.networks.mlp:MLPNetwork"}), "MLPNetwork', expected one of facm.networks"),
        (json.dumps({"dim": 3}), "is {'dim': 3}, expected a network's configuration"),
        (json.dumps(to_json(MLP(width=64))), "of another shape"),
        (json.dumps(to_json(Own())), "a network of your own is opened from its run folder, with FromRun"),
    ],
)
def test_an_own_file_of_another_network_is_refused(tmp_path, config, message):
    file = exported(tmp_path / "own.safetensors", MLP(), config=config)
    with pytest.raises(ValueError, match=message):
        open_published(file)


# The authors' layout


@pytest.mark.parametrize("config", [MODERN, PLAIN, SIGMA, VariancePreserving(SIGMA)], ids=["A", "D", "SiT", "DiT"])
def test_the_authors_programs_can_load_what_is_exported(tmp_path, config):
    out = tmp_path / "for" / "them.pt"
    network = fill(config.build(), "student")
    export_reference(network, config, out)
    content = torch.load(out, weights_only=True)
    assert content["_extracted_from"] == "facm"
    inner = inside(config)
    with torch.device("meta"):
        names = list(inner.build().state_dict())
    assert list(content["ema"]) == names
    family = {MODERN: None, PLAIN: "facm", SIGMA: "sit"}.get(config, "dit")
    read = open_published(out, family, heads=inner.num_heads)
    assert read.network == config
    for name, value in network.state_dict().items():
        assert torch.equal(read.state[name], value)
    with pytest.raises(ValueError, match=r"them.pt exists and is not overwritten"):
        export_reference(network, config, out)


def test_networks_without_a_public_layout_are_not_exported(tmp_path):
    for config in (MLP(), Foreign(PLAIN), VariancePreserving(MLP())):
        with pytest.raises(ValueError, match="has no public layout: expected a LightningDiT"):
            export_reference(config.build(), config, tmp_path / "out.pt")
    with pytest.raises(ValueError, match=r"the LightningDiTNetwork does not fit LightningDiTNetwork: .* of config = "):
        export_reference(PLAIN.build(), MODERN, tmp_path / "out.pt")
    assert list(tmp_path.iterdir()) == []
