"""What is kept of the real data: computed from a data set, or read from a file of statistics."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from facm.core.files import TakenError, atomically
from facm.core.hashing import file_sha256
from facm.core.types import Dataset
from facm.core.untrusted.arrays import Claim, claim_of, read_array, rows_of
from facm.core.untrusted.zip import Archive, Damaged, open_zip
from facm.evaluation.features import FeatureExtractor, check_positive, read_blocks, real_features
from facm.evaluation.frechet import Moments, frechet_distance

KEEP = 10_000
MOST = {"mu": 2**20, "sigma": 2**30, "n": 64, "features": 2**16, "fingerprint": 2**16, "rows": 2**30, "shape": 1024}
"""The arrays of a file that are used, and how many bytes each may have."""
EXPECTED = "expected an .npz with mu and sigma"
MOST_IMAGE = 2**26
"""Bytes of an image in a file."""


@dataclass(frozen=True)
class Reference:
    """The real data in one feature space; see :func:`build_reference` and :func:`load_reference`.

    mean: of the features, (F,) float64.
    covariance: of the features, (F, F) float64.
    rows: features of some samples, (<= keep, F) float32, for precision, recall and kernel distance; 0 rows where a file
        has none.
    n: samples behind the statistics; None where a file does not say.
    shape: of one sample; None: images of a size that the file does not say.
    fingerprint: sha256 of all real features, in order, or, where those are unknown, of the statistics.
    features: identity of the feature network.
    file: where the statistics were read, or None.
    file_sha256: its hash.
    assumed: whether the file does not say which features these are, so that they were taken to be the extractor's, as
        with published statistics.
    """

    mean: Tensor = field(repr=False)
    covariance: Tensor = field(repr=False)
    rows: Tensor = field(repr=False)
    n: int | None
    shape: tuple[int, ...] | None
    fingerprint: str
    features: str
    file: str | None = None
    file_sha256: str | None = None
    assumed: bool = False


def build_reference(
    dataset: Dataset, extractor: FeatureExtractor, *, keep: int = KEEP, batch_size: int = 500
) -> Reference:
    """Statistics of all samples of ``dataset``; ``keep`` of them, evenly spaced (a data set may be sorted by class),
    stay for precision and recall.

    Raises ValueError below two samples, for non-finite samples and for images (C, H, W) outside [-1, 1].
    """
    n = len(dataset)
    if n < 2:
        raise ValueError(f"the data set has n = {n} samples, expected at least 2")
    check_positive(keep=keep, batch_size=batch_size)
    kept = torch.zeros(n, dtype=torch.bool)
    kept[torch.linspace(0, n - 1, min(n, keep), dtype=torch.float64).round().long()] = True
    moments, digest, rows = Moments(extractor.num_features), hashlib.sha256(), []
    for batch in read_blocks(dataset, np.arange(n), batch_size):
        start = moments.n
        found = real_features(extractor, batch.x_1)
        moments.add(found)
        digest.update(found.numpy().data)
        rows.append(found[kept[start : moments.n]])
    return Reference(
        moments.mean,
        moments.covariance(),
        torch.cat(rows),
        n,
        tuple(dataset.shape),
        digest.hexdigest(),
        extractor.identity,
    )


def reference_floor(dataset: Dataset, extractor: FeatureExtractor, *, seed: int = 0, batch_size: int = 500) -> float:
    """Frechet distance of a random half of the real samples to the other half: what a perfect generator would score
    with that few samples, and so the value below which differences mean nothing.

    Raises ValueError below four samples.
    """
    n = len(dataset)
    if n < 4:
        raise ValueError(f"the data set has n = {n} samples, expected at least 4 to halve")
    order = np.random.default_rng(seed).permutation(n)
    halves = []
    for half in (order[: n // 2], order[n // 2 :]):
        moments = Moments(extractor.num_features)
        for batch in read_blocks(dataset, np.sort(half), batch_size):
            moments.add(real_features(extractor, batch.x_1))
        halves.append(moments)
    a, b = halves
    return frechet_distance(a.mean, a.covariance(), b.mean, b.covariance())


def save_reference(reference: Reference, path: Path) -> None:
    """Write ``mu``, ``sigma`` under the names that other programs read, and beside them what makes the file say what
    it is: n, features, fingerprint, rows, shape. Raises ValueError for a file that exists or cannot be written."""
    content = {
        "mu": reference.mean.numpy(),
        "sigma": reference.covariance.numpy(),
        "rows": reference.rows.numpy(),
        "features": np.array(reference.features),
        "fingerprint": np.array(reference.fingerprint),
    }
    if reference.n is not None:
        content["n"] = np.array(reference.n)
    if reference.shape is not None:
        content["shape"] = np.array(reference.shape, dtype=np.int64)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomically(path, new=True) as partial, partial.open("wb") as file:
            np.savez(file, **content)  # type: ignore[arg-type]  # numpy's stub takes names for flags
            file.flush()
    except TakenError as error:
        raise ValueError(f"{path} exists and is not overwritten") from error
    except OSError as error:
        raise ValueError(f"could not write {path}: {error.strerror or error}") from error


def load_reference(
    path: Path, extractor: FeatureExtractor, *, images: bool = False, keep: int = KEEP, batch_size: int = 64
) -> Reference:
    """Statistics from an .npz: ``mu`` (F,) and ``sigma`` (F, F), as ADM's evaluator, pytorch-fid and torch-fidelity's
    users keep them, or what :func:`save_reference` wrote. Nothing in the file is executed.

    images: also run the extractor over the images in the file (``arr_0``, (N, H, W, C) bytes; ADM's hold 10,000), up to
    ``keep`` of them, evenly spaced, for precision, recall and kernel distance, which need more than mu and sigma.
    ADM's spatial statistics (mu_s, sigma_s) are not used.

    Raises ValueError naming the file: not there, not an .npz, keys missing, another number of features than the
    extractor's, not finite, not symmetric, a negative variance, or made with other features than the extractor's.
    """
    digest = _sha256(path)
    with _opened(path) as archive:
        there = [name.removesuffix(".npy") for name in archive.sizes]
        missing = [name for name in ("mu", "sigma", *["arr_0"] * images) if name not in there]
        if missing:
            raise ValueError(f"{path} has no {' and no '.join(missing)}; it has {', '.join(there[:20]) or 'nothing'}")
        _check_claims({name: claim_of(archive, name) for name in MOST if name in there}, extractor, path)
        content = {
            name: read_array(archive, name) for name in MOST if name in there and not (name == "rows" and images)
        }
        rows = _rows_of_images(archive, extractor, path, keep, batch_size) if images else None
    mean, covariance = (torch.from_numpy(content[name].astype(np.float64)) for name in ("mu", "sigma"))
    _check_moments(mean, covariance, path)
    features = _text(content, "features")
    if features is not None and features != extractor.identity:
        raise ValueError(
            f"{path} was made with the features {features!r}, expected the extractor's {extractor.identity!r}"
        )
    if rows is None:
        rows = torch.from_numpy(content.get("rows", np.zeros((0, len(mean)))).astype(np.float32))
        if not rows.isfinite().all():
            raise ValueError(f"{path}: rows {tuple(rows.shape)}, expected finite ones")
    n, shape = _integers(content, "n", path), _integers(content, "shape", path)
    if n is not None and (len(n) != 1 or n[0] < 2):
        raise ValueError(f"{path}: n = {n}, expected one number of images, at least 2")
    own = hashlib.sha256(mean.numpy().tobytes() + covariance.numpy().tobytes()).hexdigest()
    return Reference(
        mean,
        covariance,
        rows,
        None if n is None else n[0],
        shape,
        _text(content, "fingerprint") or own,
        extractor.identity,
        str(path),
        digest,
        assumed=features is None,
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Archive]:
    """The .npz as an archive. Raises ValueError naming it, also for what is damaged in it."""
    try:
        with open_zip(path) as archive:
            yield archive
    except (OSError, Damaged) as error:
        raise ValueError(f"{path} cannot be read ({error}); {EXPECTED}") from error


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file; {EXPECTED}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}); {EXPECTED}") from error


def _check_claims(claims: dict[str, Claim], extractor: FeatureExtractor, path: Path) -> None:
    """Raise ValueError unless the arrays are of the types and sizes that such a file has; none is read yet."""
    for name in ("mu", "sigma", "rows"):
        if name in claims and claims[name].dtype.kind != "f":
            raise ValueError(f"{path}: {name} is {claims[name].dtype}, expected floating point")
    mean, covariance, f = claims["mu"].shape, claims["sigma"].shape, extractor.num_features
    if len(mean) != 1 or covariance != 2 * mean:
        raise ValueError(f"{path}: mu {mean} and sigma {covariance}, expected (F,) and (F, F)")
    if mean != (f,):
        raise ValueError(f"{path}: {mean[0]} features in the file, the extractor {extractor.identity!r} has {f}")
    if "rows" in claims and (len(claims["rows"].shape) != 2 or claims["rows"].shape[1] != f):
        raise ValueError(f"{path}: rows {claims['rows'].shape}, expected finite ones of shape (N, {f})")
    large = next((name for name, claim in claims.items() if claim.bytes > MOST[name]), None)
    if large is not None:
        raise ValueError(f"{path}: {large} has {claims[large].bytes} bytes, expected at most {MOST[large]}")


def _integers(content: dict[str, np.ndarray], name: str, path: Path) -> tuple[int, ...] | None:
    if name not in content:
        return None
    value = content[name]
    if value.dtype.kind not in "iu" or value.ndim > 1:
        raise ValueError(f"{path}: {name} is {value.dtype} {value.shape}, expected whole numbers")
    return tuple(int(item) for item in value.reshape(-1))


def _text(content: dict[str, np.ndarray], name: str) -> str | None:
    return str(content[name]) if name in content else None


def _check_moments(mean: Tensor, covariance: Tensor, path: Path) -> None:
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise ValueError(f"{path}: mu or sigma has entries that are not finite")
    skew = float((covariance - covariance.T).abs().max())
    if skew > 1e-6 * float(covariance.abs().max()):
        raise ValueError(f"{path}: sigma is not symmetric (by up to {skew:g}), expected a covariance")
    lowest, highest = (float(value) for value in torch.linalg.eigvalsh(covariance)[[0, -1]])
    if lowest < -1e-6 * highest:  # single precision in the program that wrote it
        raise ValueError(f"{path}: sigma has a negative variance ({lowest:g}), expected a covariance")


def _rows_of_images(archive: Archive, extractor: FeatureExtractor, path: Path, keep: int, batch_size: int) -> Tensor:
    check_positive(keep=keep, batch_size=batch_size)
    claim = claim_of(archive, "arr_0")
    if claim.dtype != np.uint8 or len(claim.shape) != 4 or not claim.shape[0]:
        raise ValueError(f"{path}: arr_0 is {claim.dtype} {claim.shape}, expected images, uint8 (N, H, W, C)")
    if math.prod(claim.shape[1:]) > MOST_IMAGE:
        raise ValueError(f"{path}: arr_0 is of images {claim.shape[1:]}, expected at most {MOST_IMAGE} bytes each")
    n = claim.shape[0]
    chosen = np.linspace(0, n - 1, min(n, keep)).round().astype(np.int64)
    images, rows = rows_of(archive, "arr_0", chosen), []
    while block := list(islice(images, batch_size)):  # read in their order: two gigabytes are never in memory
        pixels = torch.from_numpy(np.stack(block))
        rows.append(real_features(extractor, pixels.permute(0, 3, 1, 2).float() / 127.5 - 1))
    return torch.cat(rows)
