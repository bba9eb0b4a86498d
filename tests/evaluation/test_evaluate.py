"""One evaluation's options: labels, quantisation, decoding, statistics from a file, and what the row says of them."""

import collections
import dataclasses
import functools
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from facm.core.objective import NetworkInterface
from facm.core.types import Batch
from facm.distributed.collectives import in_order
from facm.evaluation import (
    Identity,
    Sampling,
    append_row,
    build_evaluator,
    build_reference,
    evaluator_from_statistics,
    save_reference,
)
from facm.evaluation.evaluate import evaluate
from facm.flow.conditions import Labels, Unconditional
from facm.latents.space import LatentSpace
from facm.pretrained.trained import Trained
from facm.runs import log as logs
from facm.sampling.generate import balanced_labels, noise, random_labels
from facm.sampling.methods import Euler


class Images:
    flip, shape = False, (1, 2, 2)

    def __init__(self, n=60, num_classes=None):
        self.num_classes = num_classes
        self.x = torch.randint(0, 256, (n, 1, 2, 2), generator=torch.Generator().manual_seed(0)) / 127.5 - 1

    def __len__(self):
        return len(self.x)

    def read(self, indices):
        return Batch(self.x[torch.as_tensor(indices)])


class Network(torch.nn.Module):
    """Its one Euler step from noise x ends at x / 4; it remembers its labels."""

    def __init__(self):
        super().__init__()
        self.labels = []

    def forward(self, x, t, cond=None):
        if cond is not None:
            self.labels += cond.tolist()
        return -0.75 * x


class Sorter(torch.nn.Module):
    """Two features, and two classes by the sign of the first pixel."""

    num_features, num_classes, identity = 2, 2, "sorter"

    def forward(self, x):
        return x.flatten(1)[:, :2]

    def classify(self, x):
        first = x.flatten(1)[:, :1]
        return torch.cat([-first, first], 1)


class SorterConfig:
    def build(self, dataset, device):
        return Sorter()


def trained(folder, condition=None, shape=(1, 2, 2)):
    interface = NetworkInterface(condition or Unconditional())
    return Trained(Network(), None, interface, LatentSpace(shape), folder, "EMA 0.1", 0.1, 64, "abc")


CPU = torch.device("cpu")


@pytest.fixture
def evaluator():
    return build_evaluator(Images(), CPU, Identity())


def measured(subject, evaluator, n=40, **options):
    """The row as it is recorded."""
    return evaluate(subject, Sampling(Euler(1), n, **options), evaluator).to_json()


def numbers(row):
    names = ("frechet_distance", "precision", "recall", "accuracy", "kid", "inception_score", "n")
    return {name: row[name] for name in names}


def test_the_row_has_its_provenance_and_is_what_was_logged(evaluator, tmp_path):
    subject = trained(tmp_path)
    kept = evaluate(subject, Sampling(Euler(1), 40, batch_size=16), evaluator)
    assert not subject.evaluations.exists(), "the caller keeps it"
    append_row(subject, kept)
    row = kept.to_json()
    assert logs.read(tmp_path / "evaluations.jsonl") == [{"run": str(tmp_path), **row}]
    expected = {
        "n": 40, "n_reference": 60, "keep": 10_000, "kept": 40, "kept_reference": 60, "labels": "none",
        "quantised": "rounded to 8 bits", "autoencoder": None, "reference_file": None, "reference_file_sha256": None,
        "features": "identity", "reference": evaluator.reference.fingerprint, "features_of_reference": "recorded",
        "splits": None, "kid_subsets": None, "metric_names": {}, "comparable_to_published": False,
        "not_comparable": ["the features 'identity' are not those of FID"], "seed": 0, "nfe": 1, "accuracy": None,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    few = measured(trained(tmp_path), dataclasses.replace(evaluator, keep=9))
    assert (few["keep"], few["kept"], few["frechet_distance"]) == (9, 9, pytest.approx(row["frechet_distance"]))


@pytest.mark.parametrize("name", ["identity", "num_features", "num_classes"])
def test_features_without_what_is_recorded_are_named(name):
    extractor = Identity().build(Images(), CPU)
    delattr(extractor, name)
    own = SimpleNamespace(build=lambda *_: extractor)
    with pytest.raises(ValueError, match=f"made an object of type _Flatten without {name}, expected a "):
        build_evaluator(Images(), CPU, own)


def test_progress_is_told_after_every_batch(evaluator, tmp_path):
    said = []
    telling = dataclasses.replace(evaluator, progress=lambda *at: said.append(at))
    measured(trained(tmp_path), telling, batch_size=16)
    assert said == [(16, 40), (32, 40), (40, 40)]


def test_samples_that_are_made_ahead_are_measured_the_same(evaluator, tmp_path, monkeypatch):
    waiting = numbers(measured(trained(tmp_path), evaluator, batch_size=16))
    monkeypatch.setattr("facm.evaluation.evaluate.in_order", functools.partial(in_order, ahead=True))
    assert numbers(measured(trained(tmp_path), evaluator, batch_size=16)) == waiting


def test_data_that_are_not_those_of_training_are_said(evaluator, tmp_path):
    data, subject = Images(), trained(tmp_path)
    data.fingerprint = "now"
    subject = dataclasses.replace(subject, data=SimpleNamespace(open=lambda: data), trained_on="then")
    with pytest.warns(UserWarning, match="trained on data with the fingerprint then, and they are now now"):
        measured(subject, evaluator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured(dataclasses.replace(subject, trained_on="now"), evaluator)
        measured(dataclasses.replace(subject, trained_on=None), evaluator)


def test_random_labels_are_a_function_of_seed_and_index():
    labels = random_labels(Labels(10), range(4000), seed=3)
    assert labels.dtype == torch.int64
    assert labels[70:75].equal(random_labels(Labels(10), range(70, 75), seed=3))
    assert not labels.equal(random_labels(Labels(10), range(4000), seed=4))
    counts = collections.Counter(labels.tolist())
    assert set(counts) == set(range(10))
    assert 330 < min(counts.values()) < max(counts.values()) < 470  # 400 +- 19
    assert len(set(counts.values())) > 1
    assert random_labels(Unconditional(), range(3), seed=0) is None


def test_labels_are_drawn_as_asked(tmp_path):
    evaluator = build_evaluator(Images(num_classes=2), CPU, SorterConfig())
    drawn = {}
    for how in ("balanced", "random"):
        subject = trained(tmp_path, Labels(2))
        row = measured(subject, evaluator, 30, seed=7, batch_size=8, labels=how)
        assert row["labels"] == how
        classes = (noise(7, range(30), 0, (1, 2, 2))[:, 0, 0, 0] > 0).long()  # the network does not listen to labels
        labels = torch.tensor(subject.network.labels)
        assert row["accuracy"] == pytest.approx(float((classes == labels).double().mean()))
        drawn[how] = subject.network.labels
    assert drawn["balanced"] == balanced_labels(Labels(2), range(30)).tolist()
    assert drawn["random"] == random_labels(Labels(2), range(30), 7).tolist()


def test_an_unconditional_generator_has_no_accuracy_even_where_the_features_classify(tmp_path):
    evaluator = build_evaluator(Images(num_classes=2), CPU, SorterConfig())
    row = measured(trained(tmp_path), evaluator, 30)
    assert (row["accuracy"], row["labels"]) == (None, "none")


def test_truncation_darkens_by_half_a_level(evaluator, tmp_path):
    means = {}
    for how in ("round", "truncate"):
        seen = []
        original = Identity().build(Images())
        original.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
        again = build_evaluator(Images(), CPU, SimpleNamespace(build=lambda *_, e=original: e))
        seen.clear()
        row = measured(trained(tmp_path), dataclasses.replace(again, quantise=how), 500)
        assert row["quantised"] == {"round": "rounded to 8 bits", "truncate": "truncated to 8 bits"}[how]
        x = torch.cat(seen)
        assert (((x + 1) * 127.5).round() / 127.5 - 1 - x).abs().max() < 1e-6
        means[how] = float(x.mean()) * 127.5
    assert means["round"] - means["truncate"] == pytest.approx(0.5, abs=0.03)
    # Real images hold bytes, and keep them.
    assert again.reference.fingerprint == evaluator.reference.fingerprint


def test_latents_are_decoded_before_they_are_measured(evaluator, tmp_path):
    class Unflatten:
        identity = "ae-123"

        def __call__(self, z):
            assert not torch.is_grad_enabled()
            assert z.shape[1:] == (4,)
            return z.reshape(-1, 1, 2, 2)

    row = measured(trained(tmp_path, shape=(4,)), evaluator, decoder=Unflatten(), batch_size=16)
    direct = measured(trained(tmp_path), evaluator, batch_size=16)
    assert numbers(row) == numbers(direct)  # the same noise, in another shape
    assert (row["autoencoder"], direct["autoencoder"]) == ("ae-123", None)


@dataclass(frozen=True)
class Midpoint:
    """A sampler of a user's own."""

    nfe: int = 2

    def check(self, interface):
        pass

    def solve(self, fields, x_0, fresh_noise):
        F = fields.velocity()
        half = x_0 + F(x_0, torch.zeros(len(x_0))) / 2
        return x_0 + F(half, torch.full((len(x_0),), 0.5))


def test_a_sampler_of_ones_own_is_measured_and_recorded(evaluator, tmp_path):
    """On the field -3/4 x its step ends at (1 - 3/4 (1 - 3/8)) x, so the samples have 0.53 of the noise's deviation."""
    subject = trained(tmp_path)
    row = evaluate(subject, Sampling(Midpoint(), 40), evaluator)
    append_row(subject, row)
    logged = logs.read(subject.evaluations)[0]
    assert (logged["sampler"], logged["nfe"]) == ("midpoint", 2)
    assert logged["method"] == {"type": f"{__name__}:Midpoint", "nfe": 2}
    assert logged["frechet_distance"] != measured(subject, evaluator)["frechet_distance"]
    x = 0.53125 * noise(0, range(40), 0, (1, 2, 2))
    expected = evaluator.measure(40)
    expected.update(x)
    assert logged["frechet_distance"] == pytest.approx(expected.result().frechet_distance)


def test_a_file_of_statistics_is_enough(tmp_path):
    built = build_reference(Images(), Sorter())
    save_reference(built, tmp_path / "stats.npz")
    evaluator = evaluator_from_statistics(tmp_path / "stats.npz", SorterConfig(), CPU)
    assert evaluator.data is None
    row = measured(trained(tmp_path, Labels(2)), evaluator)
    direct = measured(trained(tmp_path, Labels(2)), build_evaluator(Images(num_classes=2), CPU, SorterConfig()))
    assert numbers(row) == {**numbers(direct), "accuracy": None}  # whose classes the features know is not said
    assert direct["accuracy"] is not None
    assert row["reference"] == direct["reference"]
    assert row["reference_file"] == str(tmp_path / "stats.npz")
    assert len(row["reference_file_sha256"]) == 64
    with_data = evaluator_from_statistics(tmp_path / "stats.npz", SorterConfig(), CPU, dataset=Images())
    assert numbers(measured(trained(tmp_path), with_data)) == {**numbers(row), "accuracy": None}


def test_errors_come_before_any_sample(evaluator, tmp_path):
    save_reference(build_reference(Images(), Sorter()), tmp_path / "stats.npz")
    by_file = evaluator_from_statistics(tmp_path / "stats.npz", SorterConfig(), CPU)

    def refused(match, evaluator=evaluator, n=40, sampling=None, **settings):
        subject = trained(tmp_path)
        subject.network.forward = lambda *_, **__: pytest.fail("sampled")
        with pytest.raises(ValueError, match=match):
            measured(subject, dataclasses.replace(evaluator, **settings), n, **(sampling or {}))

    refused("n = 1, expected at least 2", n=1)
    refused("labels = 'sorted', expected 'balanced' or 'random'", sampling={"labels": "sorted"})
    refused("batch_size = 0, expected at least 1", sampling={"batch_size": 0})
    refused("quantise = 'floor', expected 'round' or 'truncate'", quantise="floor")
    refused(r"n = 2 samples for 2 features.*small_n=True", by_file, n=2)
    refused("keep = 0, expected at least 1", keep=0)
    with pytest.raises(ValueError, match=r"statistics from .*stats.npz and no data set"):
        by_file.dataset
    assert measured(trained(tmp_path), dataclasses.replace(by_file, small_n=True), 2)["n"] == 2
