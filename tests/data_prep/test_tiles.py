# SPDX-License-Identifier: Apache-2.0
"""Crops of pictures: by hand, mirrored at the edges, and as other tools cut and shrink them."""

import numpy as np
import pytest
from PIL import Image

from data_prep.tiles import cut_tiles
from tests.data_prep.gastric_pictures import picture


def test_a_crop_of_four_pixels_shrunk_to_two_by_hand():
    # Shrinking by two weighs the pixels around 3.0 by triangles: 1.5 by 1/4, 2.5 and 3.5 by 3/4.
    # So 72 * 0.75 / 1.75 = 30.9.
    image = np.zeros((4, 4, 1), np.uint8)
    image[:, 3] = 72
    labels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    (tile,) = cut_tiles(image, labels, crop_px=4, size=2)
    assert tile.image[..., 0].tolist() == [[0, 31], [0, 31]]
    # The middles of the new pixels, 1.0 and 3.0, lie in the old ones 1 and 3.
    assert tile.labels.tolist() == [[5, 7], [13, 15]]


def test_the_last_column_and_row_are_mirrored_without_repeating_the_edge():
    labels = np.arange(30, dtype=np.uint8).reshape(5, 6)
    tiles = list(cut_tiles(labels[..., None], labels, crop_px=4, size=4))
    assert [(tile.row, tile.column) for tile in tiles] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert tiles[1].labels[0].tolist() == [4, 5, 4, 3]
    assert tiles[2].labels[:, 0].tolist() == [24, 18, 12, 6]
    assert tiles[3].labels[3].tolist() == [10, 11, 10, 9]
    assert all(np.array_equal(tile.image[..., 0], tile.labels) for tile in tiles)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12), (5, 7), (7, 4)])
def test_tiles_are_the_picture_padded_by_numpy(height, width):
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
    rows, columns = -(-height // 4), -(-width // 4)
    padded = np.pad(image, ((0, rows * 4 - height), (0, columns * 4 - width), (0, 0)), mode="reflect")
    tiles = list(cut_tiles(image, image[..., 0], crop_px=4, size=4))
    assert len(tiles) == rows * columns
    for tile in tiles:
        top, left = 4 * tile.row, 4 * tile.column
        assert np.array_equal(tile.image, padded[top : top + 4, left : left + 4])


def test_shrinking_agrees_with_pillow():
    image = picture(0, side=64)
    (tile,) = cut_tiles(image, image[..., 0], crop_px=64, size=16)
    pillow = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR))
    assert np.abs(tile.image.astype(int) - pillow).max() <= 1


def test_a_picture_smaller_than_a_crop_is_no_tile():
    with pytest.raises(ValueError, match="4 x 3 pixels holds no crop of 4"):
        next(cut_tiles(np.zeros((4, 3, 1), np.uint8), np.zeros((4, 3), np.uint8), 4, 4))
