"""One evaluation's options: labels, quantisation, decoding, statistics from a file, and what the row says of them."""

import collections
from types import SimpleNamespace

import pytest
import torch

from facm.core.types import Batch
from facm.evaluation import Identity, build_reference, save_reference
from facm.evaluation.evaluate import evaluate
from facm.evaluation.evaluator import judge, judge_by_file
from facm.flow.conditions import Labels, Unconditional
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


def trained(folder, condition=None):
    objective = SimpleNamespace(condition=condition or Unconditional(), task=None)
    return SimpleNamespace(
        network=Network(), objective=objective, path=folder, evaluations=folder / "evaluations.jsonl",
        sigma_rel=0.1, which="EMA 0.1", images_seen=64, checkpoint_sha256="abc",
    )  # fmt: skip


CPU = torch.device("cpu")


@pytest.fixture
def judged():
    return judge(Images(), CPU, Identity())


def numbers(row):
    names = ("frechet_distance", "precision", "recall", "accuracy", "kid", "inception_score", "n")
    return {name: row[name] for name in names}


def test_the_row_has_its_provenance_and_is_what_was_logged(judged, tmp_path):
    row = evaluate(trained(tmp_path), Euler(1), judged, n=40, batch_size=16)
    assert logs.read(tmp_path / "evaluations.jsonl") == [{"run": str(tmp_path), **row}]
    expected = {
        "n": 40, "n_reference": 60, "keep": 10_000, "kept": 40, "kept_reference": 60, "labels": "none",
        "quantised": "rounded to 8 bits", "autoencoder": None, "reference_file": None, "reference_file_sha256": None,
        "features": "identity", "reference": judged.reference.fingerprint, "features_of_reference": "recorded",
        "splits": None, "kid_subsets": None, "metric_names": {}, "comparable_to_published": False,
        "not_comparable": ["the features 'identity' are not those of FID"], "seed": 0, "nfe": 1, "accuracy": None,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    few = evaluate(trained(tmp_path), Euler(1), judged, n=40, keep=9)
    assert (few["keep"], few["kept"], few["frechet_distance"]) == (9, 9, pytest.approx(row["frechet_distance"]))


def test_progress_is_told_after_every_batch(judged, tmp_path):
    said = []
    evaluate(trained(tmp_path), Euler(1), judged, n=40, batch_size=16, progress=lambda *at: said.append(at))
    assert said == [(16, 40), (32, 40), (40, 40)]


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
    judged = judge(Images(num_classes=2), CPU, SorterConfig())
    drawn = {}
    for how in ("balanced", "random"):
        subject = trained(tmp_path, Labels(2))
        row = evaluate(subject, Euler(1), judged, n=30, seed=7, batch_size=8, labels=how)
        assert row["labels"] == how
        classes = (noise(7, range(30), 0, (1, 2, 2))[:, 0, 0, 0] > 0).long()  # the network does not listen to labels
        labels = torch.tensor(subject.network.labels)
        assert row["accuracy"] == pytest.approx(float((classes == labels).double().mean()))
        drawn[how] = subject.network.labels
    assert drawn["balanced"] == balanced_labels(Labels(2), range(30)).tolist()
    assert drawn["random"] == random_labels(Labels(2), range(30), 7).tolist()


def test_an_unconditional_generator_has_no_accuracy_even_where_the_features_classify(tmp_path):
    judged = judge(Images(num_classes=2), CPU, SorterConfig())
    row = evaluate(trained(tmp_path), Euler(1), judged, n=30)
    assert (row["accuracy"], row["labels"]) == (None, "none")


def test_truncation_darkens_by_half_a_level(judged, tmp_path):
    means = {}
    for how in ("round", "truncate"):
        seen = []
        original = Identity().build(Images())
        original.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
        judged_again = judge(Images(), CPU, SimpleNamespace(build=lambda *_, e=original: e))
        seen.clear()
        row = evaluate(trained(tmp_path), Euler(1), judged_again, n=500, quantise=how)
        assert row["quantised"] == {"round": "rounded to 8 bits", "truncate": "truncated to 8 bits"}[how]
        x = torch.cat(seen)
        assert (((x + 1) * 127.5).round() / 127.5 - 1 - x).abs().max() < 1e-6
        means[how] = float(x.mean()) * 127.5
    assert means["round"] - means["truncate"] == pytest.approx(0.5, abs=0.03)
    # Real images hold bytes, and keep them.
    assert judged_again.reference.fingerprint == judged.reference.fingerprint


def test_latents_are_decoded_before_they_are_measured(judged, tmp_path):
    def decode(z):
        assert not torch.is_grad_enabled()
        assert z.shape[1:] == (4,)
        return z.reshape(-1, 1, 2, 2)

    row = evaluate(
        trained(tmp_path), Euler(1), judged, n=40, decode=decode, autoencoder="ae-123", shape=(4,), batch_size=16
    )
    direct = evaluate(trained(tmp_path), Euler(1), judged, n=40, batch_size=16)
    assert numbers(row) == numbers(direct)  # the same noise, in another shape
    assert (row["autoencoder"], direct["autoencoder"]) == ("ae-123", None)
    unnamed = evaluate(trained(tmp_path), Euler(1), judged, n=40, decode=decode, shape=(4,))
    assert unnamed["autoencoder"] == "unnamed"


def test_a_file_of_statistics_is_enough(tmp_path):
    built = build_reference(Images(), Sorter())
    save_reference(built, tmp_path / "stats.npz")
    judged = judge_by_file(tmp_path / "stats.npz", SorterConfig(), CPU)
    assert judged.data is None
    row = evaluate(trained(tmp_path, Labels(2)), Euler(1), judged, n=40, shape=(1, 2, 2))
    direct = evaluate(trained(tmp_path, Labels(2)), Euler(1), judge(Images(num_classes=2), CPU, SorterConfig()), n=40)
    assert numbers(row) == {**numbers(direct), "accuracy": None}  # whose classes the features know is not said
    assert direct["accuracy"] is not None
    assert row["reference"] == direct["reference"]
    assert row["reference_file"] == str(tmp_path / "stats.npz")
    assert len(row["reference_file_sha256"]) == 64
    with_data = judge_by_file(tmp_path / "stats.npz", SorterConfig(), CPU, dataset=Images())
    assert numbers(evaluate(trained(tmp_path), Euler(1), with_data, n=40)) == {**numbers(row), "accuracy": None}


def test_errors_come_before_any_sample(judged, tmp_path):
    save_reference(build_reference(Images(), Sorter()), tmp_path / "stats.npz")
    by_file = judge_by_file(tmp_path / "stats.npz", SorterConfig(), CPU)

    def refused(match, judged=judged, **options):
        subject = trained(tmp_path)
        subject.network.forward = lambda *_, **__: pytest.fail("sampled")
        with pytest.raises(ValueError, match=match):
            evaluate(subject, Euler(1), judged, **{"n": 40, **options})

    refused("n = 1, expected at least 2", n=1)
    refused("labels = 'sorted', expected 'balanced' or 'random'", labels="sorted")
    refused("quantise = 'floor', expected 'round' or 'truncate'", quantise="floor")
    refused("autoencoder = 'ae' without decode", autoencoder="ae")
    refused("shape = None with decode, expected the shape of one latent", decode=lambda z: z)
    refused("shape = None and the judge has no data set, expected the shape of one sample", by_file)
    refused(r"n = 2 samples for 2 features.*small_n=True", by_file, n=2, shape=(1, 2, 2))
    refused("keep = 0, expected at least 1", keep=0)
    with pytest.raises(ValueError, match=r"statistics from .*stats.npz and no data set"):
        by_file.dataset
    row = evaluate(trained(tmp_path), Euler(1), by_file, n=2, shape=(1, 2, 2), small_n=True)
    assert row["n"] == 2
