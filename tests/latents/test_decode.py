"""From standardised latents to images: restored, decoded in blocks, clamped; and whose autoencoder it is."""

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from facm.core.serialize import to_json
from facm.latents.autoencoders import VAVAE
from facm.latents.decode import Decoder, decoder_of
from facm.latents.statistics import Statistics
from tests.latents.latent_parts import Pooling, PoolingConfig

CPU = torch.device("cpu")
STATISTICS = Statistics(torch.tensor([0.5, -0.5, 0.0, 0.0]), torch.tensor([0.5, 2.0, 1.0, 1.0]), 2.0)


class Watched(Pooling):
    """Says how many latents it decodes at once."""

    def __init__(self) -> None:
        super().__init__(1.0, "")
        self.blocks: list[int] = []

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        assert z.dtype == torch.float32
        self.blocks.append(len(z))
        return super().decode(z)


def test_restored_decoded_in_blocks_and_clamped() -> None:
    x = torch.randn(7, 4, 2, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    autoencoder = Watched()
    images = Decoder(autoencoder, STATISTICS, block=3)(x)
    assert autoencoder.blocks == [3, 3, 1]
    first, second, third = (x.float()[:, k] / 2 for k in range(3))
    expected = torch.stack([first * 0.5 + 0.5, second * 2 - 0.5, third], 1)
    assert expected.abs().max() > 1
    torch.testing.assert_close(images[:, :, ::4, ::4], expected.clamp(-1, 1))
    assert images.shape == (7, 3, 8, 12)


def test_the_identity_says_weights_and_statistics() -> None:
    decoder = Decoder(Pooling(1.0, ""), STATISTICS)
    assert decoder.identity == f"{decoder.autoencoder.identity}, statistics {STATISTICS.fingerprint}"


@dataclass(frozen=True)
class Opened:
    """As much of a data set as counts here."""

    shape: tuple[int, ...] = (4, 2, 3)
    statistics: Statistics | None = STATISTICS
    autoencoder: PoolingConfig | None = None
    encoded_by: object = None
    encoder_identity: str | None = None


def test_whose_autoencoder_it_is() -> None:
    def identity(dataset: Opened, asked: PoolingConfig | None = None) -> str:
        decoder = decoder_of(dataset, CPU, asked)
        assert decoder is not None
        assert decoder.statistics is STATISTICS
        return decoder.autoencoder.identity

    one, two, three = (PoolingConfig(gain) for gain in (1.0, 2.0, 3.0))
    recorded = Opened(encoded_by=to_json(one))
    assert identity(replace(recorded, autoencoder=two)) == two.build().identity
    assert identity(replace(recorded, autoencoder=two), three) == three.build().identity
    assert decoder_of(Opened(), CPU) is None
    assert decoder_of(SimpleNamespace(shape=(3, 8, 8)), CPU) is None


def test_the_autoencoder_that_a_data_set_names_is_one_of_this_packages(tmp_path: Path) -> None:
    named = Opened(encoded_by=to_json(VAVAE(str(tmp_path / "gone.pt"))))
    with pytest.raises(ValueError, match=r"gone\.pt: there is no such file"):  # it is the one that is built
        decoder_of(named, CPU)
    for said in (to_json(PoolingConfig()), 3, {"no": 1}, {"type": "facm.latents.autoencoders.types:Nothing"}):
        with pytest.raises(ValueError, match=r"none of facm\.latents|expected an autoencoder"):
            decoder_of(Opened(encoded_by=said), CPU)


def test_another_autoencoder_than_the_one_that_made_the_latents() -> None:
    one, two = PoolingConfig(1.0), PoolingConfig(2.0)
    made = Opened(autoencoder=one, encoder_identity=one.build().identity)
    assert decoder_of(made, CPU) is not None
    with pytest.raises(ValueError, match="made the latents: expected that one"):
        decoder_of(made, CPU, two)


def test_what_does_not_fit() -> None:
    with pytest.raises(
        ValueError, match=r"autoencoder = PoolingConfig.* for a data set without latents, expected none"
    ):
        decoder_of(SimpleNamespace(shape=(3, 8, 8)), CPU, PoolingConfig())
    with pytest.raises(ValueError, match=r"autoencoder = PoolingConfig.* decodes 4 channels, the latents have 3"):
        decoder_of(Opened(shape=(3, 2, 3)), CPU, PoolingConfig())
