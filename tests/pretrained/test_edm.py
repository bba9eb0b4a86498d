"""EDM's pickles, which carry code: read as data, never run; what they hold recognised strictly.

The pickles are made here, by a stand-in of the mechanism of NVlabs/edm's torch_utils.persistence: each object is
written as a call of _reconstruct_persistent_obj on its class's name, its attributes and its module's source.
"""

import codecs
import io
import json
import math
import os
import pickle
import pickletools
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from facm import cli
from facm.core.serialize import from_json, to_json
from facm.core.untrusted.persistence import Record, is_persistent, modules_of, read_persistent, weights_of
from facm.flow.conditions import Labels, Unconditional
from facm.networks.adapters.edm import EDM
from facm.networks.ddpm_pp import DDPMpp
from facm.networks.lightning_dit import LightningDiT
from facm.pretrained import FromFile, built, import_file, open_published
from facm.pretrained.edm import _same, edm_network
from facm.pretrained.from_file import load_file

TINY = DDPMpp(
    size=8, channels=16, multipliers=(1, 2), blocks=1, attention=(4,), dropout=0.1, num_classes=10, augment_dim=9
)
ARGUMENTS = {
    "img_resolution": 8, "in_channels": 3, "out_channels": 3, "label_dim": 10, "augment_dim": 9, "model_channels": 16,
    "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.1, "embedding_type": "positional",
    "encoder_type": "standard", "decoder_type": "standard", "channel_mult_noise": 1, "resample_filter": [1, 1],
}  # fmt: skip


@pytest.fixture(autouse=True)
def torch_utils(monkeypatch):
    """The module that such a file needs to be unpickled; its function executes the source, as the original does."""

    def _reconstruct_persistent_obj(meta):
        exec(meta["module_src"], {})
        return types.SimpleNamespace(**meta["state"])

    class EasyDict(dict):
        pass

    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")
    for module, value in ((persistence, _reconstruct_persistent_obj), (util, EasyDict)):
        value.__module__, value.__qualname__ = module.__name__, value.__name__
        setattr(module, value.__name__, value)
        monkeypatch.setitem(sys.modules, module.__name__.partition(".")[0], types.ModuleType("package"))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return persistence, util


class Persistent(nn.Module):
    """A module that pickles as persistent_class makes them."""

    source = "raise RuntimeError('executed')"

    def __init__(self, kind, arguments=None, **attributes):
        super().__init__()
        self.kind = kind
        self.__dict__.update(attributes, _init_args=(), _init_kwargs=arguments or {})

    def __reduce__(self):
        state = {name: value for name, value in self.__dict__.items() if name != "kind"}
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": self.kind, "state": state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,), None


class Options:
    """A persistent object that is no module, as EDM's loss and augmentation are."""

    def __init__(self, **attributes):
        self.attributes = attributes

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": Persistent.source, "class_name": "EDMLoss"}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta | {"state": self.attributes},)


def tree(module, config):
    """The modules of a network of ours as EDM has them, with its attributes."""
    leaf = {nn.GroupNorm: "GroupNorm", nn.Linear: "Linear"}.get(type(module), "Conv2d")
    if isinstance(module, nn.ModuleDict):
        made = nn.ModuleDict()
    elif module._modules:
        top = hasattr(module, "enc")
        made = Persistent("SongUNet" if top else "UNetBlock", dict(ARGUMENTS) if top else {})
        made.map_noise = Persistent("PositionalEmbedding", num_channels=16) if top else None
        made.__dict__.update({} if top else {"skip_scale": np.sqrt(0.5), "adaptive_scale": False, "num_heads": 1})
    else:
        made = Persistent(leaf, eps=1e-6) if leaf == "GroupNorm" else Persistent(leaf)
        for name, value in module.named_parameters():
            setattr(made, name, nn.Parameter(value.detach().clone(), requires_grad=False))
        filter_ = getattr(module, "resample_filter", None)
        made.register_buffer("resample_filter", None if filter_ is None else filter_.clone())
        return made
    for name, inner in module._modules.items():
        if isinstance(inner, nn.Dropout):
            continue
        if inner is None:
            setattr(made, name, None)
        else:
            made.add_module(name, tree(inner, config))
    return made


def network_of(config=TINY, seed=0):
    torch.manual_seed(seed)
    network = config.build()
    for name, value in network.named_parameters():
        nn.init.normal_(value, std=0.2 if value.ndim > 1 or "norm" not in name else 1.0)
    return network


def snapshot(config=TINY, seed=0, **changed):
    """What EDM's training loop pickles. changed: arguments of the SongUNet."""
    song = tree(network_of(config, seed), config)
    song._init_kwargs.update(changed)
    outer = Persistent(
        "EDMPrecond", {"img_resolution": 8, "use_fp16": False}, img_resolution=8, label_dim=10, use_fp16=False,
        sigma_min=0, sigma_max=math.inf, sigma_data=0.5,
    )  # fmt: skip
    outer.model = song
    EasyDict = sys.modules["dnnlib.util"].EasyDict
    loss = Options(P_mean=-1.2, P_std=1.2, sigma_data=0.5, half=np.float32(0.5), whole=np.int64(3), yes=np.bool_(True))
    return {
        "ema": outer.eval().requires_grad_(False),
        "loss_fn": loss,
        "augment_pipe": Options(p=0.12),
        "dataset_kwargs": EasyDict(path="cifar10-32x32.zip", kept={1, 2}),
    }


def saved(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def song(content):
    return content["ema"].model


# What is read


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_the_weights_come_out_and_no_code_runs(tmp_path, monkeypatch, protocol):
    marker = tmp_path / "executed"
    monkeypatch.setattr(Persistent, "source", f"open({str(marker)!r}, 'w').close()")
    file = saved(tmp_path / "edm.pkl", snapshot(), protocol)
    published = open_published(file)
    assert published.network == EDM(TINY, 0.5, 0.002, 80.0)
    assert (published.family, published.learns_shortcut, published.which) == ("edm", False, "ema")
    assert (published.shape, published.num_classes, published.dropped) == ((3, 8, 8), 10, ())
    network, expected = built(published), network_of()
    assert {name.removeprefix("inner.") for name in published.state} == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(network.inner.state_dict()[name], value), name
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    import_file(file, tmp_path / "out.safetensors")
    FromFile(str(file), "edm").load()
    assert not marker.exists()
    pickle.loads(file.read_bytes())  # the file would have run it
    assert marker.exists()


def test_no_module_that_a_file_names_is_imported(tmp_path):
    file = saved(tmp_path / "edm.pkl", snapshot())
    code = (
        "import sys; from pathlib import Path; from facm.pretrained import open_published\n"
        f"print(open_published(Path({str(file)!r})).num_classes)\n"
        "print([name for name in sys.modules if name.startswith(('torch_utils', 'dnnlib'))])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split("\n")[:2] == ["10", "[]"]


def test_everything_beside_the_network_is_plain_data(tmp_path):
    content = read_persistent(saved(tmp_path / "edm.pkl", snapshot()), "something")
    loss, data = content["loss_fn"], content["dataset_kwargs"]
    assert (type(loss), loss.kind) == (Record, "EDMLoss")
    expected = {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5, "half": 0.5, "whole": 3, "yes": True}
    assert loss.state == expected
    assert [type(value) for value in loss.state.values()] == [float, float, float, float, int, bool]
    assert (type(data), data) == (dict, {"path": "cifar10-32x32.zip", "kept": {1, 2}})
    modules = modules_of(content["ema"], Path("f"))
    assert (modules[""].kind, modules["model."].kind, modules["model.enc."].kind) == (
        "EDMPrecond", "SongUNet", "ModuleDict"
    )  # fmt: skip
    assert modules["model.enc.8x8_block0."].state["skip_scale"] == math.sqrt(0.5)
    assert "module_src" not in json.dumps(list(modules[""].state))


def test_buffers_that_are_not_saved_are_no_weights(tmp_path):
    outer = Persistent("Any")
    outer.register_buffer("kept", torch.ones(2))
    outer.register_buffer("passing", torch.ones(2), persistent=False)
    outer.register_parameter("none", None)
    record = read_persistent(saved(tmp_path / "a.pkl", outer), "something")
    assert weights_of(modules_of(record, Path("f")), Path("f")).keys() == {"kept"}


def test_tensors_of_every_layout_are_the_same_numbers(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = [base, base.T, base[1:3, ::2], base.half(), base.bfloat16(), base.long(), torch.tensor(3.0), base[:0]]
    tensors.append(nn.Parameter(base))
    content = {"x": Options(), "tensors": tensors}
    read = read_persistent(saved(tmp_path / "t.pkl", content), "something")["tensors"]
    for value, expected in zip(read, tensors, strict=True):
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected.detach())
    assert type(read[-1]) is torch.Tensor


def test_an_imported_file_opens_again_with_everything_it_needs(tmp_path, capsys):
    source, out = saved(tmp_path / "edm-cifar10-32x32-cond-vp.pkl", snapshot()), tmp_path / "teacher.safetensors"
    cli.main(["weights", "import", str(source), "--out", str(out)])
    assert "edm, (3, 8, 8), 10 classes, a teacher" in capsys.readouterr().out
    first, again = open_published(source), open_published(out)
    assert (again.network, again.family, again.learns_shortcut) == (first.network, "edm", False)
    assert (again.shape, again.num_classes, again.which) == ((3, 8, 8), 10, "ema")
    with safe_open(out, framework="pt") as file:
        assert file.metadata()["source_sha256"] == first.sha256
    for name, value in first.state.items():
        assert torch.equal(again.state[name], value)
    assert open_published(out, "edm").family == "edm"
    with pytest.raises(ValueError, match="family = 'sit', but it says itself that it is 'edm'"):
        open_published(out, "sit")
    trained = load_file(out)
    assert trained.interface.condition == Labels(10)
    x, t, cond = torch.randn(2, 3, 8, 8), torch.tensor([0.1, 0.9]), torch.tensor([3, 10])
    expected = EDM(TINY).build()
    expected.inner.load_state_dict(network_of().state_dict())
    torch.testing.assert_close(trained.network(x, t, cond), expected.eval()(x, t, cond))
    assert trained.network(x, t, cond).std() > 0.1
    teacher = FromFile(str(out))
    assert from_json(json.loads(json.dumps(to_json(teacher)))) == teacher


def test_images_are_sampled_from_it_with_edms_sampler(tmp_path):
    file = saved(tmp_path / "edm.pkl", snapshot())
    out = tmp_path / "grid.png"
    cli.main(["sample", str(file), "--sampler", "edm", "--num-steps", "5", "--out", str(out)])
    assert out.exists()


def test_an_unconditional_network_without_augmentation_and_with_defaults(tmp_path):
    config = DDPMpp(
        size=16, channels=16, multipliers=(1, 2, 2, 2), blocks=4, attention=(16,), dropout=0.1, num_classes=0
    )
    content = snapshot(config)
    given = {"img_resolution": 16, "in_channels": 3, "out_channels": 3, "model_channels": 16, "label_dim": 0}
    song(content)._init_kwargs = given | {"attn_resolutions": (16, 64), "label_dropout": 0.1}
    file = saved(tmp_path / "edm.pkl", {"ema": content["ema"]})
    published = open_published(file)
    assert published.network == EDM(config)
    assert (published.shape, published.num_classes) == ((3, 16, 16), None)
    assert load_file(file).interface.condition == Unconditional()


def test_what_the_preconditioning_says_is_kept(tmp_path):
    content = snapshot()
    content["ema"].__dict__.update(sigma_data=0.25, sigma_min=0.01, sigma_max=50.0)
    assert open_published(saved(tmp_path / "a.pkl", content)).network == EDM(TINY, 0.25, 0.01, 50.0)
    content["ema"].__dict__.update(sigma_min=0.0001, sigma_max=100)
    assert open_published(saved(tmp_path / "b.pkl", content)).network == EDM(TINY, 0.25, 0.002, 80.0)


# What is refused


class Reduced:
    """An object that pickles as any call."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


def archive(content):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


HOSTILE = {
    "os.system": lambda: (Reduced(os.system, "touch executed"), "system"),
    "builtins.eval": lambda: (Reduced(eval, "open('executed', 'w')"), "builtins.eval"),
    "builtins.exec": lambda: (Reduced(exec, "open('executed', 'w')"), "builtins.exec"),
    "builtins.getattr": lambda: (Reduced(getattr, "a", "upper"), "builtins.getattr"),
    "codecs": lambda: (Reduced(codecs.encode, "executed", "rot13"), "_codecs.encode"),
    "a class": lambda: (Reduced(subprocess.Popen, "touch executed"), "subprocess.Popen"),
    "torch.load": lambda: (Reduced(torch.load, "executed"), "torch.serialization.load"),
    "numpy objects": lambda: (np.array([Reduced(os.mkdir, "executed")], dtype=object), "_reconstruct"),
    "a numpy object scalar": lambda: (
        Reduced(np.float64(1).__reduce__()[0], np.dtype("O"), b""),
        "a numpy scalar that is not a number",
    ),
    "a scalar of no dtype": lambda: (Reduced(np.float64(1).__reduce__()[0], "f8", b""), "scalar that is not a number"),
    "a nested archive with code": lambda: (
        Reduced(torch.storage._load_from_bytes, archive(Reduced(os.mkdir, "executed"))),
        "a tensor whose archive is damaged or names code",
    ),
    "an archive of no storage": lambda: (
        Reduced(torch.storage._load_from_bytes, archive({"a": 1, "b": 2})),
        "a tensor whose archive is a dict",
    ),
    "an archive that is none": lambda: (Reduced(torch.storage._load_from_bytes, "name"), "archive is damaged"),
    "a tensor over a list": lambda: (
        Reduced(torch._utils._rebuild_tensor_v2, [1.0], 0, (1,), (1,), False, {}), "a tensor over a list"
    ),
    "a parameter over a list": lambda: (
        Reduced(torch._utils._rebuild_parameter, [1.0], False, {}), "a parameter over a list"
    ),
    "attributes of a module": lambda: (Reduced(nn.ModuleDict, state=[1]), "a ModuleDict whose state is a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_else_a_file_names_is_refused_and_not_called(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    hostile, message = HOSTILE[name]()
    file = saved(tmp_path / "bad.pkl", {**snapshot(), "extra": hostile})
    for attempt in (open_published, lambda path: import_file(path, tmp_path / "o"), lambda p: FromFile(str(p)).load()):
        with pytest.raises(ValueError, match=r"bad\.pkl holds .*reading it could run code, so it is refused") as caught:
            attempt(file)
        assert message in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pkl"]


def test_a_persistent_object_must_be_one(tmp_path):
    function = sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj
    for meta, message in (
        ([1], "a persistent object that is not of a class"),
        ({"type": "function", "class_name": "A", "state": {}}, "a persistent object that is not of a class"),
        ({"type": "class", "class_name": 3, "state": {}}, "a persistent object that is not of a class"),
        ({"type": "class", "class_name": "A", "state": 3}, "a A whose state is a int"),
    ):
        with pytest.raises(ValueError, match=message):
            open_published(saved(tmp_path / "a.pkl", Reduced(function, meta)))


def instructions(*names, then):
    """A pickle by hand: the globals, pushed one after the other, and then opcodes."""
    mark = b"\x80\x04\x8c\x17torch_utils.persistence0"  # a string that is dropped, so that it is taken for EDM's
    for module, name in names:
        mark += b"c" + module.encode() + b"\n" + name.encode() + b"\n"
    return mark + then + b"."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch_utils.persistence", "_reconstruct_persistent_obj"),
        ("torch.storage", "_load_from_bytes"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy.core.multiarray", "scalar"),
        ("torch.nn.modules.container", "ModuleDict"),
        ("numpy", "dtype"),
        ("collections", "OrderedDict"),
        ("dnnlib.util", "EasyDict"),
        ("builtins", "set"),
    ],
)
def test_a_file_cannot_change_what_stands_for_its_names(tmp_path, module, name):
    from facm.core.untrusted import persistence

    stand_in = persistence._STAND_INS[module, name]
    before = dict(vars(stand_in))
    file = tmp_path / "bad.pkl"
    for state in (b"}\x8c\x01a\x8c\x01bs", b"N}\x8c\x01a\x8c\x01bs\x86"):  # {"a": "b"}, and (None, {"a": "b"})
        file.write_bytes(instructions((module, name), then=state + b"b"))
        with pytest.raises(ValueError, match=r"bad\.pkl"):
            open_published(file)
        assert dict(vars(stand_in)) == before


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (b"\x8c\x01a\x8c\x01b\x93", "holds a.b: reading it could run code"),
        (b"\x8c\x08builtins\x8c\x0bset.__mro__\x93", r"holds builtins.set.__mro__"),
        (b"cos\nsystem\n", "holds os.system"),
        (b"(ios\nsystem\n", "holds os.system"),
        (b"\x82\x01", "truncated or damaged"),  # the copyreg registry
        (b"\x8c\x01aQ", "truncated or damaged"),  # a persistent id
        (b"\x97", "truncated or damaged"),  # a buffer from outside
    ],
)
def test_no_opcode_gets_around_the_names(tmp_path, then, message):
    file = tmp_path / "bad.pkl"
    file.write_bytes(instructions(then=then))
    with pytest.raises(ValueError, match=message):
        open_published(file)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (1, (4,), (1,)), (0, (2, 2), (3, 1)), (-1, (1,), (1,)), (0, (10**12,), (1,)), (0, (1,), ("a",))],
)
def test_a_tensor_stays_inside_its_numbers(tmp_path, offset, size, stride):
    numbers = torch.zeros(4)._typed_storage()
    tensor = Reduced(torch._utils._rebuild_tensor_v2, numbers, offset, size, stride, False, {})
    file = saved(tmp_path / "bad.pkl", {"x": Options(), "tensor": tensor})
    with pytest.raises(ValueError, match=r"bad.pkl: truncated or damaged"):
        read_persistent(file, "something")
    inside = Reduced(torch._utils._rebuild_tensor_v2, numbers, 1, (3,), (1,), False, {})
    read = read_persistent(saved(tmp_path / "good.pkl", {"x": Options(), "tensor": inside}), "something")
    assert read["tensor"].shape == (3,)


def test_a_network_must_be_a_tree_of_modules(tmp_path):
    twice = Persistent("A")
    twice.one, twice.other = (Persistent("B"),) * 2
    round_ = Record()
    round_.state = {"_modules": {"itself": round_}}
    record = read_persistent(saved(tmp_path / "a.pkl", twice), "something")
    for each in (record, round_):
        with pytest.raises(ValueError, match=r"f: \w+ is there twice, expected a tree of modules"):
            modules_of(each, Path("f"))
    for state, message in (
        ({"_modules": {"a": 3}}, "f: a is a int, expected a tree of modules"),
        ({"_modules": [1]}, "f: _modules is no dict by name"),
        ({"_modules": {3: None}}, "f: _modules is no dict by name"),
        ({"_parameters": {"w": "text"}}, "f: w is a str, expected a tensor"),
        ({"_buffers": 3}, "f: _buffers is no dict by name"),
    ):
        bad = Record()
        bad.state = state
        with pytest.raises(ValueError, match=message):
            weights_of(modules_of(bad, Path("f")), Path("f"))


def edited(edit):
    content = snapshot()
    edit(content)
    return content


def block(content):
    return song(content).enc["8x8_block0"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: setattr(c["ema"], "kind", "VPPrecond"), "its network is a VPPrecond, expected an EDMPrecond: only"),
        (lambda c: setattr(song(c), "kind", "DhariwalUNet"), "EDMPrecond is of a DhariwalUNet, expected a SongUNet"),
        (lambda c: c["ema"]._modules.clear(), "EDMPrecond is of nothing, expected a SongUNet"),
        (lambda c: c.pop("ema"), "has no network 'ema', .*; it has: loss_fn, augment_pipe, dataset_kwargs"),
        (lambda c: setattr(song(c), "_init_kwargs", None), r"does not say the named arguments.*\(_init_kwargs\)"),
        (lambda c: setattr(song(c), "_init_args", (8,)), "does not say the named arguments"),
        (lambda c: setattr(song(c).enc["8x8_conv"], "weight", None), r"1 missing: inner.enc.8x8_conv.weight"),
        (lambda c: song(c).register_buffer("freqs", torch.ones(3)), r"1 unexpected: inner.freqs. It looks like EDM"),
        (lambda c: setattr(song(c), "map_augment", None), r"1 missing: inner.map_augment.weight"),
        (lambda c: c["ema"].register_buffer("u", torch.ones(3)), "1 unexpected: inner.u"),
        (lambda c: setattr(block(c), "skip_scale", 1.0), r"model.enc.8x8_block0.skip_scale = 1.0, expected 0.707"),
        (lambda c: setattr(block(c), "adaptive_scale", True), "adaptive_scale = True, expected False"),
        (lambda c: setattr(block(c).norm0, "eps", 1e-5), "norm0.eps = 1e-05, expected 1e-06"),
        (lambda c: setattr(block(c), "skip_scale", torch.ones(2)), r"skip_scale = tensor\(.*, expected 0.707"),
        (lambda c: setattr(song(c), "_init_args", torch.ones(2)), "does not say the named arguments"),
        (lambda c: song(c).enc["4x4_down"].conv0.resample_filter.fill_(1), "resample_filter is .*, expected 0.25"),
        (lambda c: c["ema"].__dict__.update(sigma_data="half"), "sigma_data = 'half', expected a number"),
        (lambda c: c["ema"].__dict__.update(sigma_data=-1.0), r"edm.pkl: EDM: sigma_data = -1.0, expected a number"),
        (lambda c: c["ema"].__dict__.update(sigma_min=100.0), r"edm.pkl: EDM: sigma_min = 100.0, expected less than"),
    ],
)  # fmt: skip
def test_another_network_is_refused(tmp_path, edit, message):
    file = saved(tmp_path / "edm.pkl", edited(edit))
    with pytest.raises(ValueError, match=message):
        open_published(file)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"embedding_type": "fourier"}, "embedding_type = 'fourier', expected 'positional': only .*NCSN"),
        ({"encoder_type": "residual"}, "encoder_type = 'residual', expected 'standard'"),
        ({"decoder_type": "skip"}, "decoder_type = 'skip'"),
        ({"channel_mult_noise": 2}, "channel_mult_noise = 2, expected 1"),
        ({"channel_mult_emb": 2}, "channel_mult_emb = 2, expected 4"),
        ({"resample_filter": [1, 3, 3, 1]}, r"resample_filter = \[1, 3, 3, 1\], expected \[1, 1\]"),
        ({"encoder_type": torch.ones(2)}, r"encoder_type = tensor\(.*, expected 'standard'"),
        ({"out_channels": 6}, "makes 3 channels into 6, expected as many"),
        ({"colour": 1}, "lacks or adds colour among its arguments"),
        ({"num_blocks": 60_000}, "num_blocks = 60000 with .* weights in all, expected fewer"),
        ({"num_blocks": "two"}, "num_blocks = 'two', expected a whole number of at least 1, below 65536"),
        ({"num_blocks": True}, "num_blocks = True, expected a whole number"),
        ({"label_dim": -1}, "label_dim = -1, expected a whole number of at least 0"),
        ({"img_resolution": 10**6}, "img_resolution = 1000000, expected a whole number"),
        ({"channel_mult": 2}, "channel_mult = 2, expected a list of at most 64 whole numbers"),
        ({"channel_mult": [1, 0.5]}, "channel_mult = 0.5, expected a whole number"),
        ({"channel_mult": []}, r"edm.pkl: DDPMpp: multipliers = \(\), expected"),
        ({"dropout": None}, "dropout = None, expected a number"),
        ({"dropout": 1.5}, "edm.pkl: DDPMpp: dropout = 1.5, expected a number"),
        ({"model_channels": 32}, "does not fit EDMNetwork: .*of another shape"),
        ({"label_dim": 0}, "unexpected: inner.map_label.weight, inner.map_label.bias"),
        ({"augment_dim": 0}, "1 unexpected: inner.map_augment.weight"),
        ({"attn_resolutions": []}, "12 unexpected: .*norm2.weight"),
    ],
)
def test_a_network_made_otherwise_is_refused(tmp_path, changed, message):
    file = saved(tmp_path / "edm.pkl", snapshot(**changed))
    with pytest.raises(ValueError, match=message):
        open_published(file)


def test_missing_arguments_are_named(tmp_path):
    content = snapshot()
    del song(content)._init_kwargs["img_resolution"]
    with pytest.raises(ValueError, match="lacks or adds img_resolution among its arguments"):
        open_published(saved(tmp_path / "edm.pkl", content))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "sit"}, "family = 'sit', but it is a pickle of torch_utils.persistence, as EDM's are"),
        ({"weights": "model"}, "has no weights 'model', expected one of: ema"),
        ({"heads": 4}, "heads = 4, expected 1 or none"),
    ],
)
def test_what_is_said_of_the_file_must_fit(tmp_path, arguments, message):
    file = saved(tmp_path / "edm.pkl", snapshot())
    with pytest.raises(ValueError, match=message):
        open_published(file, **arguments)
    assert open_published(file, "edm", "ema", 1).family == "edm"


def test_damaged_files_and_others_are_told_apart(tmp_path):
    file = saved(tmp_path / "edm.pkl", snapshot())
    content = file.read_bytes()
    cut = tmp_path / "cut.pkl"
    for length in (200, 3000, len(content) - 1):
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.pkl"):
            open_published(cut)
    assert is_persistent(file)
    assert not is_persistent(tmp_path / "nothing.pkl")
    torch.save({"note": "torch_utils.persistence"}, tmp_path / "zip.pt")
    assert not is_persistent(tmp_path / "zip.pt")
    with pytest.raises(ValueError, match="no such file"):
        open_published(tmp_path / "nothing.pkl")
    other = saved(tmp_path / "list.pkl", [Options()])
    with pytest.raises(ValueError, match=r"has no network 'ema', expected a pickle of EDM's .*; it has: a list"):
        open_published(other)
    plain = LightningDiT(input_size=4, patch_size=2, in_channels=3, hidden_size=16, depth=2, num_heads=2)
    torch.save(plain.build().state_dict(), tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="family = 'edm', but its keys look like LightningDiT or FACM's"):
        open_published(tmp_path / "plain.pt", "edm")


# What would take time or memory without end


def dag(depth=60):
    """A pickle's tuple of twice a tuple of twice ...: 2**depth ways through it, 3 bytes for each level."""
    return b"\x8c\x01a" + b"2\x86" * depth  # DUP, TUPLE2


def nested(depth=60):
    value = "a"
    for _ in range(depth):
        value = (value, value)
    return value


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (b"}" + dag() + b"Ns", "a key that is a tuple"),
        (b"}(" + dag() + b"Nu", "a key that is a tuple"),
        (b"(" + dag() + b"Nd", "a key that is a tuple"),
        (b"\x8f(" + dag() + b"\x90", "a key that is a tuple"),
        (b"(" + dag() + b"\x91", "holds the opcode FROZENSET"),
        (b"cbuiltins\nset\n](" + dag() + b"e\x85R", "a key that is a tuple"),
        (b"cnumpy\ndtype\n\x8c\x02f8\x85RN" + dag() + b"\x86b", "a numpy dtype without a byte order"),
        (
            b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + dag() + b"\x85RC\x00\x86R",
            "scalar that is not a number",
        ),
        (b"}\x8a\x09" + b"\xff" * 8 + b"\x00Ns", "a key that is a int"),
        (b"ccollections\nOrderedDict\n](" + dag() + b"N\x86e\x85R", "bad.pkl: truncated or damaged"),
        (b"cdnnlib.util\nEasyDict\n](" + dag() + b"N\x86e\x85\x81", "bad.pkl: truncated or damaged"),
        (b"\x8a\x20" + b"\x7f" * 32, "a whole number of 255 bits"),
        (b"cbuiltins\nset\n)}\x92", "holds the opcode NEWOBJ_EX"),
        (b"cbuiltins\nset\n]R", "a call with a list for its arguments"),
        (b"cdnnlib.util\nEasyDict\n]\x81", "a call with a list for its arguments"),
        (b"cbuiltins\nset\n)\x85R", "a set of a tuple"),
        (b"(" + b"N" * 65 + b"t", "a tuple of 65 items"),
        (b"]K\x00Ns", "items for a list"),
        (b"](K\x00Nu", "items for a list"),
        (b"](K\x00\x90", "items for a list"),
        (b"]}b", "attributes for a list"),
    ],
)
def test_what_would_be_hashed_or_copied_without_end_is_refused(tmp_path, then, message):
    file = tmp_path / "bad.pkl"
    file.write_bytes(instructions(then=then))
    with pytest.raises(ValueError, match=message) as caught:
        open_published(file)
    assert "bad.pkl" in str(caught.value)


def test_an_index_that_a_file_says_takes_no_memory(tmp_path):
    file = tmp_path / "bad.pkl"
    file.write_bytes(instructions(then=b"Nr\xff\xff\xff\x7f"))  # LONG_BINPUT; eight bytes an index would be 16 GB
    assert read_persistent(file, "something") is None


def test_a_file_has_so_many_opcodes_and_texts_so_long(tmp_path, monkeypatch):
    from facm.core.untrusted import persistence

    monkeypatch.setattr(persistence, "MOST_OPCODES", 100)
    monkeypatch.setattr(persistence, "MOST_TEXT", 50)
    file = tmp_path / "bad.pkl"
    for then, message in ((b"N0" * 50, "holds more than 100 opcodes"), (b"\x8c\x33" + b"a" * 51, "a text of 51 char")):
        file.write_bytes(instructions(then=then))
        with pytest.raises(ValueError, match=message):
            read_persistent(file, "something")
    file.write_bytes(instructions(then=b"\x8c\x32" + b"a" * 50 + b"0N" * 47))
    assert read_persistent(file, "something") is None


def test_a_set_takes_its_list(tmp_path):
    file = tmp_path / "bad.pkl"
    file.write_bytes(instructions(then=b"](K\x01K\x02e\x940cbuiltins\nset\nh\x00\x85Rcbuiltins\nset\nh\x00\x85R\x86"))
    assert read_persistent(file, "something") == ({1, 2}, set())


def test_a_deep_list_and_a_dag_are_compared_and_shown_at_once(tmp_path):
    deep = []
    for _ in range(5000):
        deep = [deep]
    for value, shown in ((nested(), r"tuple\(\.\.\.\)"), (deep, r"list\(\.\.\.\)"), ([0] * 65, r"list\(\.\.\.\)")):
        opened = read_persistent(saved(tmp_path / "a.pkl", snapshot()), "something")
        for place, name in (
            (opened["ema"].state["_modules"]["model"].state["_init_kwargs"], "encoder_type"),
            (opened["ema"].state["_modules"]["model"].state["_init_kwargs"], "channel_mult"),
            (opened["ema"].state["_modules"]["model"].state["_init_kwargs"], "dropout"),
            (opened["ema"].state, "sigma_data"),
        ):
            before, place[name] = place[name], value
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("facm.pretrained.edm.read_persistent", lambda *_, read=opened: read)
                with pytest.raises(ValueError, match=rf"f: {name} = {shown}, expected|has {name} = {shown}, expected"):
                    edm_network(Path("f"))
            place[name] = before


def test_scalars_are_the_same_with_their_types_alone():
    for value, expected in ((1, 1), ([1, 1], [1, 1]), ((), ()), (None, None), ("a", "a")):
        assert _same(value, expected)
    alike = [(True, 1), (1.0, 1), ([1, True], [1, 1]), ((1, 1), [1, 1]), (1, 2), ([1], 1), (nested(), 1), ([1], [1, 1])]
    for value, expected in alike:
        assert not _same(value, expected)
    same = torch.ones(1)
    assert not _same(same, same)


def test_a_tensor_has_no_more_elements_than_its_numbers(tmp_path):
    numbers = torch.zeros(4)._typed_storage()
    for size, stride in (((2**27,), (0,)), ((5,), (0,)), ((3, 2), (1, 1))):
        tensor = Reduced(torch._utils._rebuild_tensor_v2, numbers, 0, size, stride, False, {})
        file = saved(tmp_path / "bad.pkl", {"x": Options(), "tensor": tensor})
        with pytest.raises(ValueError, match=r"bad.pkl holds a tensor of \d+ elements over 4: reading it could take"):
            read_persistent(file, "something")
    tensor = Reduced(torch._utils._rebuild_tensor_v2, numbers, 0, [4], [1], False, {})
    with pytest.raises(ValueError, match="size or stride is no tuple"):
        read_persistent(saved(tmp_path / "bad.pkl", {"x": Options(), "tensor": tensor}), "something")


def test_a_filter_of_another_shape_is_not_looked_at(tmp_path):
    content = edited(lambda c: song(c).enc["4x4_down"].conv0.register_buffer("resample_filter", torch.ones(4000)))
    with pytest.raises(ValueError, match=r"resample_filter is of shape \(4000,\), expected 0.25 everywhere in"):
        open_published(saved(tmp_path / "bad.pkl", content))


def test_an_archive_holds_its_numbers_plainly_and_once(tmp_path):
    good = archive(torch.zeros(1000)._typed_storage())
    zipped = io.BytesIO()
    torch.save(torch.zeros(1000)._typed_storage(), zipped)
    # the same without numbers behind its pickles: no keys, and so nothing read
    parts = io.BytesIO(good)
    for _ in range(4):
        for _ in pickletools.genops(parts):
            pass
    hollow = good[: parts.tell()] + b"\x80\x02].."
    hashed = b"".join([good[: parts.tell()], b"\x80\x02}", dag(), b"Ns.", good[parts.tell() :]])
    for content in (zipped.getvalue(), hollow, hashed):
        hostile = Reduced(torch.storage._load_from_bytes, content)
        file = saved(tmp_path / "bad.pkl", {"x": Options(), "tensor": hostile})
        with pytest.raises(ValueError, match="a tensor whose archive is damaged or names code"):
            read_persistent(file, "something")
    again = [Reduced(torch.storage._load_from_bytes, good) for _ in range(3)]
    file = saved(tmp_path / "bad.pkl", {"x": Options(), "tensors": again})
    with pytest.raises(ValueError, match="holds tensors larger than the file"):
        read_persistent(file, "something")


def record(**state):
    made = Record()
    made.state = state
    return made


def test_modules_have_so_many_names_and_so_long(monkeypatch):
    from facm.core.untrusted import persistence

    def chain(depth, name):
        inner = record()
        for _ in range(depth):
            inner = record(_modules={name: inner})
        return inner

    assert len(modules_of(chain(25, "a" * 9), Path("f"))) == 26
    for deep in (chain(30, "a" * 9), chain(5000, ""), record(_modules={str(i): None for i in range(1001)})):
        with pytest.raises(ValueError, match=r"f: .* names, expected at most 1000, with .* at most 256 characters"):
            modules_of(deep, Path("f"))
    monkeypatch.setattr(persistence, "MOST_MODULES", 20)
    with pytest.raises(ValueError, match="f: more than 20 modules, expected a network's"):
        modules_of(chain(20, "a"), Path("f"))
    assert len(modules_of(chain(19, "a"), Path("f"))) == 20


def test_weights_have_numbers_of_their_own():
    base = torch.ones(4)
    shared = record(_parameters={"a": base}, _buffers={"b": base[:2]})
    with pytest.raises(ValueError, match="f: b shares its numbers with another weight, expected its own"):
        weights_of(modules_of(shared, Path("f")), Path("f"))
