"""The frames of clips: which ones, in which order, and a data set of clips seen as one of images."""

import numpy as np
import pytest
import torch

from facm.core.types import Batch
from facm.data.checked import read_checked
from facm.data.frames import Frames, as_images, is_clip, spaced
from facm.data.in_memory import InMemory


def clips(n: int = 3, channels: int = 1, frames: int = 5) -> torch.Tensor:
    """Clips (n, channels, frames, 2, 4) whose frame k of clip i is 10 i + k throughout."""
    values = torch.arange(n)[:, None] * 10.0 + torch.arange(frames)
    return values[:, None, :, None, None].expand(n, channels, frames, 2, 4).clone()


def test_clips_are_pixels_with_frames_and_nothing_else():
    assert is_clip((1, 5, 8, 8))
    assert is_clip((3, 1, 8, 8))
    assert not is_clip((4, 5, 8, 8))  # latents
    assert not is_clip((3, 8, 8))


def test_frames_are_evenly_spaced_with_the_first_and_the_last():
    assert spaced(9, 3) == [0, 4, 8]
    assert spaced(5, 8) == spaced(5, None) == [0, 1, 2, 3, 4]
    assert spaced(81, 5) == [0, 20, 40, 60, 80]
    assert spaced(7, 1) == [0]


@pytest.mark.parametrize("channels", [1, 3])
def test_frames_of_a_clip_follow_each_other(channels):
    images = as_images(clips(channels=channels))
    assert images.shape == (15, channels, 2, 4)
    assert images[:, 0, 0, 0].tolist() == [10 * i + k for i in range(3) for k in range(5)]
    assert as_images(clips(), 2)[:, 0, 0, 0].tolist() == [0, 4, 10, 14, 20, 24]


@pytest.mark.parametrize("most", [None, 2])
def test_a_data_set_of_clips_as_one_of_images(most):
    x = clips(n=4).numpy()
    frames = Frames(InMemory(x, np.array([0, 1, 1, 0]), 2), most)
    assert (frames.shape, frames.num_classes, frames.per_clip) == ((1, 2, 4), 2, most or 5)
    assert len(frames) == 4 * frames.per_clip
    everything = frames.read(np.arange(len(frames)))
    assert torch.equal(everything.x_1, as_images(torch.from_numpy(x), most))
    assert everything.cond.tolist() == [k for k in (0, 1, 1, 0) for _ in range(frames.per_clip)]
    some = np.array([7, 0, 7, 3])
    batch = frames.read(some)
    assert isinstance(batch, Batch)
    assert torch.equal(batch.x_1, everything.x_1[some])
    assert batch.cond.tolist() == everything.cond[some].tolist()


def test_clips_of_another_scale_are_named():
    with pytest.raises(ValueError, match=r"is of another scale: x_1 runs over \[0, 24\]"):
        read_checked(InMemory(clips().numpy()), np.arange(3))
