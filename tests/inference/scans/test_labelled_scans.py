# SPDX-License-Identifier: Apache-2.0
"""Scans with labels for evaluation: names, the grid of each, and that a bad case stops the run."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.data import Case, IntensityRule, preprocessing_of
from pipeline.errors import InputError
from pipeline.inference import LabelledScanDataset, scan_loader
from tests.preprocessing import scan_preprocessing

PREPROCESSING = preprocessing_of(scan_preprocessing(IntensityRule("window", 0.0, 200.0)))


def write_case(folder, name: str, affine: np.ndarray, value: int = 1) -> Case:
    folder = folder / name
    folder.mkdir()
    array = np.zeros((4, 5, 6), np.int16)
    array[0, 0, 0] = value
    nib.save(nib.Nifti1Image(array * 100, affine), folder / "ct.nii.gz")
    nib.save(nib.Nifti1Image(array.astype(np.uint8), affine), folder / "label.nii.gz")
    return Case(name, name, folder / "ct.nii.gz", folder / "label.nii.gz")


def test_items_bear_the_names_of_the_dataset_and_labels_keep_the_voxel_order_of_the_scan(tmp_path):
    cases = [write_case(tmp_path, "a", np.eye(4)), write_case(tmp_path, "b", np.diag([-1.0, -1, 1, 1]))]
    first, second = scan_loader(LabelledScanDataset(cases, labels=(0, 1), preprocessing=PREPROCESSING))
    assert (first["case"], second["case"]) == (["a"], ["b"])  # though both files are called ct.nii.gz
    assert first["label"].shape == first["image"].shape == (1, 1, 4, 5, 6)
    assert second["image"][0, 0, 3, 4, 0] == 0.5  # LPS stored, RAS given, and scaled
    assert second["label"].nonzero().tolist() == [[0, 0, 0, 0, 0]]


def test_predictions_lie_on_the_grid_of_the_label(tmp_path):
    """What `to_own_grid` makes of a network's labels can be scored against the item's label voxel by voxel."""
    (item,) = LabelledScanDataset(
        [write_case(tmp_path, "a", np.array([[0.0, 0, 3, 1], [-2, 0, 0, 5], [0, -1, 0, 0], [0, 0, 0, 1]]))],
        labels=(0, 1),
        preprocessing=PREPROCESSING,
    )
    assert item["image"].shape == (1, 6, 4, 5)
    predicted = (item["image"] > 0.25).to(torch.uint8)
    own = PREPROCESSING.to_own_grid()({"image": item["image"], "pred": predicted})["pred"]
    assert own.dtype == torch.uint8
    assert torch.equal(own.as_tensor(), item["label"].as_tensor())
    np.testing.assert_array_equal(own.affine, item["label"].affine)


def test_unlabelled_case_is_refused_at_once(tmp_path):
    case = write_case(tmp_path, "a", np.eye(4))
    with pytest.raises(InputError, match="no label to evaluate against for a"):
        LabelledScanDataset([Case("a", "a", case.image, None)], labels=(0, 1), preprocessing=PREPROCESSING)


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
        list(LabelledScanDataset(cases, labels=(0, 3), preprocessing=PREPROCESSING))
