# SPDX-License-Identifier: Apache-2.0
"""Scans with labels for evaluation: names, orientation, and that a bad case stops the run."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from pipeline.data import Case
from pipeline.errors import InputError
from pipeline.inference import LabelledScanDataset, scan_loader


def write_case(folder, name: str, affine: np.ndarray, value: int = 1) -> Case:
    folder = folder / name
    folder.mkdir()
    array = np.zeros((4, 5, 6), np.int16)
    array[0, 0, 0] = value
    nib.save(nib.Nifti1Image(array * 100, affine), folder / "ct.nii.gz")
    nib.save(nib.Nifti1Image(array.astype(np.uint8), affine), folder / "label.nii.gz")
    return Case(name, name, folder / "ct.nii.gz", folder / "label.nii.gz")


def test_items_bear_the_names_of_the_dataset_and_image_and_label_turn_together(tmp_path):
    cases = [write_case(tmp_path, "a", np.eye(4)), write_case(tmp_path, "b", np.diag([-1.0, -1, 1, 1]))]
    first, second = scan_loader(LabelledScanDataset(cases, labels=(0, 1)))
    assert (first["case"], second["case"]) == (["a"], ["b"])  # though both files are called ct.nii.gz
    assert first["label"].shape == first["image"].shape == (1, 1, 4, 5, 6)
    assert second["label"][0, 0, 3, 4, 0] == 1  # LPS stored, RAS given
    assert second["image"][0, 0, 3, 4, 0] == 100


def test_unlabelled_case_is_refused_at_once(tmp_path):
    case = write_case(tmp_path, "a", np.eye(4))
    with pytest.raises(InputError, match="no label to evaluate against for a"):
        LabelledScanDataset([Case("a", "a", case.image, None)], labels=(0, 1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda case: case.image.write_bytes(b""), "case b"),
        (lambda case: case.label.unlink(), "no such file"),
        (lambda case: case.label.write_bytes(case.image.read_bytes()), "unknown label values|whole numbers"),
    ],
)
def test_one_bad_case_stops_the_evaluation(tmp_path, spoil, message):
    cases = [write_case(tmp_path, name, np.eye(4), value=3) for name in ("a", "b")]
    spoil(cases[1])
    with pytest.raises(InputError, match=message):
        list(LabelledScanDataset(cases, labels=(0, 3)))
