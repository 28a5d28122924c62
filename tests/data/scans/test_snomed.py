# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import functools

import pytest
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from pipeline.data.scans import snomed
from pipeline.data.scans.snomed import OrganCode, given_codes, organ_code
from pipeline.errors import InputError

LEFT, RIGHT = codes.SCT.Left, codes.SCT.Right
SYNAPSE = """spleen, right kidney, left kidney, gallbladder, esophagus, liver, stomach, aorta, inferior vena cava,
portal vein and splenic vein, pancreas, right adrenal gland, left adrenal gland"""
TOTALSEGMENTATOR = """spleen, kidney_right, kidney_left, gallbladder, liver, stomach, pancreas, adrenal_gland_right,
adrenal_gland_left, lung_upper_lobe_left, lung_lower_lobe_left, lung_upper_lobe_right, lung_middle_lobe_right,
lung_lower_lobe_right, esophagus, trachea, thyroid_gland, small_bowel, duodenum, colon, urinary_bladder, prostate,
kidney_cyst_left, kidney_cyst_right, sacrum, vertebrae_S1, vertebrae_L5, vertebrae_L4, vertebrae_L3, vertebrae_L2,
vertebrae_L1, vertebrae_T12, vertebrae_T11, vertebrae_T10, vertebrae_T9, vertebrae_T8, vertebrae_T7, vertebrae_T6,
vertebrae_T5, vertebrae_T4, vertebrae_T3, vertebrae_T2, vertebrae_T1, vertebrae_C7, vertebrae_C6, vertebrae_C5,
vertebrae_C4, vertebrae_C3, vertebrae_C2, vertebrae_C1, heart, aorta, pulmonary_vein, brachiocephalic_trunk,
subclavian_artery_right, subclavian_artery_left, common_carotid_artery_right, common_carotid_artery_left,
brachiocephalic_vein_left, brachiocephalic_vein_right, atrial_appendage_left, superior_vena_cava, inferior_vena_cava,
portal_vein_and_splenic_vein, iliac_artery_left, iliac_artery_right, iliac_vena_left, iliac_vena_right, humerus_left,
humerus_right, scapula_left, scapula_right, clavicula_left, clavicula_right, femur_left, femur_right, hip_left,
hip_right, spinal_cord, gluteus_maximus_left, gluteus_maximus_right, gluteus_medius_left, gluteus_medius_right,
gluteus_minimus_left, gluteus_minimus_right, autochthon_left, autochthon_right, iliopsoas_left, iliopsoas_right, brain,
skull, rib_left_1, rib_left_2, rib_left_3, rib_left_4, rib_left_5, rib_left_6, rib_left_7, rib_left_8, rib_left_9,
rib_left_10, rib_left_11, rib_left_12, rib_right_1, rib_right_2, rib_right_3, rib_right_4, rib_right_5, rib_right_6,
rib_right_7, rib_right_8, rib_right_9, rib_right_10, rib_right_11, rib_right_12, sternum, costal_cartilages"""


@pytest.mark.parametrize(
    ("name", "code", "side"),
    [
        ("aorta", "15825003", None),
        ("gallbladder", "28231008", None),
        ("left kidney", "64033007", LEFT),
        ("kidney_right", "64033007", RIGHT),
        ("Kidney(L)", "64033007", LEFT),
        ("Kidneys", "64033007", None),
        ("liver", "10200004", None),
        ("pancreas", "15776009", None),
        ("Spleen", "78961009", None),
        ("stomach", "69695003", None),
        ("inferior_vena_cava", "64131007", None),
        ("adrenal_gland_left", "23451007", LEFT),
        ("vertebrae_L5", "49668003", None),
        ("vertebra S1", "65985001", None),
        ("rib_right_7", "24915002", RIGHT),
        ("ribs", "113197003", None),
        ("urinary_bladder", "89837001", None),
        ("costal_cartilages", "50016007", None),
        ("lung_lower_lobe_left", "90572001", LEFT),
        ("lung_middle_lobe_right", "72481006", None),
        ("hip_left", "29836001", LEFT),
        ("gluteus_minimus_right", "75297007", RIGHT),
        ("iliopsoas_left", "68455001", LEFT),
        ("autochthon_left", "244849004", LEFT),
        ("atrial_appendage_left", "68786006", LEFT),
        ("subclavian_artery_left", "36765005", LEFT),  # TotalSegmentator's table has the code of the right one
        ("portal_vein_and_splenic_vein", "110765007", None),
        ("Portal & splenic veins", "110765007", None),
    ],
)
def test_organs_have_their_codes(name, code, side):
    found = organ_code(name)
    assert (found.kind.value, found.kind.scheme_designator, found.side) == (code, "SCT", side)
    assert (found.region, found.category.meaning) == (None, "Anatomical Structure")


def test_cyst_is_an_abnormal_structure_in_the_kidney_of_its_side():
    found = organ_code("kidney_cyst_left")
    told = (found.category, found.kind, found.region, found.side)
    assert [code.value for code in told] == ["49755003", "367643001", "64033007", "7771000"]


OTHER = ["tumour", "left", "left right kidney", "left lung middle lobe", "vertebrae_L9", "rib_13", "organ", "", "hé?"]


@pytest.mark.parametrize("name", OTHER)
def test_other_names_have_none(name):
    assert organ_code(name) is None


def check_digit_fits(code: str) -> bool:
    """Return whether the last digit of a SNOMED CT identifier is the one that Verhoeff's scheme gives it."""
    permutation, check = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4), 0
    for place, digit in enumerate(map(int, reversed(code))):
        for _ in range(place % 8):
            digit = permutation[digit]
        turn = (check + digit if check < 5 else check - digit) % 5  # product in the group of the pentagon
        check = turn + 5 * ((check < 5) != (digit < 5))
    return check == 0


def test_check_digit_finds_wrong_and_swapped_digits():
    assert check_digit_fits("64033007")
    assert not check_digit_fits("64033008")
    assert not check_digit_fits("46033007")


@pytest.mark.parametrize(("names", "count"), [(SYNAPSE, 13), (TOTALSEGMENTATOR, 117)])
def test_all_organs_of_a_dataset_have_codes_of_their_own(names, count):
    found = [organ_code(name.strip()) for name in names.split(",")]
    assert len(set(found)) == len(found) == count
    assert None not in found
    for organ in found:
        assert organ.kind.value.isdigit()
        assert 6 <= len(organ.kind.value) <= 18
        assert check_digit_fits(organ.kind.value), organ


def test_both_datasets_spell_the_same_organs():
    plain, with_underscores = (
        {organ_code(name.strip()) for name in names.split(",")} for names in (SYNAPSE, TOTALSEGMENTATOR)
    )
    assert plain <= with_underscores


def test_all_names_of_the_table_are_known():
    for name in (*snomed._KEYWORDS, *snomed._SAME_BUT_FOR_SPACES, *snomed._CODES):
        assert organ_code(name).kind.scheme_designator == "SCT", name


give = functools.partial(given_codes, organs=["liver", "my tumour"])


def test_codes_are_taken_as_given():
    assert give(None) == give({}) == {}
    told = {"my tumour": ["108369006", "Neoplasm"], "liver": (18639004, " Left kidney ")}
    assert give(told) == {
        "my tumour": OrganCode(Code("108369006", "SCT", "Neoplasm")),
        "liver": OrganCode(Code("18639004", "SCT", "Left kidney")),
    }


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("codes.csv", r"organ_codes is 'codes.csv'; give {'ORGAN': \['CODE', 'MEANING'\]}"),
        ({"lung": ["39607008", "Lung"]}, "the model has no organ 'lung'; it has liver, my tumour"),
        ({"liver": ["liver", "Liver"]}, "'liver' of liver is no code of SNOMED CT, which has 6 to 18 digits"),
        ({"liver": ["", "Liver"]}, "'' of liver is no code"),
        ({"liver": ["12345", "Liver"]}, "'12345' of liver is no code"),
        ({"liver": "Liver"}, "'Liver' of liver is no code"),
        ({"liver": ["10200004", "Liver", "SCT"]}, "of liver is no code"),
        ({"liver": "10200004"}, "the code 10200004 of liver needs its meaning, at most 64 characters"),
        ({"liver": ["10200004", " "]}, r"needs its meaning.*; give \['10200004', 'MEANING'\]"),
        ({"liver": ["10200004", 5]}, "needs its meaning"),
        ({"liver": ["10200004", "r" * 65]}, "needs its meaning"),
        ({"liver": ["10200004", "a\\b"]}, "without a backslash"),
    ],
)
def test_bad_codes_are_refused_in_one_line(given, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        give(given)
    assert "\n" not in str(error.value)
