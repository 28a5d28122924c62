# SPDX-License-Identifier: Apache-2.0
"""A slide file, opened by the reader of its format."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from pipeline.data.slides.base import ArraySlide, Slide
from pipeline.data.slides.openslide import open_scanner_slide
from pipeline.data.slides.pictures import COLOUR, GREY, IMAGE_SUFFIXES, read_image
from pipeline.data.slides.tiff import TiffSlide
from pipeline.errors import InputError

TIFF_SUFFIXES = (".tif", ".tiff")
SCANNER_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu")
SLIDE_SUFFIXES = (*IMAGE_SUFFIXES, *SCANNER_SUFFIXES)


def is_slide(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file name has the suffix of a picture or of a slide scanner's format."""
    return Path(path).suffix.lower() in SLIDE_SUFFIXES


def open_slide(path: str | os.PathLike[str]) -> Slide:
    """Open a slide: TIFF by tifffile, scanners' formats by OpenSlide, PNG and JPEG whole as `read_image` does.

    Raises `InputError` for whatever cannot be opened.
    """
    path = Path(path)
    if not is_slide(path):
        raise InputError(f"{path} is no slide by its name; known suffixes are {', '.join(SLIDE_SUFFIXES)}")
    if path.suffix.lower() in SCANNER_SUFFIXES:
        return open_scanner_slide(path)
    if path.suffix.lower() in TIFF_SUFFIXES:
        return TiffSlide(path)
    return ArraySlide(_read_picture(path), path)


def _read_picture(path: Path) -> np.ndarray:
    """Return a picture with the channels that it has, (H, W, 1 or 3) uint8, refused as `read_image` refuses it."""
    try:
        return read_image(path, COLOUR)
    except InputError:
        return read_image(path, GREY)
