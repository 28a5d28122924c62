# SPDX-License-Identifier: Apache-2.0
"""What a slide's label map becomes on its way to disk: a pyramid that other programs see, and a small picture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipeline.data.slides.palette import colour_of
from pipeline.inference import write_label_pyramid
from pipeline.inference.slides import label_pyramid as pyramid
from pipeline.inference.slides.overview import Overview, with_legend


def bands_of(labels: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    for top in range(0, len(labels), rows):
        yield labels[top : top + rows]


def blocks(height: int, width: int, edge: int = 90) -> np.ndarray:
    random = np.random.default_rng(0).integers(0, 4, (height // edge + 1, width // edge + 1), dtype=np.uint8)
    return np.kron(random, np.ones((edge, edge), np.uint8))[:height, :width]


@pytest.mark.parametrize(("height", "width"), [(2500, 1300), (512, 512), (513, 700), (5, 3), (1, 600)])
@pytest.mark.parametrize("rows", [1, 192, 700])
def test_levels_are_samples_of_the_level_above(tmp_path: Path, height: int, width: int, rows: int) -> None:
    labels = blocks(height, width)
    write_label_pyramid(tmp_path / "a.tif", bands_of(labels, rows), labels.shape, pixel_um=0.5)
    expected = [labels]
    while max(expected[-1].shape) > 512 and min(expected[-1].shape) > 1:
        expected.append(expected[-1][1::4, 1::4])
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert [page.shape for page in tiff.pages] == [level.shape for level in expected]
        for index, (page, level) in enumerate(zip(tiff.pages, expected, strict=True)):
            assert np.array_equal(page.asarray(), level)
            assert (page.dtype, page.tile, page.compression) == (
                np.uint8,
                (512, 512),
                tifffile.COMPRESSION.ADOBE_DEFLATE,
            )
            assert page.subfiletype == (index > 0)
            across, down = page.tags["XResolution"].value, page.tags["YResolution"].value
            assert across[0] / across[1] == pytest.approx(20000 * level.shape[1] / width, rel=1e-6)
            assert down[0] / down[1] == pytest.approx(20000 * level.shape[0] / height, rel=1e-6)
        assert len(tiff.series[0].levels) == len(expected), "tifffile sees one image with its levels"
        assert not tiff.is_bigtiff
    assert os.listdir(tmp_path) == ["a.tif"]


def test_no_resolution_where_the_slide_tells_none(tmp_path: Path) -> None:
    write_label_pyramid(tmp_path / "a.tif", [np.ones((40, 30), np.uint8)], (40, 30))
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert tiff.pages[0].tags["ResolutionUnit"].value == 1
        assert tiff.pages[0].tags["XResolution"].value == (1, 1)


def test_large_maps_are_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "_PLAIN_TIFF_BYTES", 900 * 900)
    for side, big in ((800, False), (900, True)):
        labels = blocks(side, side)
        write_label_pyramid(tmp_path / "a.tif", bands_of(labels, 100), labels.shape)
        with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
            assert tiff.is_bigtiff == big
            assert np.array_equal(tiff.asarray(), labels)


@pytest.mark.parametrize("rows", [600, 1100])
def test_bands_that_are_not_the_map_are_a_defect(tmp_path: Path, rows: int) -> None:
    with pytest.raises(ValueError, match=f"{rows} rows or more, not the 1000"):
        write_label_pyramid(tmp_path / "a.tif", bands_of(blocks(rows, 50), 100), (1000, 50))


def test_openslide_sees_the_levels(tmp_path: Path) -> None:
    openslide = pytest.importorskip("openslide")
    labels = blocks(2500, 1300)
    write_label_pyramid(tmp_path / "a.tif", bands_of(labels, 192), labels.shape, pixel_um=0.5)
    with openslide.OpenSlide(str(tmp_path / "a.tif")) as slide:
        assert slide.level_dimensions == ((1300, 2500), (325, 625), (81, 156))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        for level, expected in enumerate((labels, labels[1::4, 1::4])):
            seen = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))
            assert np.array_equal(seen[..., 0], expected)
            assert (seen[..., 3] == 255).all()


def test_overview_tints_classes_outlines_them_and_hatches_what_is_unreadable() -> None:
    overview = Overview(np.full((6, 20, 3), 200, np.uint8), (24, 80), unreadable=255)
    labels = np.zeros((24, 80), np.uint8)
    labels[5:21, 10:30] = 1  # the middles of rows 1..4 and columns 2..6 of the overview
    labels[:, 40:] = 255
    for top in range(0, 24, 7):
        overview.add(top, labels[top : top + 7])
    assert np.array_equal(overview.labels, labels[2::4, 2::4])
    picture = overview.picture()
    orange = np.array([0xE6, 0x9F, 0x00])
    assert picture[1, 2].tolist() == picture[4, 6].tolist() == orange.tolist()
    assert picture[2, 3].tolist() == np.rint(0.65 * 200 + 0.35 * orange).tolist()
    assert picture[0, 0].tolist() == [200, 200, 200]
    hatched = {tuple(pixel) for pixel in picture[:, 10:].reshape(-1, 3).tolist()}
    assert hatched == {(0, 0, 0), (255, 221, 0)}


def test_classes_beyond_the_palette_have_colours_too() -> None:
    colours = [colour_of(value) for value in range(1, 21)]
    assert len(set(colours[:8])) == 8
    assert len(set(colours[8:])) == 12
    assert all(len(bytes.fromhex(colour[1:])) == 3 for colour in colours)


def test_legend_stands_below_the_picture_in_the_colours_of_the_classes():
    picture = np.full((30, 40, 3), 7, np.uint8)
    shown = with_legend(picture, {"tumour: 3.0 % of the tissue": "#D55E00", "stroma: 9.1 % of the tissue": "#0072B2"})
    np.testing.assert_array_equal(shown[:30, :40], picture)
    assert len(shown) == 30 + 2 * 20 + 6
    assert shown.shape[1] > 150, "wide enough for its text"
    assert (shown[:30, 40:] == 255).all()
    assert shown[30 + 6 + 7, 6 + 7].tolist() == [0xD5, 0x5E, 0x00]
    assert shown[30 + 6 + 20 + 7, 6 + 7].tolist() == [0x00, 0x72, 0xB2]
    assert (shown[36:50, 30:] < 128).any(), "text"
