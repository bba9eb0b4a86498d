"""What a network sees of latents, there and back, and the file of statistics."""

import io
import pickle
from pathlib import Path

import pytest
import torch

from facm.latents.statistics import Statistics, load_statistics, scaled

MEAN, STD = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0])


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 4, 5)])
def test_there_by_hand_and_back(shape: tuple[int, ...]) -> None:
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    statistics = Statistics(MEAN, STD, 0.25)
    x = statistics.standardise(z)
    torch.testing.assert_close(x[:, 0], (z[:, 0] - 1) / 0.5 * 0.25)
    torch.testing.assert_close(x[:, 1], (z[:, 1] + 2) / 4 * 0.25)
    torch.testing.assert_close(statistics.restore(x), z)
    assert torch.equal(scaled(2, 0.18215).standardise(z), z * 0.18215)
    half = statistics.standardise(z.bfloat16())
    assert (half.dtype, statistics.channels) == (torch.bfloat16, 2)


def test_the_fingerprint_is_of_all_three() -> None:
    plain = Statistics(MEAN, STD)
    others = [Statistics(MEAN + 1, STD), Statistics(MEAN, STD + 1), Statistics(MEAN, STD, 2.0), Statistics(STD, STD)]
    assert len({statistics.fingerprint for statistics in (plain, *others)}) == 5
    assert plain.fingerprint == Statistics(MEAN.clone(), STD.double()).fingerprint
    assert len(plain.fingerprint) == 16


@pytest.mark.parametrize(
    ("mean", "std", "multiplier", "message"),
    [
        (MEAN, STD[:1], 1, r"mean \(2,\) and std \(1,\), expected \(C,\) twice"),
        (MEAN[None], STD[None], 1, r"mean \(1, 2\) and std \(1, 2\), expected \(C,\) twice"),
        (MEAN * torch.nan, STD, 1, "not finite"),
        (MEAN, STD / 0, 1, "not finite"),
        (MEAN, STD * torch.tensor([0, 1]), 1, "a standard deviation is not above 0"),
        (MEAN, STD, 0, "multiplier = 0, expected a number above 0"),
    ],
)
def test_what_cannot_be(mean: torch.Tensor, std: torch.Tensor, multiplier: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Statistics(mean, std, multiplier)


@pytest.mark.parametrize("shape", [(2,), (3, 3, 4, 5)])
def test_latents_of_other_channels(shape: tuple[int, ...]) -> None:
    for way in (Statistics(MEAN, STD).standardise, Statistics(MEAN, STD).restore):
        with pytest.raises(ValueError, match=r"expected \(B, 2, ...\) for these statistics"):
            way(torch.zeros(shape))


def test_the_file_of_the_reference(tmp_path: Path) -> None:
    file = tmp_path / "latents_stats.pt"
    torch.save({"mean": MEAN.double().reshape(1, 2, 1, 1), "std": STD.reshape(1, 2, 1, 1)}, file)
    read = load_statistics(file, 0.5)
    assert (read.mean.dtype, read.mean.tolist(), read.std.tolist(), read.multiplier) == (
        torch.float32,
        [1, -2],
        [0.5, 4],
        0.5,
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mean": torch.zeros(1, 2, 1, 1)}, r"mean \(1, 2, 1, 1\) and std NoneType"),
        ({"mean": torch.zeros(2), "std": torch.ones(2)}, r"mean \(2,\) and std \(2,\)"),
        ({"mean": torch.zeros(2, 1, 1, 1), "std": torch.ones(2, 1, 1, 1)}, r"mean \(2, 1, 1, 1\)"),
        ({"mean": torch.zeros(1, 2, 1, 1), "std": torch.ones(1, 1, 2, 1)}, r"std \(1, 1, 2, 1\)"),
        (
            {"mean": torch.zeros(1, 2, 1, 1) + 1j, "std": torch.ones(1, 2, 1, 1)},
            "mean torch.complex64 and std torch.float32",
        ),
        ([1, 2], "mean NoneType and std NoneType"),
        (Path("x"), r"PosixPath: reading it could run code, so it is refused"),
        (None, "there is no such file"),
    ],
)
def test_other_files(tmp_path: Path, content: object, message: str) -> None:
    if content is not None:
        torch.save(content, tmp_path / "stats.pt")
    with pytest.raises(
        ValueError, match=rf"(?s)stats.pt.* .*{message}.*[;.] [eE]xpected latent statistics, {{'mean', 'std'}}"
    ):
        load_statistics(tmp_path / "stats.pt")


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan])
def test_a_file_of_bad_deviations_is_named(tmp_path: Path, value: float) -> None:
    torch.save({"mean": MEAN.reshape(1, 2, 1, 1), "std": torch.full((1, 2, 1, 1), value)}, tmp_path / "stats.pt")
    with pytest.raises(ValueError, match=r"stats.pt: latent statistics are not finite, or a standard deviation is not"):
        load_statistics(tmp_path / "stats.pt")


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "content", [saved(Path("x")), pickle.dumps(Path("x")), pickle.dumps({"mean": 1}, 4), b"PK\x03\x04 text", b"text"]
)
def test_a_wrong_file_brings_no_advice_to_read_it_all_the_same(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "stats.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"[eE]xpected latent statistics") as error:
        load_statistics(tmp_path / "stats.pt")
    message = str(error.value)
    assert not [word for word in ("Please", "allowlist", "weights_only", "Warning", "\n") if word in message]
