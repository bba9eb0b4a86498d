"""facm.distill: networks and data of other people's scripts, as objects."""

import importlib
import re
import warnings

import numpy as np
import pytest
import torch

import facm
from facm.api.convention import Convention, clearest, measured
from facm.core.types import Batch
from facm.data.given import given_data
from facm.runs.folder import RunFolder
from tests.api.shapes_parts import Any, Exact
from tests.training.run_parts import weights


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("noise_last", [False, True])
def test_the_convention_of_a_network_is_measured(scale, noise_last):
    net = Exact(scale, noise_last)
    errors = measured(net, Batch(torch.full((64, 3), 2.0)), ("x", "t", ""))
    expected = Convention(scale if noise_last else 0.0, scale)
    assert clearest(errors) == expected
    ours = expected.adapted(facm.given_network(net)).build()
    x, t = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), torch.linspace(0, 0.9, 64)
    torch.testing.assert_close(ours(x, t), Exact.velocity(x, t))


def test_a_network_that_has_learned_nothing_is_no_teacher(tmp_path):
    net, data = Any((3,)), torch.randn(64, 3)
    with pytest.raises(ValueError, match=r"convention cannot be told .* noise_at = 0, time_scale = 1"):
        facm.distill(net, data, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_velocity_of_the_other_sign_is_refused_with_the_line_to_write(tmp_path):
    class Negated(Exact):
        def forward(self, x, t):
            return -super().forward(x, t)

    torch.manual_seed(0)
    data = 2 + 0.1 * torch.randn(64, 3)
    with pytest.raises(ValueError, match=r"Negated predicts the negated velocity, .* Write: return -out"):
        facm.distill(Negated(1.0, True), data, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


SHAPES = {"vectors": (5,), "signals": (2, 16), "images": (1, 8, 8), "video": (3, 2, 4, 4)}


@pytest.mark.parametrize("kind", SHAPES)
def test_any_shape_is_distilled_resumed_and_loaded(tmp_path, kind):
    shape = SHAPES[kind]
    torch.manual_seed(0)
    net, data = Any(shape), 0.5 * torch.randn(64, *shape)
    how = {"images": 64, "batch_size": 16, "noise_at": 1, "time_scale": 1, "quiet": True}

    def stop(record):
        raise facm.StopTraining

    facm.distill(net, data, tmp_path / "whole", **how)
    student = facm.distill(net, data, tmp_path / "run", callbacks=[stop], **how)
    assert student.images_seen == 16
    student = facm.distill(net, data, tmp_path / "run", resume=True, **how)
    found, expected = weights(RunFolder(tmp_path / "run")), weights(RunFolder(tmp_path / "whole"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert student.sample(3).shape == (3, *shape)
    assert facm.load(tmp_path / "run", network=net).sample(2).shape == (2, *shape)
    file = student.export(tmp_path / "student.safetensors")
    assert torch.equal(facm.load(file, network=net).sample(2), student.sample(2))


def test_what_is_not_there_any_more_is_named(tmp_path, monkeypatch):
    torch.manual_seed(0)
    net, data = Any((3,)), torch.randn(64, 3)
    how = {"images": 32, "batch_size": 16, "noise_at": 0, "time_scale": 1, "quiet": True}
    facm.distill(net, data, tmp_path / "run", **how)
    with torch.no_grad():
        net.layer.bias += 1
    with pytest.raises(facm.runs.folder.RunFolderError, match=r"holds another run .*\(teacher, initial differ\)"):
        facm.distill(net, data, tmp_path / "run", resume=True, **how)
    monkeypatch.setattr("facm.networks.given._given", {})
    monkeypatch.setattr("facm.data.given._given", {})
    with pytest.raises(ValueError, match=r"data = .* were given from Python and are not here: .* facm\.resume\("):
        facm.resume(tmp_path / "run", network=Any((3,)))
    monkeypatch.setattr("facm.networks.given._given", {})
    with pytest.raises(ValueError, match=r"shapes_parts:Any' that was given .* facm\.load\(path, network=net\)"):
        facm.load(tmp_path / "run")
    student = facm.load(tmp_path / "run", network=Any((3,)))  # of other weights, which do not matter
    assert student.sample(2).shape == (2, 3)
    with pytest.raises(ValueError, match="has no data of its own to be measured against"):
        student.evaluate(num_samples=8)
    with pytest.raises(ValueError, match=r"data are .* and the run was made with"):
        facm.load(tmp_path / "run", network=net, data=torch.randn(64, 4))


class Items(torch.utils.data.Dataset):
    def __init__(self, items, length=True):
        self.items = items
        if not length:
            type(self).__len__ = None

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        if self.items[i] == "fails":
            raise OSError("disk on fire")
        return self.items[i]


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield torch.zeros(3)


X = torch.zeros(3)
BAD = [
    (Endless, r"data = Endless has no length, expected a data set whose samples are counted"),
    (lambda: (x for x in [X]), r"data = generator has no length or no data\[i\]"),
    (
        lambda: torch.utils.data.DataLoader([X]),
        r"data = a DataLoader, expected its data set, as in data =",
    ),
    (lambda: [], r"data = list is empty"),
    (lambda: None, r"data = NoneType has no length"),
    (lambda: Items(["fails"]), r"data: sample 0 cannot be read \(OSError: disk on fire\)"),
    (lambda: [(X, 1)], r"items have a label and classes = None: expected the number of classes"),
    (lambda: [{"foo": X}], r"data: sample 0 has the parts foo, expected the sample as one of x, image"),
    (lambda: ["word"], r"data: sample 0 is 'word', expected a tensor, an array or a picture"),
    (lambda: [torch.tensor(True)], r"data: sample 0 is torch\.bool of shape \(\)"),
    (lambda: (torch.zeros(3, 2), torch.zeros(4)), r"data: 3 samples and 4 labels, expected one label per sample"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message[:24] for _, message in BAD])
def test_data_that_cannot_be_read_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        given_data(make())


@pytest.mark.parametrize("prefetch", ["no", "yes"])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("fails", r"data: sample 7 cannot be read \(OSError: disk on fire\)"),
        (torch.zeros(4), r"data: sample 7 has shape \(4,\), and the first one \(3,\): expected samples of one shape"),
        (torch.full((3,), torch.nan), "sample 7 has non-finite values in x_1"),
    ],
    ids=["fails", "ragged", "nan"],
)
def test_a_sample_that_fails_while_training_is_named(tmp_path, bad, message, prefetch):
    data = Items([*(torch.randn(3) for _ in range(7)), bad, *(torch.randn(3) for _ in range(24))])
    engine = facm.Engine(prefetch=prefetch)
    with pytest.raises(ValueError, match=message):
        facm.distill(
            Any((3,)),
            data,
            tmp_path / "run",
            images=64,
            batch_size=4,
            noise_at=0,
            time_scale=1,
            quiet=True,
            engine=engine,
        )


def test_items_of_all_forms_are_samples():
    from PIL import Image

    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    read = given_data([{"image": Image.fromarray(pixels), "label": 2}], classes=3).open().read(np.array([0]))
    expected = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32)) / 127.5 - 1
    torch.testing.assert_close(read.x_1[0], expected)
    assert read.cond.tolist() == [2]
    assert given_data(np.zeros((5, 2), np.float32)).open().read(np.array([1])).x_1.shape == (1, 2)
    pair = given_data((torch.zeros(4, 2), torch.arange(4)), classes=4).open()
    assert pair.read(np.array([3, 1])).cond.tolist() == [3, 1]
    taken = given_data([{"a": X, "b": 1}], classes=2, item=lambda each: (each["a"], each["b"])).open()
    assert taken.read(np.array([0])).cond.tolist() == [1]
    assert given_data([(X, 1)], labels=False).open().num_classes is None
    mapping = given_data([(X, {"k": torch.zeros(2)})] * 2).open().read(np.array([0, 1]))
    assert mapping.cond["k"].shape == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": 3}, "network = 3, expected a trained torch.nn.Module, the folder of a run, or a pipeline"),
        ({"noise_at": 1}, "noise_at = 1 without time_scale: expected time_scale, too, or neither"),
        ({"noise_at": 0.5, "time_scale": 1}, "noise_at = 0.5, expected 0, or time_scale = 1"),
        ({"predicts": "x_0"}, "predicts = 'x_0', expected 'velocity' or 'noise'"),
        ({"time_name": "tau"}, "has the arguments x, t, and time_name = 'tau': expected time_name"),
        ({"lora_rank": 8}, "lora_rank is no argument of facm.distill for a network"),
        ({"network": torch.nn.Identity()}, "has the arguments input, and time_name = ''"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    arguments = {"network": Any((3,)), "data": torch.randn(8, 3), "out": tmp_path / "run", "quiet": True} | arguments
    with pytest.raises(ValueError, match=re.escape(message)):
        facm.distill(**arguments)
    assert not (tmp_path / "run").exists()


EXAMPLES = {"plain": (), "torchcfm": ("torchcfm", "ot"), "diffusers": ("diffusers",)}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_worked_examples(tmp_path, name, monkeypatch):
    for package in EXAMPLES[name]:
        pytest.importorskip(package, reason=f"{package} is not installed: pip install torchcfm")
    monkeypatch.syspath_prepend("examples")
    small = {"diffusers": {"channels": (16, 32)}, "torchcfm": {"channels": 32}}.get(name, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main = importlib.import_module(f"distill_{name}").main
        steps = 300 if name == "torchcfm" else 100  # its time embedding is of 1000 times: it learns slowly what time is
        student = main(str(tmp_path / "run"), steps=steps, images=128, **small)
    assert student.images_seen == 128
    assert student.sample(2).isfinite().all()


@pytest.mark.slow
def test_a_network_of_diffusers_is_opened_without_the_object(tmp_path, monkeypatch):
    from diffusers import UNet2DModel

    net = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    data = torch.zeros(32, 1, 8, 8)
    facm.distill(net, data, tmp_path / "run", images=16, batch_size=8, noise_at=1000, time_scale=1000, quiet=True)
    monkeypatch.setattr("facm.networks.given._given", {})
    assert facm.load(tmp_path / "run").sample(2).shape == (2, 1, 8, 8)
    file = facm.load(tmp_path / "run").export(tmp_path / "x.safetensors")
    assert facm.load(file).sample(2).shape == (2, 1, 8, 8)  # the file says the shape, for the network does not


@pytest.mark.slow
def test_a_dataset_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [np.full((8, 8), k, np.uint8) for k in range(4)], "label": [0, 1, 0, 1]}
    opened = given_data(datasets.Dataset.from_dict(rows, features=features)).open()
    batch = opened.read(np.array([3, 0]))
    assert opened.num_classes == 2
    assert batch.x_1.shape == (2, 1, 8, 8)
    assert batch.cond.tolist() == [1, 0]
