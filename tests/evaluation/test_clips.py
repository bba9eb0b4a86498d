"""Clips are measured frame by frame: which frames, against which, with which labels and prompts."""

from types import SimpleNamespace

import pytest
import torch

from facm.core.objective import NetworkInterface
from facm.core.types import Batch
from facm.evaluation import Identity, Measure, Sampling, build_evaluator, build_reference
from facm.evaluation.evaluate import evaluate
from facm.evaluation.evaluator import CLIPEvaluator
from facm.flow.conditions import Labels, Unconditional
from facm.latents.space import LatentSpace
from facm.pretrained.trained import Trained
from facm.sampling.generate import balanced_labels, noise
from facm.sampling.methods import Euler
from tests.evaluation.test_evaluate import Network, Sorter, SorterConfig

SHAPE, FRAMES = (1, 4, 2, 2), 4
CPU = torch.device("cpu")


class Clips:
    """Clips of bytes; with prompts where those are wanted."""

    flip, shape = False, SHAPE

    def __init__(self, n=20, num_classes=None):
        self.num_classes = num_classes
        self.x = torch.randint(0, 256, (n, *SHAPE), generator=torch.Generator().manual_seed(0)) / 127.5 - 1

    def __len__(self):
        return len(self.x)

    def read(self, indices):
        which = torch.as_tensor(indices)
        return Batch(self.x[which], which % self.num_classes if self.num_classes else None)


class Titled(Clips):
    def prompts(self, indices):
        return [f"clip {i}" for i in indices]


def trained(folder, condition=None, data=None):
    interface = NetworkInterface(condition or Unconditional())
    of = LatentSpace(SHAPE) if data is None else SimpleNamespace(open=lambda: data)
    return Trained(Network(), None, interface, of, folder, "EMA 0.1", 0.1, 64, "abc")


def frames_of(x, which):
    return x[:, :, which].transpose(1, 2).reshape(-1, 1, 2, 2)


@pytest.mark.parametrize(("most", "which"), [(None, [0, 1, 2, 3]), (2, [0, 3])])
def test_every_frame_is_a_sample_against_every_real_frame(tmp_path, most, which):
    evaluator = build_evaluator(Clips(), CPU, Identity(), frames_per_clip=most)
    assert (evaluator.reference.n, evaluator.reference.shape) == (20 * len(which), (1, 2, 2))
    rows = [
        evaluate(trained(tmp_path), Sampling(Euler(1), 9, batch_size=k, frames_per_clip=most), evaluator).to_json()
        for k in (4, 9)
    ]
    measure = Measure(Identity().build(evaluator.data), evaluator.reference)
    measure.update(frames_of(noise(0, range(9), 0, SHAPE) / 4, which))
    assert rows[0]["frechet_distance"] == pytest.approx(rows[1]["frechet_distance"], rel=1e-9)
    assert rows[0]["frechet_distance"] == pytest.approx(measure.result().frechet_distance, rel=1e-6)
    assert (rows[0]["n"], rows[0]["frames_per_clip"]) == (9 * len(which), len(which))
    assert rows[0]["quantised"] == "rounded to 8 bits"


def test_frames_have_the_label_of_their_clip(tmp_path):
    evaluator = build_evaluator(Clips(num_classes=2), CPU, SorterConfig())
    row = evaluate(trained(tmp_path, Labels(2)), Sampling(Euler(1), 10), evaluator)
    x = frames_of(noise(0, range(10), 0, SHAPE) / 4, range(4))
    labels = balanced_labels(Labels(2), range(10)).repeat_interleave(4)
    right = (Sorter().classify(x).argmax(1) == labels).double().mean()
    assert row.measurement.accuracy == pytest.approx(float(right))


def test_frames_have_the_prompt_of_their_clip_and_decoded_ones_are_counted(tmp_path):
    asked = []

    class Score:
        identity = "score"

        def scores(self, x, prompts, quantise):
            asked.extend(prompts)
            return x.flatten(1).double().mean(1)

    class Longer:
        """Twice as many frames, and another at the end."""

        identity = "longer"

        def frames(self, shape):
            return 2 * shape[1] + 1

        def __call__(self, x):
            return torch.cat([x, x, x[:, :, :1]], 2)

    sampling = Sampling(Euler(1), 3, decoder=Longer())
    row = evaluate(trained(tmp_path, data=Titled(2)), sampling, CLIPEvaluator(Score()))
    assert asked == [f"clip {k}" for k in (0, 1, 0) for _ in range(9)]
    x = Longer()(noise(0, range(3), 0, SHAPE) / 4)
    assert row.measurement.clip_score == pytest.approx(float(x.double().mean()), abs=1e-7)
    assert (row.measurement.n, row.frames_per_clip) == (27, 9)


def test_images_have_no_frames(tmp_path):
    sampling = Sampling(Euler(1), 3, decoder=SimpleNamespace(identity="one", frames=lambda shape: 1))
    assert sampling.frames((4, 1, 2, 2)) is None
    assert Sampling(Euler(1), 3, decoder=SimpleNamespace(identity="old")).frames((4, 2, 2)) is None
    assert Sampling(Euler(1), 3).frames((3, 8, 8)) is None
    assert Sampling(Euler(1), 3).frames((4, 5, 8, 8)) is None  # latents


def test_other_frames_than_the_real_ones_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"frames_per_clip: 2 frames of each sample, and the evaluator has 4"):
        evaluate(trained(tmp_path), Sampling(Euler(1), 9, frames_per_clip=2), build_evaluator(Clips(), CPU, Identity()))
    with pytest.raises(ValueError, match="frames_per_clip = 0, expected at least 1"):
        Sampling(Euler(1), 9, frames_per_clip=0)


def test_a_reference_of_frames_is_that_of_their_images(tmp_path):
    class Images(Clips):
        shape = SHAPE[:1] + SHAPE[2:]

        def __init__(self):
            super().__init__()
            self.x = frames_of(self.x, range(FRAMES))

    images = Images()
    expected = build_reference(images, Identity().build(images))
    assert build_evaluator(Clips(), CPU, Identity()).reference.fingerprint == expected.fingerprint
