# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from pydicom.sr.codedict import codes

from pipeline.data.scans import snomed
from pipeline.data.scans.snomed import organ_code

LEFT, RIGHT = codes.SCT.Left, codes.SCT.Right


@pytest.mark.parametrize(
    ("name", "code", "side"),
    [
        ("aorta", "15825003", None),
        ("gallbladder", "28231008", None),
        ("left kidney", "64033007", LEFT),
        ("kidney_right", "64033007", RIGHT),
        ("Kidneys", "64033007", None),
        ("liver", "10200004", None),
        ("pancreas", "15776009", None),
        ("Spleen", "78961009", None),
        ("stomach", "69695003", None),
        ("inferior_vena_cava", "64131007", None),
        ("adrenal_gland_left", "23451007", LEFT),
        ("vertebrae_L5", "49668003", None),
        ("rib_right_7", "113197003", RIGHT),
        ("urinary_bladder", "89837001", None),
    ],
)
def test_organs_have_their_codes(name, code, side):
    found, found_side = organ_code(name)
    assert (found.value, found.scheme_designator, found_side) == (code, "SCT", side)


@pytest.mark.parametrize("name", ["tumour", "left", "left right kidney", "vertebrae_L9", "organ", "", "héart?"])
def test_other_names_have_none(name):
    assert organ_code(name) == (None, None)


def test_all_names_of_the_table_are_in_pydicoms_dictionary():
    for name in (*snomed._KEYWORDS, *snomed._SAME_BUT_FOR_SPACES):
        assert organ_code(name)[0].scheme_designator == "SCT", name
