# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.data.slides import tiff as tiff_slide
from pipeline.data.slides.base import ArraySlide, Unreadable
from pipeline.data.slides.open import open_slide
from pipeline.data.slides.tiff import TiffSlide
from pipeline.errors import InputError
from tests.data.slides.slide_files import (
    HEIGHT,
    TILED,
    WIDTH,
    damage_segment,
    halved,
    overwrite_entry,
    overwrite_tag,
    picture,
    write_pyramid,
    write_tiff,
)

# --------------------------------------------------------------------------------------------------------------- damage


def with_damage(kind: str, path: Path) -> str:
    """Write a slide of 3 x 3 tiles of 32 with tile 4 (x 32, y 32) damaged; return what the reason must say."""
    write_tiff(path, picture(90, 80), tile=(32, 32), compression="zlib")
    if kind == "bytes overwritten":
        damage_segment(path, 4)
        return ""
    if kind == "beyond the end":
        overwrite_entry(path, "TileOffsets", 4, 10**8)
        return "outside the file: bytes 100000000"
    if kind == "partly beyond":
        overwrite_entry(path, "TileOffsets", 4, path.stat().st_size - 5)
        return "partly outside the file"
    if kind == "too short":
        overwrite_entry(path, "TileByteCounts", 4, 20)
        return ""
    overwrite_entry(path, "TileByteCounts", 4, 10**6, dtype=4)
    with open(path, "ab") as file:
        file.write(bytes(10**6))
    return "1000000 bytes for 3072 bytes of pixels"


@pytest.mark.parametrize("kind", ["bytes overwritten", "beyond the end", "partly beyond", "too short", "too long"])
def test_a_damaged_tile_is_white_and_listed_once(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "a.tif"
    reason = with_damage(kind, path)
    expected = picture(90, 80)
    expected[32:64, 32:64] = 255
    with TiffSlide(path) as slide, caplog.at_level(logging.WARNING, "pipeline"):
        for _ in range(2):
            np.testing.assert_array_equal(slide.read(0, 0, 90, 80), expected)
        slide.thumbnail(20)
        (part,) = slide.unreadable
    assert part == Unreadable(0, 32, 32, 32, 32, part.reason)
    assert reason in part.reason
    assert part.reason
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("pipeline")]
    assert str(path) in line
    assert "level 0" in line
    assert "x=32, y=32" in line


def test_damaged_tiles_at_the_border_are_listed_as_far_as_the_slide_goes(tmp_path: Path):
    path = write_tiff(tmp_path / "a.tif", picture(90, 80), tile=(32, 32), compression="zlib")
    damage_segment(path, 8)
    with TiffSlide(path) as slide:
        slide.read(80, 70, 10, 10)
        assert slide.unreadable == [Unreadable(0, 64, 64, 26, 16, slide.unreadable[0].reason)]


def test_a_file_that_is_cut_off_loses_its_last_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiff_slide, "_PLAIN_ROWS_BYTES", 10 * WIDTH * 3)
    pixels = picture()
    path = write_tiff(tmp_path / "a.tif", pixels)
    os.truncate(path, path.stat().st_size - 15 * WIDTH * 3)  # one and a half of seven groups of ten rows
    with TiffSlide(path) as slide:
        region = slide.read(0, 0, HEIGHT, WIDTH)
        np.testing.assert_array_equal(region[:50], pixels[:50])
        assert region[50:].min() == 255
        assert [(part.top, part.height) for part in slide.unreadable] == [(50, 10), (60, 10)]


def test_jpeg_data_that_are_cut_off_are_found(tmp_path: Path):
    pytest.importorskip("imagecodecs")
    path = write_tiff(tmp_path / "a.tif", picture(64, 64), tile=(32, 32), compression="jpeg")
    with tifffile.TiffFile(path) as file:
        count = file.pages[0].databytecounts[1]
    overwrite_entry(path, "TileByteCounts", 1, count // 2)
    with TiffSlide(path) as slide:
        assert slide.read(0, 32, 32, 32).min() == 255
        assert [part.reason for part in slide.unreadable] == ["its JPEG data end early"]


def test_deflate_that_inflates_to_more_than_its_pixels_is_not_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiff_slide, "MAX_SEGMENT_BYTES", 10**6)
    path = write_tiff(tmp_path / "a.tif", picture(32, 64), tile=(32, 32), compression="zlib")
    bomb = zlib.compress(bytes(10**7), 9)
    overwrite_entry(path, "TileOffsets", 0, path.stat().st_size)
    overwrite_entry(path, "TileByteCounts", 0, len(bomb))
    with open(path, "ab") as file:
        file.write(bomb)
    with TiffSlide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 32, 64)[:, 32:], picture(32, 64)[:, 32:])
        assert [part.reason for part in slide.unreadable] == ["it inflates to more than its 3072 bytes of pixels"]


def test_a_slide_of_which_nothing_is_readable_is_refused(tmp_path: Path):
    path = write_tiff(tmp_path / "a.tif", picture(64, 32), tile=(32, 32), compression="zlib")
    for index in range(2):
        damage_segment(path, index)
    with TiffSlide(path) as slide:
        assert slide.read(0, 0, 32, 32).min() == 255
        with pytest.raises(InputError, match=r"nothing of .*a\.tif can be read"):
            slide.thumbnail(8)


@pytest.mark.parametrize("kind", ["damaged tile", "no bytes", "beyond the end", "list too short"])
def test_an_unreadable_level_is_named_and_the_next_finer_one_taken(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
):
    fine = picture(128, 128)
    coarse = [halved(fine), halved(halved(fine))]
    path = write_pyramid(tmp_path / "a.tif", [fine, *coarse])
    if kind == "damaged tile":
        damage_segment(path, 0, sub=1)
    elif kind == "no bytes":
        overwrite_tag(path, "TileByteCounts", 0, sub=1)
    elif kind == "beyond the end":
        overwrite_tag(path, "TileOffsets", 10**8, sub=1)
    else:
        overwrite_tag(path, "ImageLength", 33, sub=1)
    with caplog.at_level(logging.WARNING, "pipeline"), TiffSlide(path) as slide:
        for _ in range(2):
            np.testing.assert_array_equal(slide.thumbnail(32), ArraySlide(coarse[0]).thumbnail(32))
        (part,) = slide.unreadable
        assert part == Unreadable(2, 0, 0, 128, 128, part.reason)
        np.testing.assert_array_equal(slide.read(0, 0, 128, 128), fine)
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("pipeline")]
    assert f"{path}: level 2 cannot be read" in line


def test_a_level_whose_directory_is_damaged_keeps_its_number(tmp_path: Path):
    fine = picture(128, 128)
    path = write_pyramid(tmp_path / "a.tif", [fine, halved(fine), halved(halved(fine))])
    overwrite_entry(path, "SubIFDs", 0, 10**8)
    with TiffSlide(path) as slide:
        assert [part.level for part in slide.unreadable] == [1]
        np.testing.assert_array_equal(slide.thumbnail(32), halved(halved(fine)))
        np.testing.assert_array_equal(slide.thumbnail(64), halved(fine))  # from level 0


@pytest.mark.parametrize("offset", [10**8, 9])  # outside, and into the middle of the first directory
def test_a_broken_list_of_pages_is_named(tmp_path: Path, offset: int):
    fine = picture(128, 128)
    path = write_pyramid(tmp_path / "a.tif", [fine, halved(fine)], subs=False)
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].offset + 2 + 12 * len(file.pages[0].tags)
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(offset.to_bytes(4, "little"))
    with TiffSlide(path) as slide:
        np.testing.assert_array_equal(slide.thumbnail(64), halved(fine))
        assert [part.level for part in slide.unreadable] == [1]


def test_what_has_another_aspect_is_no_level(tmp_path: Path):
    fine = picture(128, 128)
    path = write_pyramid(tmp_path / "a.tif", [fine, picture(64, 66), halved(halved(fine))], subs=False)
    with TiffSlide(path) as slide:
        (note,) = slide.notes
        assert note.startswith("page 2, 66 x 64, is no level of this slide")
        np.testing.assert_array_equal(slide.thumbnail(64), halved(fine))
        np.testing.assert_array_equal(slide.thumbnail(32), halved(halved(fine)))
        assert slide.unreadable == []


def test_levels_whose_size_was_rounded_are_levels(tmp_path: Path):
    fine = picture(101, 67)
    path = write_pyramid(tmp_path / "a.tif", [fine, picture(51, 34), picture(25, 16)])
    with TiffSlide(path) as slide:
        assert slide._level_sizes() == [(101, 67), (51, 34), (25, 16)]
        assert slide.notes == []


def test_a_reduced_page_of_another_kind_is_no_level(tmp_path: Path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(picture(), photometric="rgb", metadata=None)
        file.write(np.zeros((35, 45), np.uint16), photometric="minisblack", metadata=None)
        file.write(np.zeros((HEIGHT, WIDTH), np.uint8), photometric="minisblack", subfiletype=1, metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        file.pages[2].tags["NewSubfileType"].overwrite(4)
    with TiffSlide(tmp_path / "a.tif") as slide:
        assert [note.partition(": ")[2][:14] for note in slide.notes] == ["it has 16 bits", "it is a mask"]


# ------------------------------------------------------------------------------------------------------------ bad input


def write_other_kind(name: str, path: Path) -> None:
    rgb = picture()
    if name == "16 bits":
        tifffile.imwrite(path, rgb.astype(np.uint16), photometric="rgb")
    elif name == "signed":
        tifffile.imwrite(path, rgb.astype(np.int8), photometric="rgb")
    elif name == "float":
        tifffile.imwrite(path, rgb[..., 0].astype(np.float32), photometric="minisblack")
    elif name == "palette":
        tifffile.imwrite(path, rgb[..., 0], photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    elif name == "alpha":
        tifffile.imwrite(path, picture(channels=4), photometric="rgb", extrasamples=["unassalpha"])
    elif name == "grey and alpha":
        Image.fromarray(picture(channels=2), mode="LA").save(path)
    elif name == "inks":
        Image.fromarray(picture(channels=4), mode="CMYK").save(path)
    elif name == "one bit":
        Image.fromarray(rgb[..., 0] > 127).save(path)
    elif name == "CIELAB":
        Image.fromarray(rgb, mode="LAB").save(path)
    elif name == "YCbCr outside JPEG":
        write_tiff(path, rgb)
        overwrite_tag(path, "PhotometricInterpretation", 6)
    elif name == "unknown compression":
        write_tiff(path, rgb)
        overwrite_tag(path, "Compression", 34676)
    elif name == "two pages":
        tifffile.imwrite(path, np.stack([rgb, rgb]), photometric="rgb", metadata=None)
    elif name == "second page larger":
        write_pyramid(path, [rgb, picture(140, 180)], subs=False)
    elif name == "turned":
        write_tiff(path, rgb, extratags=[(274, 3, 1, 6, True)])
    else:
        write_damaged(name, path)


def write_damaged(name: str, path: Path) -> None:
    rgb = picture()
    if name == "bomb":
        write_tiff(path, rgb, compression="zlib", rowsperstrip=HEIGHT)
        for tag, value in (("ImageLength", 50_000), ("ImageWidth", 50_000), ("RowsPerStrip", 50_000)):
            overwrite_tag(path, tag, value)
    elif name == "tiles missing in the list":
        write_tiff(path, rgb, **TILED)
        overwrite_tag(path, "ImageLength", 10_000)
    elif name == "all tiles empty":
        write_tiff(path, rgb, **TILED)
        overwrite_tag(path, "TileByteCounts", [0] * 18)
    elif name == "pixels cut off":
        write_tiff(path, rgb)
        os.truncate(path, path.stat().st_size - rgb.nbytes)
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "header cut off":
        write_tiff(path, rgb)
        os.truncate(path, 20)
    elif name == "magic alone":
        path.write_bytes(b"II*\0")
    elif name == "no TIFF":
        path.write_bytes(b"<html>not found</html>")
    elif name == "a folder":
        path.mkdir()


REFUSED = {
    "16 bits": "has 16 bits a channel; save it with 8",
    "signed": "save it with 8, unsigned",
    "float": "has 32 bits a channel",
    "palette": "has a palette; save it as plain RGB",
    "alpha": "has an alpha channel",
    "grey and alpha": "has an alpha channel",
    "inks": "holds inks",
    "one bit": "has one bit a pixel",
    "CIELAB": "is of kind CIELAB",
    "two pages": "page 2 is 90 x 70, as large as the slide itself",
    "second page larger": "page 2 is 180 x 140, as large as the slide",
    "turned": "is to be turned by viewers",
    "bomb": "must be decoded 7 GiB at a time",
    "tiles missing in the list": "it lists 18 of 1878 tiles",
    "all tiles empty": "holds no pixels",
    "pixels cut off": "end before the pixels begin",
    "YCbCr outside JPEG": "holds YCbCr colours outside JPEG",
    "unknown compression": "is compressed as SGILOG",
    "empty": r"is empty \(0 bytes\); copy it anew",
    "header cut off": "is truncated or damaged",
    "magic alone": "is truncated or damaged",
    "no TIFF": "is no TIFF",
    "a folder": "cannot read the slide .*: Is a directory",
    "missing": "cannot read the slide .*: No such file or directory; check the path",
}


@pytest.mark.filterwarnings("ignore:.*mode.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_a_slide_that_cannot_be_read_right_is_refused_in_one_line(tmp_path: Path, name: str):
    path = tmp_path / "a.tif"
    write_other_kind(name, path)
    with pytest.raises(InputError, match=REFUSED[name]) as caught:
        open_slide(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_jpeg_in_tiff_needs_imagecodecs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.fromarray(picture()).save(tmp_path / "a.tif", compression="jpeg")
    monkeypatch.setattr(tiff_slide, "_has_codecs", lambda: False)
    with pytest.raises(InputError, match=r'needs the package imagecodecs: pip install -e "\.\[wsi\]"'):
        open_slide(tmp_path / "a.tif")
