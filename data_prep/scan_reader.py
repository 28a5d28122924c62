# SPDX-License-Identifier: Apache-2.0
"""Every scan and label read once on its way into a dataset folder: what is wrong, what is odd, which organs it has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.scan_pairs import ScanPair
from pipeline.data import IntensityRule, Volume, default_intensity, doubt_hounsfield, read_label, read_volume
from pipeline.data.scans.slicer import segment_names
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
            label = self._read_label(pair.label, image)
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

    def _read_label(self, path: Path, image: Volume) -> Volume:
        """Return a label map on the image's grid, with the dataset's values also where the file has others by name."""
        names = segment_names(path)
        if names is None:
            return read_label(path, like=image, labels=self._labels)
        values = {name: value for value, name in self._labels.items() if value}
        unknown = [name for name in names.values() if name not in values]
        if unknown:
            organs = ", ".join(values)
            raise InputError(f"{path}: segments {', '.join(unknown)} are none of {organs}; rename them in Slicer")
        label = read_label(path, like=image, labels={0, *names})
        table = np.zeros(256, dtype=np.uint8)
        for value, name in names.items():
            table[value] = values[name]
        return replace(label, array=table[label.array])

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


def labels_of_segments(pairs: Iterable[ScanPair]) -> dict[int, str] | None:
    """Return value to name from the segments of all `.seg.nrrd` files, in the order in which they first occur.

    None where no file names its segments. Raises `InputError` as `segment_names` does.
    """
    names: dict[str, None] = {}
    for pair in pairs:
        names.update(dict.fromkeys((segment_names(pair.label) or {}).values()))
    return dict(enumerate(("background", *names))) if names else None
