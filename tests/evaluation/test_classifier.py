"""The classifier trained on the spot: accuracy, scale of its distances, determinism, cache."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from facm.core.types import Batch
from facm.evaluation import Measure, SmallClassifier, build_reference, identity_of, reference_floor
from facm.evaluation.classifier import SmallClassifierNetwork, _augmented


class Labelled:
    flip = False

    def __init__(self, x, labels, num_classes=10):
        self.x, self.labels, self.num_classes, self.shape = x, labels, num_classes, tuple(x.shape[1:])

    def __len__(self):
        return len(self.x)

    def read(self, indices):
        chosen = torch.as_tensor(indices)
        return Batch(self.x[chosen], None if self.labels is None else self.labels[chosen])


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    order = np.random.default_rng(0).permutation(len(x))
    x, labels = x[order], torch.tensor(labels)[order]
    held_out = len(x) // 5
    return Labelled(x[held_out:], labels[held_out:]), Labelled(x[:held_out], labels[:held_out])


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads on busy cores mostly wait for each other
    try:
        return SmallClassifier(epochs=10, cache=str(tmp_path_factory.mktemp("cache"))).build(digits[0], "cpu")
    finally:
        torch.set_num_threads(threads)


def tiny(seed=0, n=24, shape=(1, 8, 8)):
    rng = torch.Generator().manual_seed(seed)
    return Labelled(torch.rand(n, *shape, generator=rng) * 2 - 1, torch.arange(n) % 3, num_classes=3)


def quick(path, **changes):
    return SmallClassifier(**{"epochs": 1, "width": 8, "num_features": 6, "cache": str(path), **changes})


def cached(path):
    return sorted((path / "classifiers").iterdir())


@pytest.mark.slow
def test_held_out_accuracy_and_scale_of_the_distances_on_digits(digits, trained):
    real, held_out = digits
    reference = build_reference(real, trained)

    def measured(x, labels):
        measure = Measure(trained, reference)
        measure.update(x, labels)
        return measure.result()

    unseen = measured(held_out.x, held_out.labels)
    assert unseen.accuracy >= 0.98
    assert min(unseen.precision, unseen.recall) > 0.8
    floor = reference_floor(real, trained)
    assert 0.05 < floor < 0.5
    noise = torch.randn(real.x.shape, generator=torch.Generator().manual_seed(0))
    distances = [measured(real.x + sd * noise, real.labels).frechet_distance for sd in (0.1, 0.2, 0.5, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] < floor < distances[2] / 3
    pure = measured(noise, real.labels)
    assert pure.frechet_distance > 10
    assert pure.accuracy < 0.3
    assert measured(real.x[:1].expand(99, -1, -1, -1), real.labels[:1].expand(99)).frechet_distance > 64


def test_features_are_standardised_and_independent_of_the_batch(digits, trained):
    x = digits[0].x
    features = trained(x)
    assert features.shape == (len(x), trained.num_features)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.mean(0), torch.zeros(64), rtol=0, atol=1e-4)
    assert float(features.var(0).mean()) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(trained.train()(x[:1]), features[:1], rtol=1e-4, atol=1e-4)
    assert trained.classify(x[:5]).shape == (5, 10)
    assert not any(p.requires_grad for p in trained.parameters())


def test_same_seed_same_weights_and_the_global_random_state_stays(tmp_path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = quick(tmp_path / "a").build(tiny(), "cpu")
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(2)
    np.random.seed(2)
    with torch.inference_mode():
        second = quick(tmp_path / "b").build(tiny(), "cpu")
    assert first.identity == second.identity
    for key, value in first.state_dict().items():
        assert value.equal(second.state_dict()[key]), key
    assert quick(tmp_path / "a", seed=1).build(tiny(), "cpu").identity != first.identity


def test_cache_is_used_and_named_after_all_that_matters(tmp_path, monkeypatch):
    first = quick(tmp_path).build(tiny(), "cpu")
    (file,) = cached(tmp_path)
    written = file.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("facm.evaluation.classifier._train", lambda *_: pytest.fail("trained again"))
        again = quick(tmp_path).build(tiny(), "cpu")
    assert again.identity == first.identity
    assert again(tiny().x).equal(first(tiny().x))
    assert file.stat().st_mtime_ns == written

    relabelled, moved = tiny(), tiny()
    relabelled.labels = relabelled.labels.flip(0)
    moved.x = moved.x.clone()
    moved.x[3, 0, 2, 2] += 1e-3
    for config, dataset in [(quick(tmp_path), relabelled), (quick(tmp_path), moved), (quick(tmp_path, seed=5), tiny())]:
        config.build(dataset, "cpu")
    assert len(cached(tmp_path)) == 4  # and no temporary file is left


def test_a_cache_that_cannot_be_written_is_named_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for cache in ("file", "file/below"):
        with pytest.raises(ValueError, match=r"cannot write into the cache .*file.*: set FACM_CACHE to a folder"):
            quick(tmp_path / cache).build(tiny())
    monkeypatch.setattr("facm.evaluation.classifier.os.access", lambda *asked: False)
    with pytest.raises(ValueError, match=r"cannot write .*Permission denied.*FACM_CACHE"):
        quick(tmp_path / "denied").build(tiny())


def test_a_cache_that_is_only_read_serves_what_it_holds(tmp_path, monkeypatch):
    made = quick(tmp_path).build(tiny())
    monkeypatch.setattr("facm.evaluation.classifier.os.access", lambda *asked: False)
    assert quick(tmp_path).build(tiny()).identity == made.identity


def test_without_a_home_the_cache_is_to_be_named(monkeypatch):
    monkeypatch.delenv("FACM_CACHE", raising=False)

    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(ValueError, match=r"no home folder: set FACM_CACHE"):
        SmallClassifier(epochs=1, width=8).build(tiny())


def test_cache_folder_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FACM_CACHE", str(tmp_path / "env"))
    quick(tmp_path).build(tiny(), "cpu")
    SmallClassifier(epochs=1, width=8).build(tiny(), "cpu")
    assert len(cached(tmp_path)) == len(cached(tmp_path / "env")) == 1


@pytest.mark.parametrize("damage", ["truncated", "empty", "other network"])
def test_corrupt_cache_is_replaced_with_a_warning(tmp_path, damage):
    first = quick(tmp_path).build(tiny(), "cpu")
    (file,) = cached(tmp_path)
    good = file.read_bytes()
    if damage == "other network":
        quick(tmp_path / "other", num_features=7).build(tiny(), "cpu")
        file.write_bytes(cached(tmp_path / "other")[0].read_bytes())
    else:
        file.write_bytes(good[: len(good) // 2 if damage == "truncated" else 0])
    with pytest.warns(RuntimeWarning, match=r"(?s)corrupt.*training the classifier again"):
        again = quick(tmp_path).build(tiny(), "cpu")
    assert again.identity == first.identity
    assert file.read_bytes() == good


@pytest.mark.parametrize("shape", [(3, 9, 13), (1, 28, 28), (3, 64, 64)])
def test_other_image_shapes(tmp_path, shape):
    dataset = tiny(shape=shape, n=6)
    dataset.flip = True
    network = quick(tmp_path).build(dataset, "cpu")
    assert network(dataset.x).shape == (6, 6)
    assert network.classify(dataset.x).shape == (6, 3)


def test_augmentation_shifts_by_one_pixel_and_mirrors_only_where_allowed():
    rng = torch.Generator().manual_seed(0)
    x = torch.zeros(400, 1, 9, 9)
    x[:, :, 4, 4], x[:, :, 4, 2] = 1, 2  # the 2 lies left of the 1

    def places(flip):
        moved = _augmented(x, flip, rng)
        assert (moved.sum((1, 2, 3)) == 3).all()
        ones, twos = (moved == 1).nonzero()[:, 2:], (moved == 2).nonzero()[:, 2:]
        return {tuple(p) for p in ones.tolist()}, set((ones - twos)[:, 1].tolist())

    around = {(i, j) for i in (3, 4, 5) for j in (3, 4, 5)}
    assert places(False) == (around, {2})
    assert places(True) == (around, {2, -2})


def test_identity_follows_the_weights():
    network = SmallClassifierNetwork((1, 8, 8), 3, 8, 6)
    before = identity_of("name", network)
    assert before.startswith("name-")
    assert len(before) == len("name-") + 16
    assert before == identity_of("name", network)
    network.scale.mul_(1.0001)
    assert before != identity_of("name", network)


def test_errors_say_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match="width = 12, expected a multiple of 8"):
        SmallClassifier(width=12)
    with pytest.raises(ValueError, match="epochs = 0, expected at least 1"):
        SmallClassifier(epochs=0)
    x = tiny().x
    for dataset, message in [
        (Labelled(x, None, num_classes=None), "num_classes = None, expected one with class labels"),
        (Labelled(x, None), r"labels None, expected int64 \(24,\)"),
        (Labelled(x, torch.arange(24)), r"labels run over \[.*23\], expected \[0, 10\)"),
        (Labelled(x[:, 0], torch.zeros(24).long()), r"shape \(8, 8\), expected \(C, H, W\)"),
        (Labelled(x[..., :7], torch.zeros(24).long()), r"shape \(1, 8, 7\), expected .* sides >= 8"),
        (Labelled(x[:1], torch.zeros(1).long()), "n = 1 samples, expected at least 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            quick(tmp_path).build(dataset, "cpu")
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        quick(tmp_path).build(Labelled(x / 0, torch.zeros(24).long()), "cpu")


def test_large_data_sets_are_passed_over_less_often():
    class Many:
        def __init__(self, n):
            self.n = n

        def __len__(self):
            return self.n

    for n, passes in ((1_797, 15), (10_000, 10), (60_000, 1), (1_000_000, 1)):
        assert SmallClassifier()._passes(Many(n)) == passes
    assert SmallClassifier(epochs=3)._passes(Many(60_000)) == 3
