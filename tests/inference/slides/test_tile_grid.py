# SPDX-License-Identifier: Apache-2.0
"""Where tiles lie, how they weigh and which are glass, and what `TileInferer` is made from."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.data import IntensityRule, preprocessing_of
from pipeline.errors import InputError
from pipeline.inference import TileInferer, tile_inferer_of
from pipeline.inference.slides.tile_grid import TileGrid, blending_window, mirrored
from pipeline.inference.slides.tile_sources import find_glass_tiles
from tests.preprocessing import tile_preprocessing

DESCRIPTION = tile_preprocessing(IntensityRule("window", 0.0, 255.0))
TO_ONE = preprocessing_of(DESCRIPTION)


def test_tiles_are_regular_from_the_top_left_and_the_last_reach_beyond() -> None:
    grid = TileGrid(height=10, width=14, tile_px=4, step=3)
    assert list(grid.tops) == [0, 3, 6]
    assert list(grid.lefts) == [0, 3, 6, 9, 12]
    assert [grid.band(row) for row in range(3)] == [(0, 3), (3, 3), (6, 4)]
    assert list(TileGrid(4, 5, 4, 4).lefts) == [0, 4]


def test_the_border_is_mirrored_without_its_last_pixel_twice() -> None:
    assert mirrored(1, 4, 5) == (1, 4, None)
    first, count, order = mirrored(2, 4, 5)  # pixels 2 3 4 and again 3
    assert (first, count, order.tolist()) == (2, 3, [0, 1, 2, 1])
    first, count, order = mirrored(4, 4, 5)  # pixels 4 3 2 1
    assert (first, count, order.tolist()) == (1, 4, [3, 2, 1, 0])


def test_weights_fall_off_in_the_overlap_alone() -> None:
    row = torch.tensor([0.5, 1.0, 1.0, 0.5])
    assert torch.equal(blending_window(4, 3, torch.device("cpu")), row[:, None] * row)
    assert torch.equal(blending_window(3, 3, torch.device("cpu")), torch.ones(3, 3))


@pytest.mark.parametrize("step", [1, 3, 5, 8, 10])
def test_weights_are_positive_and_add_up_to_one_at_overlaps_up_to_a_half(step: int) -> None:
    ramp = blending_window(10, step, torch.device("cpu")).diagonal().sqrt()
    total = torch.zeros(60)
    for start in range(0, 51, step):
        total[start : start + 10] += ramp
    assert ramp.min() > 0
    if step >= 5:
        torch.testing.assert_close(total[10 : 10 + 3 * step], torch.ones(3 * step))


def test_a_thumbnail_tells_glass_by_a_margin_and_with_its_neighbourhood() -> None:
    # A slide of 40 x 60 in tiles of 10; a pixel of the thumbnail is 5 x 5 of the slide, so a tile is 2 x 2 of them.
    grid = TileGrid(height=40, width=60, tile_px=10, step=10)
    thumbnail = np.full((8, 12, 3), 231, np.uint8)
    assert find_glass_tiles(thumbnail, grid, background=220).all()
    assert not find_glass_tiles(thumbnail - 1, grid, background=220).any()
    thumbnail[4, 4, 1] = 230  # the first pixel of tile (2, 2): the tiles above and to the left touch it
    expected = np.ones((4, 6), bool)
    expected[1:3, 1:3] = False
    assert np.array_equal(find_glass_tiles(thumbnail, grid, background=220), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "must be 1 or more"),
        ({"tile_px": 0}, "must be 1 or more"),
        ({"tiles_per_batch": 0}, "must be 1 or more"),
        ({"overlap": 1.0}, "overlap is 1.0; give a share"),
        ({"overlap": -0.1}, "overlap is -0.1"),
        ({"overlap": float("nan")}, "overlap is nan"),
        ({"amp_dtype": "half"}, "amp_dtype 'half' is unknown"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TileInferer(**{"size": 8, "tile_px": 16, "preprocessing": TO_ONE, **arguments})


def test_autocast_runs_the_network_in_the_narrow_type() -> None:
    seen = []

    class Probe(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            seen.append(logits.dtype)
            return logits

    TileInferer(4, 4, TO_ONE, amp_dtype="bfloat16")(torch.zeros(1, 1, 4, 4), Probe(1, 2, 1))
    assert seen == [torch.bfloat16]


def test_further_arguments_go_to_the_network() -> None:
    def network(images: Tensor, shift: float, scale: float = 1.0) -> Tensor:
        return torch.cat([shift - images, scale + images], dim=1)

    inferer = TileInferer(4, 4, TO_ONE)
    assert inferer(torch.zeros(1, 1, 4, 4), network, 2.0, scale=1.0).sum() == 0
    assert inferer(torch.zeros(1, 1, 4, 4), network, 2.0, scale=3.0).sum() == 16


def test_inferer_of_a_model() -> None:
    model = SimpleNamespace(size=256, tile_px=1024, preprocessing=DESCRIPTION)
    inferer = tile_inferer_of(model, overlap=0.5, tiles_per_batch=2, background=None)
    assert (inferer.size, inferer.tile_px, inferer.step) == (256, 1024, 512)
    assert (inferer.tiles_per_batch, inferer.background) == (2, None)
    assert inferer.preprocessing.description == DESCRIPTION
    with pytest.raises(InputError, match="trained on scans, not on slides"):
        tile_inferer_of(SimpleNamespace(size=224, tile_px=None, preprocessing=DESCRIPTION))
