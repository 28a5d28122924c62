# SPDX-License-Identifier: Apache-2.0
"""Small TIFFs for the tests of slides: written, damaged and compared."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import tifffile

from pipeline.data.slides.open import open_slide

HEIGHT, WIDTH = 70, 90
TILED = {"tile": (32, 16)}
REGIONS = {
    "whole": (0, 0, HEIGHT, WIDTH),
    "inside one tile": (33, 17, 5, 6),
    "one pixel": (31, 15, 1, 1),
    "over tile borders": (30, 14, 20, 40),
    "last row and column": (HEIGHT - 1, WIDTH - 1, 1, 1),
    "bottom right, where tiles stick out": (60, 75, 10, 15),
}


def picture(height: int = HEIGHT, width: int = WIDTH, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def write_tiff(path: Path, pixels: np.ndarray, **options: object) -> Path:
    """Write (H, W, 1 or 3) as a TIFF of one page with the options of `tifffile.imwrite`."""
    grey = pixels.shape[2] == 1
    options = {"photometric": "minisblack" if grey else "rgb", "metadata": None, **options}
    tifffile.imwrite(path, pixels[..., 0] if grey else pixels, **options)
    return path


def write_pyramid(path: Path, levels: list[np.ndarray], subs: bool = True, **options: object) -> Path:
    """Write levels, fine to coarse, as sub-images of the first page or as pages of their own."""
    options = {"photometric": "rgb", "compression": "zlib", "tile": (32, 32), "metadata": None, **options}
    with tifffile.TiffWriter(path) as file:
        file.write(levels[0], subifds=len(levels) - 1 if subs else 0, **options)
        for level in levels[1:]:
            file.write(level, subfiletype=1, **options)
    return path


def halved(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    blocks = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
    return np.rint(blocks.mean((1, 3))).astype(np.uint8)


def page_of(file: tifffile.TiffFile, sub: int | None = None) -> tifffile.TiffPage:
    return file.pages[0] if sub is None else file.pages[0].pages[sub]


def overwrite_tag(path: Path, name: str, value: object, sub: int | None = None) -> None:
    with tifffile.TiffFile(path, mode="r+b") as file:
        page_of(file, sub).tags[name].overwrite(value)


def overwrite_entry(path: Path, name: str, index: int, value: int, **options: object) -> None:
    """Overwrite one number of a list of offsets or byte counts."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        tag = file.pages[0].tags[name]
        entries = list(tag.value)
        entries[index] = value
        tag.overwrite(entries, **options)


def damage_segment(path: Path, index: int, sub: int | None = None) -> None:
    """Overwrite the middle of an encoded segment."""
    with tifffile.TiffFile(path) as file:
        page = page_of(file, sub)
        offset, count = page.dataoffsets[index], page.databytecounts[index]
    with open(path, "r+b") as file:
        file.seek(offset + count // 2)
        file.write(b"\xff" * 12)


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def write_sparse(path: Path, height: int, width: int, filled: dict[int, np.ndarray]) -> None:
    """Write a slide in deflated tiles of 512, of which only some have bytes."""
    count = -(-height // 512) * -(-width // 512)
    tiles = (zlib.compress(filled[index].tobytes()) if index in filled else b"" for index in range(count))
    options = {"shape": (height, width, 3), "dtype": "uint8", "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, tiles, tile=(512, 512), compression="zlib", **options)


def check_regions(path: Path, pixels: np.ndarray) -> None:
    with open_slide(path) as slide:
        assert (slide.height, slide.width) == pixels.shape[:2]
        for top, left, height, width in REGIONS.values():
            region = slide.read(top, left, height, width)
            assert region.dtype == np.uint8
            np.testing.assert_array_equal(region, as_rgb(pixels)[top : top + height, left : left + width])
        assert slide.unreadable == slide.notes == []
