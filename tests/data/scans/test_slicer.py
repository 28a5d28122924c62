# SPDX-License-Identifier: Apache-2.0
"""Names of segments in the header of a `.seg.nrrd`; `data_prep/test_layouts.py` goes on from whole files."""

from __future__ import annotations

import pytest

from pipeline.data.scans.slicer import segment_names
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
