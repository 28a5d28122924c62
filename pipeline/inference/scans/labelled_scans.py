# SPDX-License-Identifier: Apache-2.0
"""The scans of a split with their labels, read as inference reads them, for evaluation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from pipeline.data import Case, Preprocessing, read_label
from pipeline.errors import InputError
from pipeline.inference.scans.scan_dataset import ScanDataset, as_loaded
from pipeline.inference.scans.scan_files import Scan


class LabelledScanDataset(ScanDataset):
    """Items are `{"image", "label", "case"}`: a scan as in `ScanDataset`, and its label (1, X, Y, Z) uint8 as stored.

    A case that cannot be read stops the evaluation: a report without it could not be compared with others.

    Args:
        cases: of one split, all with labels.
        labels: the label values that the dataset declares.
        preprocessing: of the images.

    Raises:
        InputError: a case has no label; while iterating, an image or label that cannot be read or does not fit.
    """

    def __init__(self, cases: Sequence[Case], labels: Collection[int], preprocessing: Preprocessing) -> None:
        unlabelled = [case.case for case in cases if case.label is None]
        if unlabelled:
            raise InputError(f"no label to evaluate against for {', '.join(unlabelled)}; name one in dataset.json")
        # Outputs are named by the cases of dataset.json, which may differ from the names of the files.
        super().__init__([Scan(case.case, case.image) for case in cases], preprocessing)
        self._label_files = {case.case: case.label for case in cases}
        self._known = tuple(labels)

    def _read(self, scan: Scan) -> dict[str, Any] | None:
        item = super()._read(scan)
        if item is None:
            raise InputError(f"case {scan.case}: {self.failures[-1].error}")
        label = read_label(self._label_files[scan.case], like=self.geometry_of(scan.case), labels=self._known)
        return {**item, "label": as_loaded(label)[None]}
