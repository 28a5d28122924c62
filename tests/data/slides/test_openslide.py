# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipeline.data.slides.base import ArraySlide, Unreadable
from pipeline.data.slides.open import open_slide
from pipeline.data.slides.openslide import OpenSlideSlide
from pipeline.data.slides.tiff import TiffSlide
from pipeline.errors import InputError
from tests.data.slides.slide_files import (
    damage_segment,
    halved,
    picture,
    write_pyramid,
    write_sparse,
)


@pytest.fixture
def openslide_pyramid(tmp_path: Path) -> Path:
    pytest.importorskip("openslide")
    fine = picture(200, 300)
    options = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    return write_pyramid(tmp_path / "a.svs", [fine, halved(fine)], subs=False, **options)


def test_openslide_and_tifffile_read_the_same(openslide_pyramid: Path):
    with open_slide(openslide_pyramid) as one, TiffSlide(openslide_pyramid) as other:
        assert isinstance(one, OpenSlideSlide)
        assert one.pixel_um == pytest.approx(other.pixel_um) == pytest.approx(0.5)
        assert one._level_sizes() == other._level_sizes() == [(200, 300), (100, 150)]
        for region in ((0, 0, 200, 300), (17, 31, 40, 50), (190, 280, 10, 20)):
            np.testing.assert_array_equal(one.read(*region), other.read(*region))
        for longest_px in (300, 150, 75, 41):
            np.testing.assert_array_equal(one.thumbnail(longest_px), other.thumbnail(longest_px))


def test_openslide_goes_on_after_a_damaged_tile(openslide_pyramid: Path, caplog: pytest.LogCaptureFixture):
    damage_segment(openslide_pyramid, 12)  # 10 tiles of 32 a row: x 64, y 32
    expected = picture(200, 300)
    expected[32:64, 64:96] = 255
    with open_slide(openslide_pyramid) as slide, caplog.at_level(logging.WARNING, "pipeline"):
        for top, left, height, width in ((20, 50, 100, 100), (0, 0, 200, 300), (150, 200, 50, 50), (40, 70, 5, 5)):
            region = slide.read(top, left, height, width)
            np.testing.assert_array_equal(region, expected[top : top + height, left : left + width])
        (part,) = slide.unreadable
    assert part == Unreadable(0, 32, 64, 32, 32, part.reason)
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("pipeline")]
    assert "x=64, y=32" in line


def test_openslide_takes_the_next_finer_level(openslide_pyramid: Path):
    with tifffile.TiffFile(openslide_pyramid) as file:
        offset, count = file.pages[1].dataoffsets[0], file.pages[1].databytecounts[0]
    with open(openslide_pyramid, "r+b") as file:
        file.seek(offset + count // 2)
        file.write(b"\xff" * 12)
    with open_slide(openslide_pyramid) as slide:
        np.testing.assert_array_equal(slide.thumbnail(150), ArraySlide(picture(200, 300)).thumbnail(150))
        assert [part.level for part in slide.unreadable] == [1]


def test_openslide_lays_what_is_transparent_on_white(tmp_path: Path):
    pytest.importorskip("openslide")
    write_sparse(tmp_path / "a.svs", 512, 1024, {1: picture(512, 512)})
    with open_slide(tmp_path / "a.svs") as slide:
        assert slide.read(0, 0, 512, 512).min() == 255
        np.testing.assert_array_equal(slide.read(0, 512, 512, 512), picture(512, 512))
        assert slide.unreadable == []


@pytest.mark.parametrize("suffix", [".svs", ".ndpi", ".mrxs", ".bif"])
def test_openslide_refuses_in_one_line(tmp_path: Path, suffix: str):
    pytest.importorskip("openslide")
    path = tmp_path / f"a{suffix}"
    with pytest.raises(InputError, match="check the path"):
        open_slide(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        open_slide(path)
    path.write_bytes(bytes(1000))
    with pytest.raises(InputError, match="is damaged or no slide that OpenSlide knows"):
        open_slide(path)
