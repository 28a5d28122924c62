# SPDX-License-Identifier: Apache-2.0
"""Names of segments in the header of a `.seg.nrrd`; `data_prep/test_layouts.py` goes on from whole files."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK

from pipeline.data import Volume
from pipeline.data.scans.slicer import read_named_label, segment_names
from pipeline.errors import InputError

# As Slicer 5 writes it, shortened: names in any order, values in the order of drawing.
HEADER = """NRRD0004
# Complete NRRD file format specification at:
type: unsigned char
dimension: 3
space: left-posterior-superior
sizes: 2 2 2
Segment0_ID:=Segment_1
Segment0_LabelValue:=2
Segment0_Layer:=0
Segment0_Name:=Leber: rechter Lappen
Segment0_Tags:=Segmentation.Status:inprogress|
Segment1_LabelValue:=1
Segment1_Layer:=0
Segment1_Name:=Milz ä
Segmentation_MasterRepresentation:=Binary labelmap

"""


def names(tmp_path, header: str, name: str = "a.seg.nrrd"):
    (tmp_path / name).write_bytes(header.encode() + b"\x00Segment2_Name:=voxels\n")
    return segment_names(tmp_path / name)


def test_names_by_value(tmp_path):
    expected = {1: "Milz ä", 2: "Leber: rechter Lappen"}
    assert names(tmp_path, HEADER) == expected
    assert names(tmp_path, HEADER.replace("\n", "\r\n")) == expected


def test_other_files_have_no_segments(tmp_path):
    assert names(tmp_path, HEADER, "a.nrrd") is None
    assert names(tmp_path, "NRRD0004\ntype: short\n\n") is None
    assert names(tmp_path, HEADER.replace("Leber: rechter Lappen", "Segment_1").replace("Milz ä", "Segment_2")) is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Segment1_Layer:=0", "Segment1_Layer:=1", "segments overlap"),
        ("Segment1_LabelValue:=1", "Segment1_LabelValue:=2", "each needs a name and a value"),
        ("Milz ä", "Leber: rechter Lappen", "each needs a name and a value"),
        ("Segment1_LabelValue:=1", "Segment1_LabelValue:=x", "each needs a name and a value"),
    ],
)
def test_segments_that_are_no_labels(tmp_path, old, new, message):
    with pytest.raises(InputError, match=message):
        names(tmp_path, HEADER.replace(old, new))


GRID = Volume(
    np.zeros((6, 5, 4), np.int16), np.array([[0, -2.0, 0, 7], [1.5, 0, 0, -3], [0, 0, 5, 11], [0, 0, 0, 1]]), None
)


def cropped(tmp_path, first, size, moved_mm=0.0, flipped=False):
    """Write the part of GRID that begins at voxel `first` as Slicer does, all of organ 1 but its first voxel: 2."""
    part = np.ones(size, np.uint8)
    part[0, 0, 0] = 2
    affine = GRID.affine.copy()
    affine[:, 3] = GRID.affine @ (*first, 1)
    affine[2, 3] += moved_mm
    if flipped:  # the same voxels, stored from the last slice to the first
        affine[:, 3] += affine[:, 2] * (size[2] - 1)
        affine[:, 2] *= -1
        part = part[..., ::-1]
    to_lps = np.diag([-1.0, -1, 1])
    image = SimpleITK.GetImageFromArray(part.T)
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(edges)
    image.SetDirection((to_lps @ affine[:3, :3] / edges).ravel())
    image.SetOrigin(to_lps @ affine[:3, 3])
    path = tmp_path / "a.seg.nrrd"
    SimpleITK.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("flipped", [False, True])
def test_what_slicer_cut_off_is_background(tmp_path, flipped):
    path = cropped(tmp_path, (1, 2, 1), (4, 3, 2), flipped=flipped)
    label = read_named_label(path, {0: "background", 1: "liver", 2: "spleen"}, like=GRID)
    expected = np.zeros(GRID.array.shape, np.uint8)
    expected[1:5, 2:5, 1:3] = 1
    expected[1, 2, 1] = 2
    assert np.array_equal(label.array, expected)
    assert np.array_equal(label.affine, GRID.affine)
    assert label.notes[-1] == "Slicer kept 4 x 3 x 2 voxels of it; the others are background"


@pytest.mark.parametrize(
    ("first", "size", "moved_mm"), [((3, 2, 1), (4, 3, 2), 0), ((-1, 0, 0), (2, 2, 2), 0), ((1, 2, 1), (4, 3, 2), 2.5)]
)
def test_a_part_of_another_grid_is_refused(tmp_path, first, size, moved_mm):
    with pytest.raises(InputError, match="give the label that was drawn on this image"):
        read_named_label(
            cropped(tmp_path, first, size, moved_mm), {0: "background", 1: "liver", 2: "spleen"}, like=GRID
        )


def test_only_slicer_cuts_off(tmp_path):
    path = cropped(tmp_path, (1, 2, 1), (4, 3, 2))
    with pytest.raises(InputError, match="give the label that was drawn on this image"):
        read_named_label(path.rename(tmp_path / "a.nrrd"), {0: "background", 1: "liver", 2: "spleen"}, like=GRID)
