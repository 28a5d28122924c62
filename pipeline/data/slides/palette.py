# SPDX-License-Identifier: Apache-2.0
"""The colours of classes, the same in every picture."""

from __future__ import annotations

import numpy as np

from pipeline.data.slides.base import UNREADABLE

# Okabe and Ito's palette, which colour-blind people can tell apart, and a violet; tab20 beyond eight classes.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#7F5FC7")
GREY = "#808080"


def colour_of(value: int) -> str:
    """Return the colour of a label value from 1, as `#RRGGBB`."""
    if value <= len(PALETTE):
        return PALETTE[value - 1]
    import matplotlib  # here, because pictures of eight classes need none of it

    return matplotlib.colors.to_hex(matplotlib.colormaps["tab20"]((value - 1) % 20))


def class_colour(value: int) -> str:
    """Return the colour of a class in a picture; that of parts that could not be read is grey."""
    return GREY if value == UNREADABLE else colour_of(int(value))


def tinted(picture: np.ndarray, mask: np.ndarray, opacity: float) -> np.ndarray:
    """Return a picture (h, w, 3) with the classes of a mask (h, w) in their colours, as floats in [0, 1]."""
    result = picture.astype(np.float32) / (255 if picture.dtype == np.uint8 else 1)
    for value in np.unique(mask[mask > 0]):
        inside = mask == value
        share = 1.0 if value == UNREADABLE else opacity
        colour = np.array(list(bytes.fromhex(class_colour(value)[1:]))) / 255
        result[inside] = (1 - share) * result[inside] + share * colour
    return result
