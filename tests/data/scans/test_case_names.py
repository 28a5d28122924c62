# SPDX-License-Identifier: Apache-2.0
"""Names of one case in different tools."""

from __future__ import annotations

import pytest

from pipeline.data.scans.case_names import bare_name, case_of_file, match_names


@pytest.mark.parametrize(
    ("file", "case", "bare"),
    [
        ("la_003.nii.gz", "la_003", "la_003"),
        ("la_003_0000.nii.gz", "la_003_0000", "la_003"),
        ("brain.seg.nrrd", "brain.seg", "brain"),
        ("IMG_0000_0000.NII", "IMG_0000_0000", "IMG_0000"),
        ("series 1.2", "series 1.2", "series 1.2"),
    ],
)
def test_names_by_hand(file, case, bare):
    assert case_of_file(f"folder/{file}") == case
    assert bare_name(case) == bare


def test_equal_names_come_first():
    assert match_names(["a", "a_0000", "b_0000"], ["a", "a_0000", "b"]) == {
        "a": ("a", "a"),
        "a_0000": ("a_0000", "a_0000"),
        "b": ("b_0000", "b"),
    }


def test_either_side_may_have_the_longer_name():
    assert match_names(["a", "b_0000"], ["a_0000", "b.seg"]) == {"a": ("a", "a_0000"), "b": ("b_0000", "b.seg")}


def test_nothing_is_guessed():
    # Both files on the right could be of case a; and a_0000 is not the case a, which has its own pair.
    assert match_names(["a"], ["a_0000", "a.seg"]) == {}
    assert match_names(["a", "a_0000"], ["a", "c"]) == {"a": ("a", "a")}
    assert match_names(["a", "a_0000"], ["a", "a.seg"]) == {"a": ("a", "a")}
