# SPDX-License-Identifier: Apache-2.0
"""Slides in the formats of scanners (.svs .ndpi .mrxs .scn .bif .vms .vmu), through OpenSlide where it is installed.

OpenSlide refuses every call on a slide after its first error, and does not say which tile was damaged. So the slide is
opened anew and the region read in blocks of the file's own tiles: the damaged ones come back white and are named.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from pipeline.data.slides.base import WHITE, LevelError, Slide, Unreadable, first_bytes
from pipeline.data.slides.pictures import COLOUR
from pipeline.data.slides.tiff import TiffSlide
from pipeline.errors import InputError

_INSTALL = 'pip install -e ".[wsi]"'
_USUAL_TILE_PX = 256


def open_scanner_slide(path: Path) -> Slide:
    """Open a scanner's file by OpenSlide; without OpenSlide, an .svs by tifffile, since it is a TIFF.

    Raises `InputError` for files that cannot be read, and where OpenSlide is needed and missing.
    """
    first_bytes(path)
    if _openslide() is not None:
        return OpenSlideSlide(path)
    if path.suffix.lower() == ".svs":
        return TiffSlide(path)
    raise InputError(f"{path} is read by OpenSlide, which is not installed: {_INSTALL}, or convert it to a tiled TIFF")


class OpenSlideSlide(Slide):
    """A slide of any format that OpenSlide knows; what is transparent there lies on white."""

    def __init__(self, path: Path) -> None:
        self._library = _openslide()
        if self._library is None:
            raise InputError(f"{path} cannot be opened: OpenSlide is not installed; {_INSTALL}")
        self._handle = self._open(path)
        properties = self._handle.properties
        width, height = self._handle.dimensions
        super().__init__(path, height, width, _number(properties.get("openslide.mpp-x")))
        self._sizes = [(rows, columns) for columns, rows in self._handle.level_dimensions]
        self._tile_height = int(_number(properties.get("openslide.level[0].tile-height")) or _USUAL_TILE_PX)
        self._tile_width = int(_number(properties.get("openslide.level[0].tile-width")) or _USUAL_TILE_PX)

    def close(self) -> None:
        """Let go of the file."""
        self._handle.close()

    def _open(self, path: Path) -> object:
        try:
            return self._library.OpenSlide(path)
        except self._library.OpenSlideError as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise InputError(f"{path} is damaged or no slide that OpenSlide knows ({reason}); copy it anew") from error

    def _level_sizes(self) -> list[tuple[int, int]]:
        return self._sizes

    def _read_level(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        if level > 0 or not self._touches_unreadable(top, left, height, width):
            try:
                return self._region(level, top, left, height, width)
            except self._library.OpenSlideError as error:
                self._reopen()
                if level > 0:
                    raise LevelError(f"in the {width} x {height} at x={left}, y={top} of it: {error}") from error
        return self._read_blocks(top, left, height, width)

    def _read_blocks(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a region of level 0 tile by tile; the damaged ones are white and noted."""
        region = np.full((height, width, COLOUR), WHITE, np.uint8)
        for y in range(top // self._tile_height * self._tile_height, top + height, self._tile_height):
            for x in range(left // self._tile_width * self._tile_width, left + width, self._tile_width):
                y0, y1 = max(top, y), min(top + height, y + self._tile_height)
                x0, x1 = max(left, x), min(left + width, x + self._tile_width)
                if (0, y, x) in self._known_unreadable:
                    continue
                try:
                    region[y0 - top : y1 - top, x0 - left : x1 - left] = self._region(0, y0, x0, y1 - y0, x1 - x0)
                except self._library.OpenSlideError as error:
                    self._reopen()
                    rows, columns = min(self._tile_height, self.height - y), min(self._tile_width, self.width - x)
                    self._add_unreadable(Unreadable(0, y, x, rows, columns, str(error)))
        return region

    def _touches_unreadable(self, top: int, left: int, height: int, width: int) -> bool:
        """Tell whether a region holds pixels known to be damaged: reading it whole would end in an error again."""
        return any(
            part.level == 0
            and part.top < top + height
            and top < part.top + part.height
            and part.left < left + width
            and left < part.left + part.width
            for part in self.unreadable
        )

    def _region(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read from OpenSlide, whose places are (x, y) of level 0 at every level, and flatten onto white."""
        rows, columns = self._sizes[level]
        place = round(left * self.width / columns), round(top * self.height / rows)
        pixels = self._handle.read_region(place, level, (width, height))
        flat = Image.new("RGB", pixels.size, (WHITE, WHITE, WHITE))
        flat.paste(pixels, mask=pixels.getchannel("A"))
        return np.array(flat)

    def _reopen(self) -> None:
        self._handle.close()
        self._handle = self._open(self.path)


def _openslide() -> ModuleType | None:
    """Return the library, or None where it or the C library below it is missing."""
    try:
        import openslide
    except (ImportError, OSError):
        return None
    return openslide


def _number(text: str | None) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None
