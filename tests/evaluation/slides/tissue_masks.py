# SPDX-License-Identifier: Apache-2.0
"""Three small images with their masks, and the figures that follow from them by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

CANCER = {1: "cancer"}
LABELS = {0: "background", 1: "cancer"}


def mask(height: int, width: int, rows: slice | None = None, columns: slice = slice(None)) -> np.ndarray:
    """Return (height, width) uint8 with a rectangle of class 1, or without."""
    labels = np.zeros((height, width), np.uint8)
    if rows is not None:
        labels[rows, columns] = 1
    return labels


# image: (prediction, label)
IMAGES = {
    # 20 pixels: the label has the rows 0 and 1, the prediction 1 and 2, of 4 columns: TP 4, FP 4, FN 4, TN 8.
    "shifted": (mask(5, 4, slice(1, 3)), mask(5, 4, slice(0, 2))),
    # 10 pixels: TP 0, FP 2, FN 0, TN 8.
    "invented": (mask(2, 5, slice(0, 1), slice(0, 2)), mask(2, 5)),
    # 4 pixels, all background.
    "empty": (mask(2, 2), mask(2, 2)),
}
# Together TP 4, FP 6, FN 4, TN 20 of 34 pixels.
ACCURACY, IOU, IOU_BACKGROUND = 24 / 34, 4 / 14, 20 / 30
MIOU = (IOU + IOU_BACKGROUND) / 2


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
