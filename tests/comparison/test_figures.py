# SPDX-License-Identifier: Apache-2.0
"""The comparison picture: which way round it shows a patient, which slice it takes, and bad input."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from pipeline.comparison.figures import main
from pipeline.comparison.pictures.case_rows import comparison_figure
from pipeline.data import Case, Dataset, IntensityRule, load_dataset, write_dataset_json
from pipeline.data.scans.axial_view import radiological_view, slice_with_most_organs
from pipeline.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Return a dataset of one test case whose organ lies in the patient's right front, and a method's masks."""
    label = np.zeros((8, 6, 4), np.uint8)
    label[6, 4, 2] = 1
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    for name, array in (("image", label * 100.0), ("label", label), ("masks/a", label)):
        path = tmp_path / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(array.astype(np.int16 if name == "image" else np.uint8), affine), path)
    case = Case("a", "a", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz")
    labels = {0: "background", 1: "liver"}
    write_dataset_json(tmp_path, Dataset("d", tmp_path, "CT", labels, IntensityRule("window", 0, 100), (), (), (case,)))
    return tmp_path


def test_the_patients_right_is_at_the_left_and_anterior_at_the_top():
    grey = np.zeros((3, 2), np.float32)
    grey[2, 1] = 1  # the largest x and y of an RAS slice: right and front
    picture = radiological_view(grey)
    assert picture.shape == (2, 3)
    assert picture[0, 0] == 1
    assert picture.sum() == 1


def test_slice_with_most_organs_wins_over_one_with_most_voxels():
    mask = np.zeros((4, 4, 3), np.uint8)
    mask[..., 0] = 1
    mask[0, 0, 1], mask[1, 1, 1] = 1, 2
    assert slice_with_most_organs(mask) == 1


def test_figure_has_a_row_a_case_and_a_column_a_method(folder):
    figure = comparison_figure(load_dataset(folder), {"student": folder / "masks"})
    assert [axis.get_title() for axis in figure.axes] == ["image", "label", "student"]
    assert figure.axes[0].get_ylabel() == "a"


def test_command_writes_the_picture(folder):
    output = folder / "picture.png"
    assert main(["--dataset", str(folder), "--predictions", f"s={folder / 'masks'}", "--output", str(output)]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--predictions", "masks"], "give NAME=DIR"),
        (["--predictions", "s=nowhere"], "existing folder"),
        (["--predictions", "s=FOLDER", "--cases", "b"], "split 'test' has no labelled case b; it has a"),
        (["--predictions", "s=FOLDER"], "no such file"),
        (["--predictions", "s=FOLDER/masks", "s=FOLDER/masks"], "names s twice"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_picture(folder, arguments, message):
    given = [argument.replace("FOLDER", str(folder)) for argument in arguments]
    with pytest.raises(InputError, match=message):
        main(["--dataset", str(folder), *given, "--output", str(folder / "p.png")])
    assert not (folder / "p.png").exists()
