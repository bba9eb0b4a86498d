"""Statistics files: those of other programs and our own, and every way in which one can be wrong."""

import hashlib
import io
import os
import pickle
import zipfile
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from facm.core.types import Batch
from facm.evaluation import Identity, Measure, build_reference, load_reference, save_reference


class Pixels:
    num_classes, flip, shape = None, False, (1, 2, 2)

    def __init__(self, n=50, seed=0):
        self.bytes = torch.randint(0, 256, (n, 1, 2, 2), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)

    def __len__(self):
        return len(self.bytes)

    def read(self, indices):
        return Batch(self.bytes[torch.as_tensor(indices)] / 127.5 - 1)


@pytest.fixture
def extractor():
    return Identity().build(Pixels())


@pytest.fixture
def built(extractor):
    return build_reference(Pixels(), extractor, keep=20)


def content(reference, **changes):
    both = {"mu": reference.mean.numpy(), "sigma": reference.covariance.numpy(), **changes}
    return {name: value for name, value in both.items() if value is not None}


def test_our_own_file_comes_back_as_it_was(built, extractor, tmp_path):
    file = tmp_path / "new" / "stats.npz"
    save_reference(built, file)
    read = load_reference(file, extractor)
    for field in fields(built):
        if field.name in ("mean", "covariance", "rows"):
            assert getattr(read, field.name).equal(getattr(built, field.name))
        elif field.name not in ("file", "file_sha256"):
            assert getattr(read, field.name) == getattr(built, field.name), field.name
    assert (read.n, read.shape, read.assumed, len(read.rows)) == (50, (1, 2, 2), False, 20)
    assert (read.file, read.file_sha256) == (str(file), hashlib.sha256(file.read_bytes()).hexdigest())
    assert [path.name for path in file.parent.iterdir()] == ["stats.npz"]  # nothing partial is left
    with np.load(file, allow_pickle=False) as plain:  # and other programs can read it
        assert np.array_equal(plain["mu"], built.mean)
        assert np.array_equal(plain["sigma"], built.covariance)
    again = tmp_path / "again.npz"
    save_reference(replace(read, n=None, shape=None), again)
    assert (load_reference(again, extractor).n, load_reference(again, extractor).shape) == (None, None)


def test_a_file_is_never_overwritten_and_a_failed_write_leaves_nothing(built, tmp_path):
    file = tmp_path / "stats.npz"
    file.write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"stats.npz exists and is not overwritten"):
        save_reference(built, file)
    assert file.read_bytes() == b"precious"
    with pytest.raises(ValueError, match=r"could not write .*stats.npz/x.npz"):
        save_reference(built, file / "x.npz")


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_published_layouts_are_read(built, extractor, tmp_path, kind):
    extra = {"mu_s": np.zeros(3), "sigma_s": np.eye(3), "arr_0": np.zeros((4, 2, 2, 1), np.uint8)}
    mu, sigma = (value.numpy().astype(kind) for value in (built.mean, built.covariance))
    np.savez(tmp_path / "adm.npz", mu=mu, sigma=sigma, **extra)
    read = load_reference(tmp_path / "adm.npz", extractor)
    torch.testing.assert_close(read.mean, built.mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(read.covariance, built.covariance, rtol=1e-6, atol=1e-7)
    assert (read.n, read.shape, read.assumed, len(read.rows)) == (None, None, True, 0)
    assert read.features == extractor.identity
    own = hashlib.sha256(read.mean.numpy().tobytes() + read.covariance.numpy().tobytes()).hexdigest()
    assert read.fingerprint == own
    measure = Measure(extractor, read)
    measure.update(Pixels().read(range(50)).x_1)
    result = measure.result()
    assert result.frechet_distance == pytest.approx(0, abs=1e-6)
    assert (result.precision, result.kid, result.n_reference, result.features_of_reference) == (
        None,
        None,
        None,
        "assumed",
    )
    with pytest.raises(ValueError, match=r"shape \(5, 4\), expected images \(B, C, H, W\)"):
        measure.update(torch.zeros(5, 4))


def test_the_number_of_samples_is_read_where_the_file_says_it(built, extractor, tmp_path):
    np.savez(tmp_path / "n.npz", **content(built, n=np.array(50_000)))
    assert load_reference(tmp_path / "n.npz", extractor).n == 50_000


def test_images_in_the_file_become_rows_when_asked_for(built, extractor, tmp_path):
    pixels = Pixels(9).bytes.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "adm.npz", **content(built, arr_0=pixels))
    read = load_reference(tmp_path / "adm.npz", extractor, images=True, keep=5, batch_size=2)
    expected = (Pixels(9).bytes / 127.5 - 1).flatten(1)[[0, 2, 4, 6, 8]]
    torch.testing.assert_close(read.rows, expected, rtol=0, atol=1e-6)
    np.savez(tmp_path / "float.npz", **content(built, arr_0=pixels / 255))
    with pytest.raises(ValueError, match=r"arr_0 is float64 \(9, 2, 2, 1\), expected images, uint8"):
        load_reference(tmp_path / "float.npz", extractor, images=True)
    np.savez(tmp_path / "none.npz", **content(built))
    with pytest.raises(ValueError, match=r"none.npz has no arr_0; it has mu, sigma"):
        load_reference(tmp_path / "none.npz", extractor, images=True)


def test_wrong_files_are_refused_by_name(built, extractor, tmp_path):
    skew, inf, negative = built.covariance.numpy().copy(), built.mean.numpy().copy(), built.covariance.numpy().copy()
    skew[0, 1] += 0.01
    inf[2] = np.inf
    negative[1, 1] = -1
    wide = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    cases = [
        (wide, r"2048 features in the file, the extractor 'identity' has 4"),
        ({"mu": np.zeros(4), "cov": np.eye(4)}, "has no sigma; it has mu, cov"),
        ({"arr_0": np.zeros(4)}, "has no mu and no sigma; it has arr_0"),
        (content(built, sigma=skew), r"sigma is not symmetric \(by up to 0.01\)"),
        (content(built, mu=inf), "mu or sigma has entries that are not finite"),
        (content(built, sigma=negative), "sigma has a negative variance"),
        (content(built, sigma=np.eye(3)), r"mu \(4,\) and sigma \(3, 3\), expected \(F,\) and \(F, F\)"),
        (content(built, mu=np.zeros(4, int)), "mu is int64, expected floating point"),
        (content(built, features=np.array("other-123")), "made with the features 'other-123', expected .* 'identity'"),
        (content(built, rows=np.zeros((5, 3))), r"rows \(5, 3\), expected finite ones of shape \(N, 4\)"),
        (
            content(built, mu=np.array([None] * 4)),
            "cannot be read.*array of dtype.*O.*expected an .npz with mu and sigma",
        ),
    ]
    for number, (arrays, message) in enumerate(cases):
        file = tmp_path / f"{number}.npz"
        np.savez(file, **arrays)
        with pytest.raises(ValueError, match=f"{number}.npz.*{message}"):
            load_reference(file, extractor)
    with pytest.raises(ValueError, match=r"none.npz: there is no such file; expected an .npz with mu and sigma"):
        load_reference(tmp_path / "none.npz", extractor)
    np.save(tmp_path / "one.npy", np.zeros(3))
    whole = (tmp_path / "0.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"mu": 1}))
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("one.npy", "cut.npz", "pickle.npz", "empty.npz"):
        with pytest.raises(ValueError, match=f"{name} cannot be read.*; expected an .npz with mu and sigma"):
            load_reference(tmp_path / name, extractor)


def with_header(file, name, shape, descr="<f8", size=64):
    """An .npz whose array ``name`` claims a shape beside ``size`` bytes."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": descr, "fortran_order": False, "shape": shape})
    arrays = {"mu": np.zeros(4), "sigma": np.eye(4)}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, value in {**arrays, name: None}.items():
            content = io.BytesIO()
            if value is not None:
                np.save(content, value)
            else:
                content.write(head.getvalue() + bytes(size))
            if key != name or value is None:
                archive.writestr(f"{key}.npy", content.getvalue())
    return file


@pytest.mark.parametrize(
    ("name", "shape", "descr", "size", "message"),
    [
        ("mu", (2**50,), "<f8", 64, "mu has the shape"),
        ("mu", (2**40,), "<f8", 64, "mu is float64 .*, which its entry does not hold"),
        ("sigma", (2**23, 2**25), "<f8", 64, "sigma is float64 .*, which its entry does not hold"),
        ("mu", (4,), "|O", 64, "mu is an array of dtype"),
        ("mu", (-4,), "<f8", 64, "mu has the shape"),
        ("features", (), "<U100000", 400_000, "features has 400000 bytes, expected at most 65536"),
        ("n", (1000,), "<i8", 8000, "n has 8000 bytes, expected at most 64"),
        ("rows", (2**26,), "|u1", 2**26, "it unpacks to .* bytes, expected at most 67108864"),
    ],
)
def test_claims_of_a_file_are_held_against_it_before_anything_is_read(
    extractor, tmp_path, name, shape, descr, size, message
):
    file = with_header(tmp_path / "a.npz", name, shape, descr, size)
    with pytest.raises(ValueError, match=f"a.npz.*{message}"):
        load_reference(file, extractor)


def test_what_is_no_regular_file_is_no_reference(extractor, tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "endless.npz").symlink_to("/dev/zero")
    for name in ("pipe.npz", "endless.npz"):
        with pytest.raises(ValueError, match=f"{name} is a .*, expected a regular file"):
            load_reference(tmp_path / name, extractor)
