# SPDX-License-Identifier: Apache-2.0
"""Every scan and label read once on its way into a dataset folder: what is wrong, what is odd, which organs it has."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from data_prep.scan_pairs import ScanPair
from pipeline.data import IntensityRule, Volume, default_intensity, doubt_hounsfield, read_volume
from pipeline.data.scans.slicer import read_named_label
from pipeline.errors import InputError


class ScanReader:
    """Reads scans and labels and keeps `problems`, `warnings`, and which label values each case has (`seen`)."""

    def __init__(self, labels: dict[int, str], modality: str, rule: IntensityRule) -> None:
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.seen: dict[str, set[int]] = {}
        self._labels = labels
        self._in_hu = modality.upper() == "CT" and rule == default_intensity("CT")
        self._contents: dict[str, str] = {}

    def read(self, pair: ScanPair) -> tuple[Volume, Volume] | None:
        """Return image and label of a good pair; of a bad one, None, with the problem noted."""
        try:
            image = read_volume(pair.image)
            label = read_named_label(pair.label, self._labels, like=image)
        except InputError as error:
            self.problems.append(f"case {pair.case}: {error}")
            return None
        self._check_repeated(pair.case, image)
        self._note_oddities(pair, image, label)
        return image, label

    def read_image(self, case: str, path: Path) -> Volume | None:
        """Return a scan without a label; None where it cannot be used, with the problem noted."""
        try:
            image = read_volume(path)
        except InputError as error:
            self.problems.append(f"scan {case} without label: {error}")
            return None
        self._check_repeated(case, image)
        self._note_image(case, image)
        return image

    def _check_repeated(self, case: str, image: Volume) -> None:
        """Find one scan under two names, also when it was saved in another format."""
        content = hashlib.blake2b(np.ascontiguousarray(image.array).view(np.uint8)).hexdigest() + str(image.array.shape)
        other = self._contents.setdefault(content, case)
        if other != case:
            self.problems.append(f"cases {other} and {case} hold the same image; keep one of them")

    def _note_oddities(self, pair: ScanPair, image: Volume, label: Volume) -> None:
        self.seen[pair.case] = set(np.unique(label.array).tolist()) - {0}
        self._note_image(pair.case, image)
        self.warnings += [f"case {pair.case}: {note}" for note in label.notes]
        if not self.seen[pair.case]:
            self.warnings.append(f"case {pair.case}: the label {pair.label.name} is empty")

    def _note_image(self, case: str, image: Volume) -> None:
        self.warnings += [f"case {case}: {note}" for note in image.notes]
        low, high = image.array.min(), image.array.max()
        doubt = doubt_hounsfield(low, high) if self._in_hu else None
        if doubt is not None:
            self.warnings.append(f"case {case}: {doubt}")
        if low == high:
            self.warnings.append(f"case {case}: all voxels are {low:g}")
