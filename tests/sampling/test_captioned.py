"""Grids with prompts: what stands where, and what does not fit."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from facm.core.files import TakenError
from facm.sampling.captioned import GAP, LEAST_WIDTH, LINE, LINES, captioned_png, save_captioned


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def test_each_picture_stands_in_its_row_and_column_and_small_ones_are_enlarged():
    row = torch.full((3, 1, 8, 8), -1.0)
    row[1] = 1.0
    sheet = pixels(captioned_png([row, -row], ["a", "b", "c"], ["first", "second"]))
    side = LEAST_WIDTH
    assert sheet.shape == (2 * (LINE + side + GAP) + LINES * LINE, 3 * (side + GAP) - GAP, 3)
    for r in range(2):
        middle = r * (LINE + side + GAP) + LINE + side // 2
        values = [sheet[middle, k * (side + GAP) + side // 2, 0] for k in range(3)]
        assert values == ([0, 255, 0] if r == 0 else [255, 0, 255])


def test_large_pictures_keep_their_size_and_prompts_wrap_into_few_lines():
    long = "one two three four five six seven eight nine ten " * 20
    sheet = pixels(captioned_png([torch.zeros(1, 3, 200, 200)], [long]))
    assert sheet.shape == (200 + GAP + LINES * LINE, 200, 3)
    ink = (sheet[200 + GAP :] < 128).any(axis=(1, 2))
    assert all(ink[k * LINE : (k + 1) * LINE].any() for k in range(LINES))


def test_more_prompts_than_columns_follow_below():
    one = pixels(captioned_png([torch.zeros(2, 1, 8, 8)], ["a", "b"], columns=2))
    two = pixels(captioned_png([torch.zeros(3, 1, 8, 8)], ["a", "b", "c"], columns=2))
    assert two.shape == (2 * one.shape[0], *one.shape[1:])


@pytest.mark.parametrize(("prompts", "titles"), [(["a"], []), (["a", "b"], ["one", "two"])])
def test_as_many_prompts_as_pictures_and_titles_as_rows(prompts, titles):
    with pytest.raises(ValueError, match=r"prompts and \d titles for 1 rows of 2 pictures"):
        captioned_png([torch.zeros(2, 1, 8, 8)], prompts, titles)


def test_a_picture_is_not_overwritten(tmp_path):
    save_captioned(tmp_path / "a.png", [torch.zeros(1, 1, 8, 8)], ["a"], new=True)
    with pytest.raises(TakenError):
        save_captioned(tmp_path / "a.png", [torch.zeros(1, 1, 8, 8)], ["a"], new=True)
