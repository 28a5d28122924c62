# SPDX-License-Identifier: Apache-2.0
"""Files that are no pictures, damaged ones, and those that Pillow would change in silence: refused in one line."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from pipeline.data import image_size, read_image, read_label_image, read_mask_colours
from pipeline.errors import InputError

GREY = np.random.default_rng(0).integers(0, 256, (24, 40), dtype=np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    """Return a picture as the bytes of a file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


PNG, JPEG = encoded(RGB, "PNG"), encoded(RGB, "JPEG")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes) -> bytes:
    """Return a PNG as the standard describes it: `colour_type` 0 grey, 2 RGB; `rows` with their filter bytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


def rotated(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(RGB, kind, exif=exif)


def late_rotation() -> bytes:
    """Return a PNG whose orientation stands behind the pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return PNG[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + PNG[-12:]


def pages() -> bytes:
    return encoded(RGB, "TIFF", save_all=True, append_images=[Image.fromarray(RGB)])


def channel_without_meaning() -> bytes:
    """Return a TIFF of RGB and a fourth channel that is no alpha."""
    return tiff(np.dstack([RGB, GREY]), photometric="rgb", extrasamples=[0])


def inverted_label() -> bytes:
    return tiff(GREY, photometric="miniswhite")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"
BITS_48 = png(1, 1, 16, 2, bytes(7))
MANY_PIXELS = png(60_000, 60_000, 8, 2, bytes(100))
BITS_OF_JPEG = b"\xff\xc0\x00\x11"
SOLID = Image.fromarray(RGB)
FIRST_DATA = PNG.index(b"IDAT") + 4
LAST_DATA = len(PNG) - 12 - 4 - 1

BAD_PICTURES: dict[str, tuple[str, bytes, str]] = {
    "zero bytes": ("a.png", b"", "is empty"),
    "text": ("a.png", b"name,split\n" * 20, "is no PNG, JPEG or TIFF picture"),
    "web page": ("a.jpg", b"\n<!DOCTYPE html><html>404</html>", "is a web page, so the download failed"),
    "git lfs pointer": ("a.tif", LFS, "is a Git LFS pointer.*git lfs pull"),
    "another format": ("a.png", encoded(RGB, "BMP"), "is no PNG, JPEG or TIFF picture"),
    "JPEG without its last byte": ("a.jpg", JPEG[:-1], "is truncated or damaged"),
    "JPEG without its end marker": ("a.jpg", JPEG[:-2], "is truncated or damaged"),
    "JPEG without its last row": ("a.jpg", JPEG[:-40], "is truncated or damaged"),
    "JPEG in half": ("a.jpg", JPEG[: len(JPEG) // 2], "is truncated or damaged"),
    "JPEG of a header": ("a.jpg", JPEG[:100], "is truncated or damaged"),
    "progressive JPEG cut": ("a.jpg", encoded(RGB, "JPEG", progressive=True)[:-40], "is truncated or damaged"),
    "JPEG of 12 bits": (
        "a.jpg",
        JPEG.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
        "is truncated or damaged",
    ),
    "PNG without its end": ("a.png", PNG[:-12], "is truncated or damaged"),
    "PNG in half": ("a.png", PNG[: len(PNG) // 2], "is truncated or damaged"),
    "PNG of a header": ("a.png", PNG[:33], "is truncated or damaged"),
    "PNG cut in the header": ("a.png", PNG[:20], "is truncated or damaged"),
    "PNG with a byte changed": ("a.png", flipped(PNG, FIRST_DATA + 500), "is truncated or damaged"),
    "PNG with its last data changed": ("a.png", flipped(PNG, LAST_DATA), "is truncated or damaged"),
    "PNG with a wrong checksum": ("a.png", flipped(PNG, LAST_DATA + 2), "is truncated or damaged"),
    "PNG of fewer rows": ("a.png", png(2, 9, 8, 2, bytes(9)), "is truncated or damaged"),
    "TIFF in half": ("a.tif", encoded(RGB, "TIFF")[: RGB.size // 2], "damaged|TIFF of a kind"),
    "TIFF with a byte changed": (
        "a.tif",
        flipped(tiff(RGB, photometric="rgb", compression="zlib"), 1500),
        "is truncated or damaged",
    ),
    "header of 3.6 billion pixels": ("a.png", MANY_PIXELS, "claims more than 178 million pixels"),
    "CMYK": ("a.jpg", encoded(SOLID.convert("CMYK"), "JPEG"), "holds inks .CMYK."),
    "16-bit grey PNG": ("a.png", encoded(GREY.astype(np.uint16) * 200, "PNG"), "has 16 bits a channel"),
    "48-bit PNG": ("a.png", BITS_48, "has 16 bits a channel"),
    "16-bit TIFF": ("a.tif", tiff(GREY.astype(np.uint16)), "has 16 bits a channel"),
    "48-bit TIFF": ("a.tif", tiff(RGB.astype(np.uint16), photometric="rgb"), "has 16 bits a channel"),
    "float TIFF": ("a.tif", tiff(GREY.astype(np.float32)), "has 32 bits a channel"),
    "half TIFF": ("a.tif", tiff(GREY.astype(np.float16)), "is a TIFF of a kind that cannot be read"),
    "signed TIFF": ("a.tif", tiff(GREY.astype(np.int8)), "holds signed or real numbers"),
    "palette": ("a.png", encoded(SOLID.quantize(16), "PNG"), "has a palette"),
    "RGBA": ("a.png", encoded(SOLID.convert("RGBA"), "PNG"), "has an alpha channel.*save it as RGB"),
    "LA": ("a.png", encoded(SOLID.convert("LA"), "PNG"), "has an alpha channel.*save it as grey"),
    "LAB": ("a.tif", encoded(Image.new("LAB", (8, 8)), "TIFF"), "is of kind LAB"),
    "transparent colour": ("a.png", encoded(RGB, "PNG", transparency=(1, 2, 3)), "has a transparent colour"),
    "a fourth channel": ("a.tif", channel_without_meaning(), "has 4 channels, of which viewers show 3"),
    "rotation in a JPEG": ("a.jpg", rotated("JPEG"), "is to be rotated by viewers"),
    "rotation in a PNG": ("a.png", rotated("PNG"), "is to be rotated by viewers"),
    "rotation behind the pixels": ("a.png", late_rotation(), "is to be rotated by viewers"),
    "rotation in a TIFF": ("a.tif", rotated("TIFF"), "is to be rotated by viewers"),
    "two pages": ("a.tif", pages(), "holds 2 pages"),
    "one bit": ("a.png", encoded(SOLID.convert("1"), "PNG"), "has one bit a pixel, so it is a mask"),
    "grey instead of colour": ("a.png", encoded(GREY, "PNG"), "is grey, but colour is asked for"),
}


def refused(path: Path, message: str, read: Callable[[Path], object]) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 160


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", BAD_PICTURES)
def test_bad_picture_is_refused_in_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_PICTURES[case]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, message, lambda path: read_image(path, 3))


def test_paths_that_are_no_picture(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for read in (image_size, read_label_image, read_mask_colours, lambda path: read_image(path, 1)):
        refused(tmp_path / "missing.png", "no picture at", read)
        refused(tmp_path / "folder.png", "is a folder; give the picture inside it", read)
        refused(tmp_path / "loop.png", "no picture at", read)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}, {"restart_marker_rows": 1}])
def test_no_cut_of_a_jpeg_is_read(tmp_path: Path, options: dict[str, object]) -> None:
    content = encoded(RGB, "JPEG", **options)
    for length in [*range(1, len(content) - 20, 37), *range(len(content) - 20, len(content))]:
        (tmp_path / "a.jpg").write_bytes(content[:length])
        with pytest.raises(InputError, match=r"a\.jpg"):
            read_image(tmp_path / "a.jpg", 3)


def test_the_limit_that_the_module_tells_of(tmp_path: Path) -> None:
    """A JPEG has no checksum, so garbage inside is another picture; once this fails, the module tells too little."""
    middle = len(JPEG) * 2 // 3
    (tmp_path / "a.jpg").write_bytes(JPEG[:middle] + bytes(20) + JPEG[middle + 20 :])
    (tmp_path / "b.jpg").write_bytes(JPEG)
    assert not np.array_equal(read_image(tmp_path / "a.jpg", 3), read_image(tmp_path / "b.jpg", 3))


def test_every_changed_or_missing_byte_of_a_png_is_noticed_or_harmless(tmp_path: Path) -> None:
    content = encoded(RGB[:6, :7], "PNG", pnginfo=comment())
    changed = [flipped(content, position) for position in range(len(content))]
    for damaged in changed + [content[:length] for length in range(1, len(content))]:
        (tmp_path / "a.png").write_bytes(damaged)
        try:
            pixels = read_image(tmp_path / "a.png", 3)
        except InputError:
            continue
        np.testing.assert_array_equal(pixels, RGB[:6, :7])
        # Only the checksum of the end itself says nothing.
        assert damaged[:-4].endswith(b"IEND") or content.startswith(damaged[: len(content) - 4])


def comment() -> PngInfo:
    info = PngInfo()
    info.add_text("comment", "a chunk that no pixel depends on")
    return info


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_every_changed_byte_of_deflated_pixels_counts(tmp_path: Path, tile: tuple[int, int] | None) -> None:
    content = tiff(RGB, photometric="rgb", compression="zlib", tile=tile)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        spans = list(zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True))
    noticed = 0
    for start, size in spans:
        for position in range(start, start + size, 1 + size // 40):
            (tmp_path / "a.tif").write_bytes(flipped(content, position))
            try:
                pixels = read_image(tmp_path / "a.tif", 3)
            except InputError:
                noticed += 1
                continue
            np.testing.assert_array_equal(pixels, RGB)
    # A few bits of deflate are padding.
    assert noticed > 30 * len(spans)


def transparent_palette() -> bytes:
    return encoded(SOLID.quantize(4), "PNG", transparency=0)


BAD_LABELS: dict[str, tuple[str, bytes, str]] = {
    "colour": ("a.png", PNG, "is of kind RGB, no label image; make the dataset with data_prep.gastric"),
    "palette": ("a.png", encoded(SOLID.quantize(4), "PNG"), "is of kind P, no label image"),
    "JPEG": ("a.jpg", encoded(GREY, "JPEG"), "is compressed as JPEG, which blurs values"),
    "JPEG in TIFF": ("a.tif", encoded(GREY, "TIFF", compression="jpeg"), "is compressed as JPEG"),
    "four bits": ("a.png", png(2, 1, 4, 0, bytes([0, 0x12])), "has 4 bits a pixel, no label image"),
    "0 is white": ("a.tif", inverted_label(), "is a TIFF in which 0 is white"),
    "unknown values": (
        "a.png",
        encoded(GREY // 60, "PNG"),
        r"the values 2 \(\d+ pixels\), 3 .*, which name no class; known",
    ),
    "truncated": ("a.png", PNG[:-40], "is truncated or damaged"),
    "two pages": ("a.tif", pages(), "holds 2 pages"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_label_image_is_refused(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_LABELS[case]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, message, lambda path: read_label_image(path, known=(0, 1)))


BAD_MASKS: dict[str, tuple[bytes, str]] = {
    "transparent": (encoded(np.dstack([RGB, GREY]), "PNG"), "is transparent in places"),
    "transparent grey": (encoded(Image.merge("LA", [SOLID.convert("L")] * 2), "PNG"), "is transparent in places"),
    "transparent in its palette": (transparent_palette(), "is transparent in places"),
    "transparent colour": (encoded(GREY, "PNG", transparency=3), "has a transparent colour"),
    "16 bits": (encoded(GREY.astype(np.uint16), "PNG"), "has 16 bits a channel"),
    "inks": (encoded(SOLID.convert("CMYK"), "JPEG"), "is of kind CMYK, not a mask"),
    "truncated": (PNG[:-40], "is truncated or damaged"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", BAD_MASKS)
def test_bad_mask_is_refused(tmp_path: Path, case: str) -> None:
    content, message = BAD_MASKS[case]
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png", message, read_mask_colours)


def test_the_size_needs_the_header_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG[: len(PNG) // 2])
    assert image_size(tmp_path / "a.png") == (24, 40)
    (tmp_path / "b.png").write_bytes(MANY_PIXELS)
    refused(tmp_path / "b.png", "178 million", image_size)


def test_an_orientation_that_is_none_is_no_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    for value in (0, 1, 9):
        exif[0x0112] = value
        (tmp_path / "a.png").write_bytes(encoded(RGB, "PNG", exif=exif))
        assert np.array_equal(read_image(tmp_path / "a.png", 3), RGB)


def test_tags_of_tiff_by_their_numbers() -> None:
    """The numbers that the module takes from the TIFF standard are those that Pillow calls by these names."""
    assert TiffImagePlugin.BITSPERSAMPLE == 258
    assert TiffImagePlugin.PHOTOMETRIC_INTERPRETATION == 262
    assert TiffImagePlugin.SAMPLESPERPIXEL == 277
    assert TiffImagePlugin.SAMPLEFORMAT == 339
    assert (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.STRIPBYTECOUNTS) == (273, 279)
    assert (TiffImagePlugin.TILEOFFSETS, TiffImagePlugin.TILEBYTECOUNTS) == (324, 325)
