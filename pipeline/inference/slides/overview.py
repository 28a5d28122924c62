# SPDX-License-Identifier: Apache-2.0
"""A small picture of a slide with its labels over the tissue, made while the labels arrive."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.data.slides.palette import colour_of

OPACITY = 0.35
_STRIPE_PX = 4
_TEXT_PX, _LINE_PX, _MARGIN_PX = 14, 20, 6  # of the legend


class Overview:
    """Takes the label map of a slide band by band and keeps it at the size of the thumbnail.

    Args:
        thumbnail: (h, w, 3) uint8, the whole slide.
        shape: (height, width) of the slide.
        unreadable: the label value of pixels that could not be read.

    `labels`: (h, w) uint8, the label in the middle of each pixel of the thumbnail.
    """

    def __init__(self, thumbnail: np.ndarray, shape: tuple[int, int], unreadable: int) -> None:
        self.thumbnail, self.unreadable = thumbnail, unreadable
        self.labels = np.zeros(thumbnail.shape[:2], np.uint8)
        self._rows, self._columns = (
            (2 * np.arange(small) + 1) * whole // (2 * small)
            for small, whole in zip(thumbnail.shape[:2], shape, strict=True)
        )

    def add(self, top: int, band: np.ndarray) -> None:
        """Take the labels (rows, width) of the band that begins at row `top`."""
        first, last = np.searchsorted(self._rows, (top, top + len(band)))
        self.labels[first:last] = band[self._rows[first:last] - top][:, self._columns]

    def tissue(self, background: float) -> np.ndarray:
        """Return a boolean array (h, w): where the thumbnail shows tissue, with a channel at `background` or darker."""
        return self.thumbnail.min(axis=2) <= background

    def picture(self) -> np.ndarray:
        """Return the thumbnail (h, w, 3) uint8 with classes tinted and outlined, and unreadable parts hatched."""
        picture = self.thumbnail.copy()
        for value in np.unique(self.labels):
            inside = self.labels == value
            if value == self.unreadable:
                picture[inside] = _stripes(inside)[inside]
            elif value > 0:
                colour = np.array(list(bytes.fromhex(colour_of(int(value))[1:])))
                picture[inside] = np.rint((1 - OPACITY) * picture[inside] + OPACITY * colour)
                picture[_outline(inside)] = colour
        return picture


def with_legend(picture: np.ndarray, entries: Mapping[str, str]) -> np.ndarray:
    """Return a picture (h, w, 3) uint8 with lines of text below it, each behind a box of its colour.

    `entries` maps the text to its colour, such as "#D55E00". A narrow picture gets white at its right side.
    """
    font = ImageFont.load_default(_TEXT_PX)
    texts = {text: _LINE_PX + 2 * _MARGIN_PX + round(font.getlength(text)) for text in entries}
    height, width = len(picture) + len(entries) * _LINE_PX + _MARGIN_PX, max(picture.shape[1], *texts.values())
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(canvas)
    for line, (text, colour) in enumerate(entries.items()):
        top = len(picture) + _MARGIN_PX + line * _LINE_PX
        draw.rectangle((_MARGIN_PX, top, _MARGIN_PX + _TEXT_PX, top + _TEXT_PX), fill=colour, outline="black")
        draw.text((_LINE_PX + _MARGIN_PX, top + _TEXT_PX / 2), text, fill="black", font=font, anchor="lm")
    return np.asarray(canvas)


def _outline(inside: np.ndarray) -> np.ndarray:
    """Return the pixels of a region that touch, at a side, one outside; the border of the picture is no outside."""
    padded = np.pad(inside, 1, mode="edge")
    return inside & ~(padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:])


def _stripes(inside: np.ndarray) -> np.ndarray:
    """Return diagonal stripes of black and yellow, as barriers have them: no tissue and no class looks so."""
    rows, columns = np.indices(inside.shape, sparse=True)
    black = ((rows + columns) // _STRIPE_PX) % 2 == 0
    return np.where(black[..., None], np.uint8(0), np.array([255, 221, 0], np.uint8))
