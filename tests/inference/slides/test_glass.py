# SPDX-License-Identifier: Apache-2.0
"""Glass is what is bright everywhere once it is resized, whether or not it was resized to find out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.samples.slices import resize_images
from pipeline.inference.slides import glass
from pipeline.inference.slides.glass import is_glass


@pytest.fixture
def resizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return the sizes that tiles have been resized to."""
    called: list[tuple[int, int]] = []

    def recorded(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        called.append(size)
        return resize_images(images, size)

    monkeypatch.setattr(glass, "resize_images", recorded)
    return called


def test_by_hand(resizes: list[tuple[int, int]]) -> None:
    tile = torch.full((3, 64, 64), 230, dtype=torch.uint8)
    assert is_glass(tile, 16, 220)
    tile[1, 20:60, 10:50] = 100  # tissue in one channel
    assert not is_glass(tile, 16, 220)
    assert not resizes
    tile = torch.full((3, 64, 64), 230, dtype=torch.uint8)
    tile[0, 30, 30] = 0  # one pixel, whose darkness is shared by 64
    assert is_glass(tile, 8, 220)
    assert not is_glass(tile, 64, 220)
    assert resizes == [(8, 8), (64, 64)]


@settings(max_examples=300, deadline=None)
@given(
    side=st.integers(1, 40),
    size=st.integers(1, 40),
    square=st.tuples(*[st.integers(0, 40)] * 3),
    dark=st.integers(0, 230),
    background=st.sampled_from([200, 220, 219.5]),
)
def test_equals_resizing_every_tile(
    side: int, size: int, square: tuple[int, int, int], dark: int, background: float
) -> None:
    tile = torch.full((1, side, side), 230, dtype=torch.uint8)
    top, left, length = square
    tile[:, top : top + length, left : left + length] = dark
    lowest = float(resize_images(tile[None].float(), (size, size)).amin())
    if abs(lowest - background) > 1e-3:
        assert is_glass(tile, size, background) == (lowest > background)
