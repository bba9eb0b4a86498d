"""Trained networks: how one in a file is asked, and which weights come out of a run's folder."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from facm import cli
from facm.core.serialize import to_json
from facm.flow.conditions import Labels, Unconditional
from facm.flow.time_conditioning import AuxiliaryTime, ExpandedInterval
from facm.latents.space import LatentSpace
from facm.networks.adapters.edm import EDM
from facm.networks.ddpm_pp import DDPMpp
from facm.networks.mlp import MLP
from facm.pretrained.convert import import_file
from facm.pretrained.from_file import load_file
from facm.pretrained.native_format import metadata_of, write_own
from facm.pretrained.trained import FromRun, Trained, export, load_trained
from facm.runs.checkpointer import load
from facm.runs.folder import RunFolder, create
from facm.sampling.generate import sample_balanced
from facm.sampling.methods import Consistency
from facm.training.loop import train
from tests.training.run_parts import EVERY, IMAGES, flow_run, interrupt, weights
from tests.training.run_parts import trained as trained_run

NETWORK = DDPMpp(size=8, channels=8, multipliers=(1, 2), blocks=1, attention=(4,), num_classes=10)


def exported(path: Path, **said: str) -> Path:
    """A file as ``facm weights export`` writes it."""
    save_file(NETWORK.build().state_dict(), path, {"config": json.dumps(to_json(NETWORK)), **said})
    return path


@pytest.mark.parametrize("said", ["true", "false", None])
@pytest.mark.parametrize("asked", [True, False, None])
def test_the_user_is_believed_before_the_file(tmp_path: Path, said: str | None, asked: bool | None) -> None:
    file = exported(tmp_path / "x.safetensors", **({} if said is None else {"learns_shortcut": said}))
    if (asked, said) == (None, None):
        with pytest.raises(ValueError, match=r"x.safetensors does not say whether its network learned the shortcut"):
            load_file(file)
        return
    trained = load_file(file, learns_shortcut=asked)
    student = asked if asked is not None else said == "true"
    assert trained.interface.learns_shortcut == student
    assert (trained.interface.learns_flow, trained.interface.learns_jumps) == (True, False)
    assert trained.interface.task == ExpandedInterval()
    assert trained.interface.condition == Labels(10)
    assert (trained.config, trained.data.open().shape, trained.images_seen) == (NETWORK, (3, 8, 8), None)


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("wrap", [lambda network: network, EDM])
def test_a_network_with_a_second_time_is_told_both(tmp_path: Path, wrap: Any, learns: bool) -> None:
    config = wrap(replace(NETWORK, auxiliary_time=True, num_classes=0))
    file = tmp_path / "x.safetensors"
    save_file(config.build().state_dict(), file, {"config": json.dumps(to_json(config))})
    interface = load_file(file, learns_shortcut=learns).interface
    assert interface == replace(interface, condition=Unconditional(), task=AuxiliaryTime(), learns_shortcut=learns)


def test_a_file_is_sampled_and_decoded_from_one_object(tmp_path: Path) -> None:
    trained = load_file(exported(tmp_path / "x.safetensors", learns_shortcut="true"))
    source = trained.source(torch.device("cpu"))
    assert (source.network, source.interface, source.shape) == (trained.network, trained.interface, (3, 8, 8))
    assert sample_balanced(source, Consistency(1), 2).shape == (2, 3, 8, 8)
    assert trained.decoder(torch.device("cpu")) is None, "images are not decoded"


def test_latents_without_an_autoencoder_have_no_decoder(tmp_path: Path) -> None:
    """They can be sampled nevertheless."""
    trained = replace(
        load_file(exported(tmp_path / "x.safetensors", learns_shortcut="true")), data=LatentSpace((4, 8, 8))
    )
    with pytest.raises(
        ValueError, match=r"makes latents of shape \(4, 8, 8\) and autoencoder = None: expected the one"
    ):
        trained.decoder(torch.device("cpu"))
    assert trained.source(torch.device("cpu")).shape == (4, 8, 8)


def test_rows_and_pictures_lie_beside_the_file(tmp_path: Path) -> None:
    trained = load_file(exported(tmp_path / "x.safetensors", learns_shortcut="true"))
    assert isinstance(trained, Trained)
    assert not trained.network.training
    assert not any(p.requires_grad for p in trained.network.parameters())
    assert trained.evaluations == tmp_path / "x.evaluations.jsonl"
    assert trained.samples == tmp_path / "x.samples"
    expected = NETWORK.build().state_dict()
    assert {name: value.shape for name, value in trained.network.state_dict().items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert trained.network(torch.zeros(1, 3, 8, 8), torch.ones(1), torch.zeros(1, dtype=torch.long)).shape[1] == 3


@pytest.mark.parametrize("bounds", [(0.0, 0.125, 1.0), (0.0, 0.125), (0.0, 1.0)])
def test_a_file_says_the_phases_of_its_student(tmp_path: Path, bounds: tuple[float, ...]) -> None:
    first, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    exported(tmp_path / "x.safetensors", learns_shortcut="true")
    trained = load_file(tmp_path / "x.safetensors")
    export(replace(trained, interface=replace(trained.interface, bounds=bounds)), first)
    import_file(first, again)
    for file in (first, again):
        assert load_file(file).interface.bounds == bounds
        assert ("bounds" in metadata_of(file)) == (bounds != (0.0, 1.0))


@pytest.mark.parametrize("said", ["1", "[0.5]", "[1, 0]", "[0, 2]", '["a", 1]', "{", "[0, NaN]"])
def test_bounds_that_are_none_are_refused(tmp_path: Path, said: str) -> None:
    file = exported(tmp_path / "x.safetensors", learns_shortcut="true", bounds=said)
    with pytest.raises(ValueError, match=r"x.safetensors: its metadata 'bounds' are not those of phases"):
        load_file(file)


# --- out of a run's folder ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return trained_run(tmp_path_factory.mktemp("runs") / "flow", flow_run())


def test_the_default_weights_are_the_first_ema(run: RunFolder) -> None:
    network = load_trained(run.path)
    assert (network.sigma_rel, network.images_seen, network.which) == (0.05, IMAGES, "EMA 0.05")
    assert (network.config, network.data) == (flow_run().network, flow_run().data)
    assert network.interface.condition == flow_run().objective.condition
    assert not network.network.training
    assert not any(p.requires_grad for p in network.network.parameters())
    raw = load_trained(str(run.path), raw=True)
    assert raw.sigma_rel is None
    for name, value in weights(run).items():
        assert torch.equal(raw.network.state_dict()[name], value)
    assert any(not torch.equal(network.network.state_dict()[name], value) for name, value in weights(run).items())


def test_another_length_is_synthesised_between_the_tracked_ones(run: RunFolder) -> None:
    def of(sigma_rel):
        return torch.cat([p.flatten() for p in load_trained(run.path, sigma_rel).network.parameters()])

    short, middle, long = of(0.05), of(0.1), of(0.2)
    assert load_trained(run.path, 0.1).sigma_rel == 0.1
    assert (middle - short).norm() < (long - short).norm()
    assert (middle - long).norm() < (long - short).norm()


def test_a_length_without_snapshots_or_out_of_range_is_an_error(tmp_path: Path, run: RunFolder) -> None:
    folder = trained_run(tmp_path / "run", flow_run(every=replace(EVERY, ema_snapshots=0)))
    with pytest.raises(ValueError, match=r"sigma_rel = 0\.1: this run tracks \(0\.05, 0\.2\) and kept no snapshots"):
        load_trained(folder.path, 0.1)
    assert load_trained(folder.path, 0.2).sigma_rel == 0.2
    with pytest.raises(ValueError, match=r"sigma_rel = 0\.5"):
        load_trained(run.path, 0.5)


def test_raw_weights_of_an_ema_are_a_contradiction(run: RunFolder) -> None:
    with pytest.raises(ValueError, match=r"raw = True with sigma_rel = 0\.05"):
        load_trained(run.path, 0.05, raw=True)


def test_a_run_without_a_checkpoint_says_how_to_get_one(tmp_path: Path) -> None:
    folder = create(tmp_path / "run", flow_run())
    with pytest.raises(FileNotFoundError, match=f"no checkpoint yet: .*facm resume {folder.path}"):
        load_trained(folder.path)


def test_an_unfinished_teacher_is_refused_unless_accepted(tmp_path: Path) -> None:
    run = flow_run()
    folder = create(tmp_path / "run", run)
    interrupt(run, folder, 160)
    with pytest.raises(ValueError, match="stopped at 160 of 320 images"):
        FromRun(str(folder.path)).load()
    assert FromRun(str(folder.path), unfinished=True).load() is not None
    train(run, folder)
    assert FromRun(str(folder.path)).load() is not None


# --- an earlier clock of a run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "sigma_rel"), [(64, None), (192, 0.05), (192, 0.2), (320, None)])
def test_an_earlier_clock_is_the_snapshot_of_then(run: RunFolder, images: int, sigma_rel: float | None) -> None:
    """None is the run's first average."""
    found = load_trained(run.path, sigma_rel, images=images)
    length = sigma_rel or 0.05
    stored = load(run.ema_snapshot(images, length))
    for name, value in found.network.state_dict().items():
        assert torch.equal(value, stored.tensors[name]), name
    assert (found.images_seen, found.sigma_rel) == (images, length)
    assert found.which == f"EMA {length:g} at {images} images"
    assert (found.checkpoint_sha256, found.path) == (stored.sha256, run.path)
    assert not found.network.training
    assert not any(p.requires_grad for p in found.network.parameters())


def test_the_last_snapshot_is_the_average_at_the_end(run: RunFolder) -> None:
    now, then = load_trained(run.path), load_trained(run.path, images=320)
    for name, value in now.network.state_dict().items():
        assert torch.equal(then.network.state_dict()[name], value), name


def test_a_clock_without_a_snapshot_is_named_with_those_that_have_one(run: RunFolder) -> None:
    with pytest.raises(
        ValueError, match=r"no EMA 0.05 snapshot at images = 80; expected one of 64, 128, 192, 256, 320$"
    ):
        load_trained(run.path, images=80)
    with pytest.raises(ValueError, match=r"no EMA 0.1 snapshot at images = 64; expected one of none"):
        load_trained(run.path, 0.1, images=64)
    with pytest.raises(
        ValueError, match=r"no EMA 0.05 snapshot at images = 64 and never raw ones; expected one of 64,"
    ):
        load_trained(run.path, raw=True, images=64)


def test_a_run_without_snapshots_has_no_earlier_clocks(tmp_path: Path) -> None:
    kept_none = flow_run(images=32, every=replace(EVERY, ema_snapshots=0))
    folder = trained_run(tmp_path / "run", kept_none)
    with pytest.raises(ValueError, match=r"images = 32; expected one of none: every.ema_snapshots = 0"):
        load_trained(folder.path, images=32)


@dataclass(frozen=True)
class ReadsNumbers:
    """A network whose constructor reads numbers off a tensor, as schedules of drop paths do: it cannot be built without
    memory."""

    def build(self) -> torch.nn.Module:
        network = MLP(width=16, depth=1, num_classes=3).build()
        network.rates = torch.linspace(0, 1, 3).tolist()
        return network


def test_a_network_that_cannot_be_built_without_memory_trains_and_is_shown_and_sampled(tmp_path, capsys) -> None:
    folder = trained_run(tmp_path / "run", flow_run(network=ReadsNumbers()))
    trained = load_trained(folder.path, raw=True)
    assert torch.equal(trained.network.state_dict()["inward.weight"], weights(folder)["inward.weight"])
    write_own(tmp_path / "x.safetensors", trained.config, trained.network.state_dict(), {})
    assert (tmp_path / "x.safetensors").exists()
    cli.main(["show", str(folder.path)])
    assert "parameters: " in capsys.readouterr().out
