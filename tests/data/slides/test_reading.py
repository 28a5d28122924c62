# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.data.slides import openslide as openslide_slide
from pipeline.data.slides import tiff as tiff_slide
from pipeline.data.slides.base import ArraySlide
from pipeline.data.slides.open import SLIDE_SUFFIXES, is_slide, open_slide
from pipeline.data.slides.tiff import TiffSlide
from pipeline.errors import InputError
from tests.data.slides.slide_files import (
    HEIGHT,
    TILED,
    WIDTH,
    check_regions,
    damage_segment,
    overwrite_tag,
    picture,
    write_pyramid,
    write_sparse,
    write_tiff,
)

# ---------------------------------------------------------------------------------------------- values derived by hand


def test_the_thumbnail_shares_a_pixel_between_two_bins():
    columns = np.array([0, 90, 180], np.uint8)
    slide = ArraySlide(np.broadcast_to(columns[None, :, None], (3, 3, 3)))
    # Bins are 1.5 pixels wide: (0 + 90 / 2) / 1.5 = 30 and (90 / 2 + 180) / 1.5 = 150.
    np.testing.assert_array_equal(slide.thumbnail(2)[..., 0], [[30, 150], [30, 150]])


@pytest.mark.parametrize("options", [{}, {"rowsperstrip": 1}, {"tile": (16, 16)}])
def test_the_thumbnail_averages_four_pixels(tmp_path: Path, options: dict):
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[:, :, 0] = [[0, 10, 200, 201], [20, 30, 202, 203]]
    with TiffSlide(write_tiff(tmp_path / "a.tif", pixels, **options)) as slide:
        np.testing.assert_array_equal(slide.thumbnail(2), [[[15, 0, 0], [202, 0, 0]]])  # 201.5 rounds to even


def test_the_thumbnail_keeps_the_aspect_and_never_enlarges():
    slide = ArraySlide(picture(30, 90))
    assert slide.thumbnail(30).shape == (10, 30, 3)
    assert slide.thumbnail(1).shape == (1, 1, 3)
    np.testing.assert_array_equal(slide.thumbnail(1000), slide.pixels)


def test_the_thumbnail_of_one_pixel_is_the_mean_of_all():
    pixels = picture(1500, 2100)  # several blocks, whose borders cut through bins
    np.testing.assert_array_equal(ArraySlide(pixels).thumbnail(1)[0, 0], np.rint(pixels.mean((0, 1))))


def test_blocks_leave_no_trace_in_the_thumbnail():
    slide = ArraySlide(picture(70, 90))
    whole = slide.thumbnail(37)
    slide._block_shape = lambda level: (7, 11)
    np.testing.assert_array_equal(slide.thumbnail(37), whole)


@pytest.mark.parametrize("subs", [True, False])
@pytest.mark.parametrize(("longest_px", "level"), [(100, 0), (65, 0), (64, 1), (33, 1), (32, 2), (9, 2)])
def test_the_thumbnail_comes_from_the_smallest_level_that_is_large_enough(
    tmp_path: Path, subs: bool, longest_px: int, level: int
):
    grey_by_level = [np.full((128 >> n, 96 >> n, 3), 50 * (n + 1), np.uint8) for n in range(3)]
    with TiffSlide(write_pyramid(tmp_path / "a.tif", grey_by_level, subs)) as slide:
        assert np.unique(slide.thumbnail(longest_px)).tolist() == [50 * (level + 1)]
        assert slide.unreadable == slide.notes == []


# ------------------------------------------------------------------------------------------------- regions, pixel-exact

FORMATS = {
    "tiles": TILED,
    "tiles, deflate": {**TILED, "compression": "zlib"},
    "tiles, deflate, predictor": {**TILED, "compression": "zlib", "predictor": True},
    "tiles, BigTIFF": {**TILED, "compression": "zlib", "bigtiff": True},
    "tiles, big-endian": {**TILED, "compression": "zlib", "byteorder": ">"},
    "one strip": {},
    "strips": {"rowsperstrip": 7},
    "strips of a row, deflate": {"rowsperstrip": 1, "compression": "zlib"},
    "strips, deflate, predictor": {"rowsperstrip": 32, "compression": "zlib", "predictor": True},
}
CODED_FORMATS = {
    "tiles, LZW": {**TILED, "compression": "lzw"},
    "strips, LZW, predictor": {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
    "tiles, Zstandard": {**TILED, "compression": "zstd"},
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_regions_are_those_of_the_array(tmp_path: Path, name: str, channels: int):
    pixels = picture(channels=channels)
    check_regions(write_tiff(tmp_path / "a.tif", pixels, **FORMATS[name]), pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CODED_FORMATS)
def test_regions_are_those_of_the_array_with_imagecodecs(tmp_path: Path, name: str, channels: int):
    pytest.importorskip("imagecodecs")
    pixels = picture(channels=channels)
    check_regions(write_tiff(tmp_path / "a.tif", pixels, **CODED_FORMATS[name]), pixels)


@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_adobe_deflate"])
def test_regions_are_those_that_pillow_wrote(tmp_path: Path, compression: str):
    pixels = picture() // 128 * 200  # with runs
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression=compression)
    check_regions(tmp_path / "a.tif", pixels)


@pytest.mark.parametrize("options", [{}, {**TILED, "compression": "zlib"}, {"rowsperstrip": 7}])
def test_colours_in_separate_planes(tmp_path: Path, options: dict):
    pixels = picture()
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate", **options)
    check_regions(tmp_path / "a.tif", pixels)


def test_grey_whose_zero_is_white(tmp_path: Path):
    pixels = picture(channels=1)
    check_regions(write_tiff(tmp_path / "a.tif", 255 - pixels, photometric="miniswhite", **TILED), pixels)
    with Image.open(tmp_path / "a.tif") as other:
        np.testing.assert_array_equal(np.asarray(other.convert("L")), pixels[..., 0])


def test_plain_pixels_in_one_strip_are_cut_into_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiff_slide, "_PLAIN_ROWS_BYTES", 1000)
    pixels = picture()
    check_regions(write_tiff(tmp_path / "a.tif", pixels), pixels)
    with TiffSlide(tmp_path / "a.tif") as slide:
        slide.read(10, 10, 1, 1)
        assert slide.cached_bytes == 3 * WIDTH * 3  # three rows of 270 bytes


@pytest.mark.parametrize("writer", ["Pillow", "tifffile"])
def test_a_jpeg_tiff_is_as_pillow_reads_it(tmp_path: Path, writer: str):
    pytest.importorskip("imagecodecs")
    smooth = np.asarray(Image.fromarray(picture(9, 12)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    if writer == "Pillow":  # RGB in JPEG
        Image.fromarray(smooth).save(tmp_path / "a.tif", compression="jpeg")
    else:  # YCbCr, in tiles that share their tables
        write_tiff(tmp_path / "a.tif", smooth, compression="jpeg", tile=(32, 32))
    with Image.open(tmp_path / "a.tif") as other, TiffSlide(tmp_path / "a.tif") as slide:
        region = slide.read(0, 0, HEIGHT, WIDTH).astype(int)
        assert np.abs(region - np.asarray(other)).max() <= 2  # two builds of libjpeg


@pytest.mark.parametrize("region", [(-1, 0, 5, 5), (0, -1, 5, 5), (66, 0, 5, 5), (0, 86, 5, 5), (0, 0, 0, 5)])
def test_a_region_that_is_not_inside_is_refused(tmp_path: Path, region: tuple[int, int, int, int]):
    for slide in (ArraySlide(picture()), TiffSlide(write_tiff(tmp_path / "a.tif", picture()))):
        with slide, pytest.raises(ValueError, match="is not inside a slide of 70 x 90"):
            slide.read(*region)


# ------------------------------------------------------------------------------------------------------- bounded memory


def test_a_slide_of_40000_pixels_a_side_costs_what_is_read(tmp_path: Path):
    tile = picture(512, 512)
    write_sparse(tmp_path / "a.tif", 40_000, 40_000, {80: tile})  # 79 tiles a row: the second of the second row
    with open_slide(tmp_path / "a.tif") as slide:
        region = slide.read(500, 500, 600, 600)
        np.testing.assert_array_equal(region[12:524, 12:524], tile)
        region[12:524, 12:524] = 255
        assert region.min() == 255  # tiles without bytes are background
        assert slide.read(39_000, 39_000, 1000, 1000).min() == 255
        assert slide.cached_bytes == tile.nbytes
        assert slide.unreadable == []


@pytest.mark.parametrize(("options", "segment"), [(TILED, 32 * 16 * 3), ({"rowsperstrip": 8}, 8 * WIDTH * 3)])
def test_decoded_segments_are_kept_up_to_the_limit(tmp_path: Path, options: dict, segment: int):
    pixels = picture()
    path = write_tiff(tmp_path / "a.tif", pixels, compression="zlib", **options)
    for limit, kept in ((4 * segment + 7, 4 * segment), (1, segment)):  # the newest stays in any case
        with TiffSlide(path, cache_bytes=limit) as slide:
            largest = 0
            for top, left in itertools.product(range(0, 64, 8), range(0, 88, 8)):
                region = slide.read(top, left, 6, 2)
                np.testing.assert_array_equal(region, pixels[top : top + 6, left : left + 2])
                largest = max(largest, slide.cached_bytes)
            assert largest == kept
        assert slide.cached_bytes == 0


def test_only_what_a_region_touches_is_decoded(tmp_path: Path):
    pixels = picture(96, 96)
    path = write_tiff(tmp_path / "a.tif", pixels, tile=(32, 32), compression="zlib")
    for index in set(range(9)) - {4}:
        damage_segment(path, index)
    with TiffSlide(path) as slide:
        np.testing.assert_array_equal(slide.read(32, 32, 32, 32), pixels[32:64, 32:64])
        assert slide.unreadable == []


def test_a_segment_is_decoded_once_while_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    decoded = []
    original = tiff_slide._Level.read
    monkeypatch.setattr(
        tiff_slide._Level, "read", lambda level, *place: decoded.append(place) or original(level, *place)
    )
    with TiffSlide(write_tiff(tmp_path / "a.tif", picture(64, 64), tile=(32, 32))) as slide:
        for left in range(0, 60, 4):
            slide.read(0, left, 40, 4)
    assert sorted(decoded) == [(0, 0), (0, 1), (1, 0), (1, 1)]


# ------------------------------------------------------------------------------------------------------ size of a pixel


@pytest.mark.parametrize(
    ("options", "pixel_um"),
    [
        ({"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}, 0.5),
        ({"resolution": (50_800, 50_800), "resolutionunit": "INCH"}, 0.5),
        ({"description": "Aperio |AppMag = 20|MPP = 0.4990|Left = 1"}, 0.499),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),  # 353 micrometres: no microscope's
        ({"resolution": (20_000, 20_000), "resolutionunit": "NONE"}, None),
        ({"resolution": (20_000, 10_000), "resolutionunit": "CENTIMETER"}, None),
        ({}, None),
    ],
)
def test_the_size_of_a_pixel_is_told_where_it_is_credible(tmp_path: Path, options: dict, pixel_um: float | None):
    with TiffSlide(write_tiff(tmp_path / "a.tif", picture(), **options)) as slide:
        assert slide.pixel_um == pytest.approx(pixel_um)


def test_a_resolution_divided_by_zero_tells_nothing(tmp_path: Path):
    path = write_tiff(tmp_path / "a.tif", picture(), resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    overwrite_tag(path, "XResolution", (20_000, 0))
    with TiffSlide(path) as slide:
        assert slide.pixel_um is None


# ------------------------------------------------------------------------------------------- pictures and the choice


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_is_read_whole_with_its_colours(tmp_path: Path, channels: int):
    pixels = picture(channels=channels)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(tmp_path / "a.PNG")
    check_regions(tmp_path / "a.PNG", pixels)
    with open_slide(tmp_path / "a.PNG") as slide:
        assert isinstance(slide, ArraySlide)
        assert slide.pixels.shape == pixels.shape
        assert slide.pixel_um is None


def test_what_a_picture_may_not_be_is_refused_as_elsewhere(tmp_path: Path):
    Image.fromarray(picture(channels=4)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="has an alpha channel"):
        open_slide(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    with pytest.raises(InputError, match="truncated or damaged"):
        open_slide(tmp_path / "b.png")


def test_an_array_as_a_slide_gives_copies():
    slide = ArraySlide(picture())
    slide.read(0, 0, 5, 5)[:] = 0
    np.testing.assert_array_equal(slide.pixels, picture())


@pytest.mark.parametrize("pixels", [picture()[..., 0], picture(channels=4), picture() / 255, picture()[:0]])
def test_an_array_that_is_no_image_is_refused(pixels: np.ndarray):
    with pytest.raises(ValueError, match="not uint8"):
        ArraySlide(pixels)


def test_slides_are_known_by_suffix(tmp_path: Path):
    assert all(is_slide(f"x{suffix.upper()}") for suffix in SLIDE_SUFFIXES)
    assert {".svs", ".ndpi", ".mrxs", ".tif", ".png", ".jpg"} <= set(SLIDE_SUFFIXES)
    assert not is_slide("x.nii.gz")
    with pytest.raises(InputError, match=r"no slide by its name; known suffixes are \.png"):
        open_slide(tmp_path / "x.gif")


def test_without_openslide_an_svs_is_read_as_tiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(openslide_slide, "_openslide", lambda: None)
    path = write_tiff(tmp_path / "a.svs", picture(), **TILED)
    check_regions(path, picture())
    path.rename(tmp_path / "a.ndpi")
    with pytest.raises(InputError, match=r'OpenSlide, which is not installed: pip install -e "\.\[wsi\]"'):
        open_slide(tmp_path / "a.ndpi")
