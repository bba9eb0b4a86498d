"""ImageNet as a user runs it, at tiny width: prepare, pre-train, distil, evaluate, sample, export, import."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facm import cli
from facm.latents import Latents
from facm.latents.decode import decoder_of
from facm.networks.lightning_dit import LightningDiT
from facm.networks.presets import dit, sit
from facm.pretrained import export_reference, open_published
from facm.pretrained.from_file import load_file
from facm.pretrained.native_format import write_own
from facm.pretrained.trained import load_trained
from facm.recipes import imagenet256
from tests.training.run_parts import before_step, signal_at

SIDE = 64
FEATURES = """
import torch
from dataclasses import dataclass


class Means(torch.nn.Module):
    num_features, num_classes, identity = 12, None, "means of a 2 x 2 grid"

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@dataclass(frozen=True)
class GridMeans:
    scale: str = "1"

    def build(self, dataset, device):
        return Means()
"""


def command(*arguments):
    cli.main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        command(*arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def tiny_vae(folder, seed=0):
    """A KL autoencoder of the diffusers format: factor 8, 4 channels, random weights."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(seed)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
    )
    vae.save_pretrained(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with photographs of two classes, an autoencoder, latents, a teacher and a student."""
    samples = pytest.importorskip("sklearn.datasets").load_sample_images().images
    root = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for name, photograph in zip(("china", "flower"), samples, strict=True):
        (root / "images" / name).mkdir(parents=True)
        for i in range(12):
            side, top, left = (int(rng.integers(low, high)) for low, high in ((70, 150), (0, 250), (0, 450)))
            piece = Image.fromarray(photograph[top : top + side, left : left + side])
            piece.save(root / "images" / name / f"{i:02d}.png")
    tiny_vae(root / "vae")
    (root / "features.py").write_text(FEATURES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        options = ["--autoencoder", "vae", "--size", SIDE, "--shard-size", 10, "--quiet"]
        command("latents", "encode", "images", "--out", "latents", *options)
        network = {"hidden-size": 32, "depth": 2, "num-heads": 2, "in-channels": 4, "input-size": SIDE // 8}
        small = ["--latents", "latents", "--classes", 2, "--quiet"]
        small += [text for name, value in network.items() for text in (f"--run.network.{name}", value)]
        small += ["--run.batch-size", 8, "--run.images", 32, "--run.every.checkpoint", 16]
        command("train", "imagenet256-lightningdit-xl-pretrain", *small)
        command("train", "imagenet256-lightningdit-xl", *small)
    return root


@pytest.fixture
def inside(root, monkeypatch):
    monkeypatch.chdir(root)
    return root


def narrow(config):
    return dataclasses.replace(config, hidden_size=32, depth=1, num_heads=2)


STUDENT = Path("runs/imagenet256-lightningdit-xl")


def images_of(capsys, tmp_path, name, *arguments):
    out = tmp_path / f"{name}.png"
    command("sample", *arguments, "--num-steps", 2, "--num-samples", 4, "--classes", "0,1", "--npz", "--out", out)
    capsys.readouterr()
    return np.load(out.with_suffix(".npz"))["images"]


def test_latents_are_verified(inside, capsys):
    command("latents", "verify", "latents")
    assert "24 latents (4, 8, 8) F32 in 3 files, whole, as its manifest says" in " ".join(
        capsys.readouterr().out.split()
    )


def test_latents_are_drawn_decoded(inside, capsys, tmp_path):
    command("latents", "verify", "latents", "--grid", tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (10 * (SIDE + 1) - 1, 4 * (SIDE + 1) - 1)
    assert "exists and is not overwritten" in refused(
        capsys, "latents", "verify", "latents", "--grid", tmp_path / "grid.png"
    )


def test_the_runs_draw_their_latents_as_pictures(inside):
    for run in ("imagenet256-lightningdit-xl-pretrain", "imagenet256-lightningdit-xl"):
        drawn = sorted((Path("runs") / run / "samples").glob("*.png"))
        assert [file.stem for file in drawn[:2]] == ["000000000016", "000000000032"]


def test_the_student_is_measured_against_real_images(inside, capsys):
    options = ["--real", "images", "--features", "features.py:GridMeans", "2", "--num-samples", 16, "--batch-size", 8]
    command("evaluate", STUDENT, "--num-steps", 1, 2, *options, "--labels", "random", "--quantise", "truncate")
    rows = [json.loads(line) for line in (STUDENT / "evaluations.jsonl").read_text().splitlines()][-2:]
    assert [row["nfe"] for row in rows] == [1, 2]
    for row in rows:
        assert row["features"] == "means of a 2 x 2 grid"
        assert row["n_reference"] == 24
        assert (row["labels"], row["quantised"]) == ("random", "truncated to 8 bits")
        assert not row["comparable_to_published"]
        assert "statistics" in row["autoencoder"]
        assert np.isfinite(row["frechet_distance"])


def test_statistics_of_a_folder_are_measured_against(inside, capsys, tmp_path):
    features = ["--features", "features.py:GridMeans"]
    command("statistics", "images", "--size", SIDE, "--out", tmp_path / "real.npz", *features)
    measured = ["--num-steps", 1, "--num-samples", 16, *features]
    command("evaluate", STUDENT, "--fid-stats", tmp_path / "real.npz", *measured)
    command("evaluate", STUDENT, "--real", "images", *measured)
    by_file, by_folder = (json.loads(x) for x in (STUDENT / "evaluations.jsonl").read_text().splitlines()[-2:])
    assert by_file["frechet_distance"] == pytest.approx(by_folder["frechet_distance"], rel=1e-6)
    assert "exists and is not overwritten" in refused(
        capsys, "statistics", "images", "--size", SIDE, "--out", tmp_path / "real.npz", *features
    )


@pytest.mark.slow
def test_exported_and_imported_students_make_the_same_images(inside, capsys, tmp_path):
    expected = images_of(capsys, tmp_path, "run", STUDENT)
    assert expected.shape == (4, SIDE, SIDE, 3)
    files = [tmp_path / "student.safetensors", tmp_path / "student.pt"]
    for file in files:
        command("weights", "export", STUDENT, "--out", file)
    command("weights", "import", files[1], "--out", tmp_path / "imported.safetensors", "--heads", 2)
    for file in [*files, tmp_path / "imported.safetensors"]:
        options = ["--autoencoder", "vae"]
        if file != files[0]:  # which holds the statistics itself
            options += ["--latent-stats", "latents/latents_stats.pt"]
        if file.suffix == ".pt":
            options += ["--heads", 2]
        found = images_of(capsys, tmp_path, file.name, file, *options)
        assert np.array_equal(found, expected), file


def test_what_lies_beside_a_published_file_is_found(inside, tmp_path):
    shutil.copytree("vae", tmp_path / "sd-vae-ft-mse")
    torch.save(narrow(sit("S/2", num_classes=2)).build().state_dict(), tmp_path / "sit.pt")
    space = load_file(tmp_path / "sit.pt", "sit", heads=2).data.open()
    assert space.autoencoder.path == str(tmp_path / "sd-vae-ft-mse")
    assert space.statistics.multiplier == 0.18215
    command("weights", "export", STUDENT, "--out", tmp_path / "student.pt")
    with pytest.raises(
        ValueError, match=r"there is no latents_stats\.pt beside it: expected statistics, such a file, or"
    ):
        load_file(tmp_path / "student.pt", heads=2)


def test_statistics_beside_a_file_of_four_channels_are_its_own(inside, tmp_path):
    command("weights", "export", STUDENT, "--out", tmp_path / "student.pt")
    shutil.copy("latents/latents_stats.pt", tmp_path)
    found = load_file(tmp_path / "student.pt", heads=2).data.open().statistics
    assert found.fingerprint == load_trained(STUDENT).data.open().statistics.fingerprint


def test_importing_an_export_keeps_its_statistics(inside, tmp_path):
    command("weights", "export", STUDENT, "--out", tmp_path / "student.safetensors")
    command("weights", "import", tmp_path / "student.safetensors", "--out", tmp_path / "again.safetensors")
    found = load_file(tmp_path / "again.safetensors")
    assert found.interface.learns_shortcut
    assert found.data.open().statistics.fingerprint == load_trained(STUDENT).data.open().statistics.fingerprint


def test_an_exported_teacher_is_one(inside, tmp_path):
    for name in ("teacher.safetensors", "teacher.pt"):
        command("weights", "export", "runs/imagenet256-lightningdit-xl-pretrain", "--out", tmp_path / name)
        heads = 2 if name.endswith(".pt") else None
        found = load_file(tmp_path / name, heads=heads, scale=1.0)
        assert not found.interface.learns_shortcut


def test_another_autoencoder_than_the_latents_is_refused(inside, capsys, tmp_path):
    tiny_vae(tmp_path / "other", seed=1)
    said = refused(capsys, "sample", STUDENT, "--autoencoder", tmp_path / "other", "--out", tmp_path / "x.png")
    assert "made the latents: expected that one" in said
    assert not (tmp_path / "x.png").exists()


def test_an_autoencoder_that_a_data_set_names_is_not_imported_from_anywhere(inside, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    dataset = dataclasses.replace(Latents("latents", num_classes=2).open(), encoded_by={"type": "evil:A"})
    with pytest.raises(ValueError, match=r"none of facm\.latents: expected autoencoder"):
        decoder_of(dataset, torch.device("cpu"))


def test_samples_that_are_not_finite_are_no_picture(inside, capsys, tmp_path):
    command("weights", "export", STUDENT, "--out", tmp_path / "student.safetensors")
    broken = load_file(tmp_path / "student.safetensors")
    state = {name: torch.full_like(value, 3e38) for name, value in broken.network.state_dict().items()}
    write_own(tmp_path / "broken.safetensors", broken.config, state, {"learns_shortcut": "true"})
    options = ["--autoencoder", "vae", "--latent-scale", 1, "--num-samples", 2, "--out", tmp_path / "x.png"]
    assert "2 of 2 samples are not finite" in refused(capsys, "sample", tmp_path / "broken.safetensors", *options)
    assert not (tmp_path / "x.png").exists()


def test_a_student_in_dits_convention_has_no_public_layout(tmp_path):
    config = dit("S/2", num_classes=2, input_size=8)
    config = dataclasses.replace(config, network=narrow(config.network))
    with pytest.raises(ValueError, match=r"no public layout has for DiT's convention: export it to NAME\.safetensors"):
        export_reference(config.build(), config, tmp_path / "dit.pt", learns_shortcut=True)
    export_reference(config.build(), config, tmp_path / "dit.pt", learns_shortcut=False)
    assert open_published(tmp_path / "dit.pt", "dit", heads=2).network == config


def test_a_run_does_not_go_on_with_other_latents(inside, capsys, tmp_path):
    small = ["--run.network.hidden-size", 32, "--run.network.depth", 1, "--run.network.num-heads", 2]
    small += ["--run.network.in-channels", 4, "--run.network.input-size", SIDE // 8, "--run.images", 64]
    small += ["--run.batch-size", 8, "--run.every.checkpoint", 16, "--quiet", "--classes", 2]
    shutil.copytree("latents", tmp_path / "latents")
    out = tmp_path / "run"
    with before_step(signal_at(24, signal.SIGTERM)):
        command(
            "train", "imagenet256-lightningdit-xl-pretrain", "--latents", tmp_path / "latents", "--out", out, *small
        )
    shutil.rmtree(tmp_path / "latents")
    options = ["--autoencoder", "vae", "--size", SIDE, "--seed", 5, "--quiet"]
    command("latents", "encode", "images", "--out", tmp_path / "latents", *options)
    assert "and the data are now" in refused(capsys, "resume", out, "--quiet")


def test_a_network_with_fewer_classes_than_the_data_is_refused(inside, capsys):
    options = ["--latents", "latents", "--classes", 2, "--run.network.num-classes", 1, "--out", "x"]
    assert "has 1 classes, condition = Labels(classes=2)" in refused(
        capsys, "train", "imagenet256-lightningdit-xl-pretrain", *options
    )


def test_a_published_teacher_is_distilled(inside, tmp_path):
    """A file in place of a run as the teacher."""
    teacher = tmp_path / "stg1.safetensors"
    command("weights", "export", "runs/imagenet256-lightningdit-xl-pretrain", "--out", teacher)
    run = imagenet256.imagenet256_lightningdit_xl("latents", str(teacher))
    loaded = run.teacher.load()
    expected = load_trained(Path("runs/imagenet256-lightningdit-xl-pretrain")).network
    for name, value in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "x.pt"], "x.pt: there is no such file"),
        (["sample", "x.pt", "--raw"], "--family and --weights choose in a file"),
        (["sample", "x.pt", "--latent-scale", "1", "--latent-stats", "y.pt"], "x.pt: there is no such file"),
        (["sample", STUDENT, "--family", "sit"], "--family sit with the run"),
        (["sample", STUDENT, "--classes", "a,b"], "--classes a, expected numbers, as in 207,360"),
        (["sample", STUDENT, "--autoencoder", "no"], "no: there is no such file"),
        (["evaluate", STUDENT], "has latents to be measured against: expected --fid-stats FILE.npz or --real FOLDER"),
        (["evaluate", STUDENT, "--real", "images", "--fid-stats", "x.npz"], "expected one of them"),
        (["evaluate", STUDENT, "--real", "images", "--inception", "no.pth"], "no.pth"),
        (
            ["evaluate", STUDENT, "--inception", "a", "--dinov2", "b", "--real", "images"],
            "expected at most one of them",
        ),
        (["evaluate", STUDENT, "--features", "features.py:No", "--real", "images"], "features.py has no No"),
        (["evaluate", STUDENT, "--features", "nothing.py:No", "--real", "images"], "expected FILE.py:NAME"),
        (["evaluate", STUDENT, "--batch-size", "0"], "--batch-size 0, expected at least 1"),
        (["latents", "encode", "nowhere", "--out", "x", "--autoencoder", "vae"], "nowhere"),
        (["latents", "encode", "images", "--out", "latents", "--autoencoder", "vae", "--size", "32"], "latents"),
        (
            ["latents", "encode", "images", "--out", "x", "--autoencoder", "vae", "--size", "60"],
            "expected a multiple of 8",
        ),
        (["latents", "encode", "images", "--out", "x", "--autoencoder", "features.py"], "features.py"),
        (["latents", "verify", "images"], "holds no latents"),
        (["weights", "export", STUDENT, "--out", "x.bin"], "expected a name that ends in .safetensors, or in .pt"),
        (["weights", "import", "x.pt", "--out", "x.pt"], "expected a name that ends in .safetensors"),
    ],
)
def test_what_cannot_be_is_said(inside, capsys, arguments, message):
    assert message in " ".join(refused(capsys, *arguments).split())


# --- the recipes at their true size ----------------------------------------------------------------------------------


def parameters(config):
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


def test_the_recipes_are_the_papers():
    distil = imagenet256.imagenet256_lightningdit_xl()
    assert isinstance(distil.network, LightningDiT)
    assert (distil.batch_size, distil.optimizer.lr, distil.optimizer.betas) == (1024, 1e-4, (0.9, 0.999))  # Table 5
    assert distil.optimizer.weight_decay == 0
    assert distil.ema.sigma_rels[0] == 0.2
    objective = distil.objective
    assert (objective.time.mean, objective.time.std) == (-0.8, 1.6)
    assert (objective.velocity.guidance.scale, objective.velocity.guidance.low) == (1.75, 0.125)
    assert distil.teacher == distil.initial
    assert parameters(distil.network) == 675_260_768
    assert imagenet256.imagenet256_lightningdit_xl_pretrain().network == distil.network
    scratch = imagenet256.imagenet256_lightningdit_xl_scratch()
    assert scratch.objective.label_dropout == 0.1
    assert scratch.teacher is None


@pytest.mark.parametrize("name", ["sit", "repa", "dit"])
def test_the_other_backbones_of_table_2(name):
    run = getattr(imagenet256, f"imagenet256_{name}_xl")()
    assert parameters(run.network) == pytest.approx(675e6, rel=2e-3)
    assert run.data.scale == 0.18215
    assert run.teacher == run.initial


@pytest.mark.slow
def test_the_recipe_is_planned_without_data_or_teacher(capsys):
    command("plan", "imagenet256-lightningdit-xl", "--shape", 32, 16, 16, "--gpus", 64, "--engine.checkpointing")
    assert "fits" in capsys.readouterr().out
