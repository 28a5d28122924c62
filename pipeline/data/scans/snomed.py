# SPDX-License-Identifier: Apache-2.0
"""Codes of SNOMED CT for the names that datasets give to organs.

Known are the 13 organs of the Synapse benchmark and the 117 classes of TotalSegmentator 2 (its task "total"), in their
spelling or in plain words. The codes are those of pydicom's dictionary, which has DICOM's own; for what it lacks they
are those of TotalSegmentator's table `totalsegmentator_snomed_mapping.csv`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from pipeline.errors import InputError


@dataclass(frozen=True)
class OrganCode:
    """What DICOM says of a segment: its type, and the side, which is that of the region where a region is told."""

    kind: Code
    side: Code | None = None
    region: Code | None = None
    category: Code = codes.cid7150.AnatomicalStructure


ORGAN = OrganCode(codes.cid7166.Organ)

_LEFT, _RIGHT = codes.SCT.Left, codes.SCT.Right
_SIDES = {"left": _LEFT, "l": _LEFT, "right": _RIGHT, "r": _RIGHT}
# Name without side and "and" -> keyword of pydicom, where they differ by more than case and spaces.
_KEYWORDS = {
    "clavicula": "Clavicle",
    "gall bladder": "Gallbladder",
    "iliac artery": "CommonIliacArtery",
    "iliac vena": "CommonIliacVein",
    "ivc": "InferiorVenaCava",
    "lung lower lobe": "LowerLobeOfLung",
    "lung upper lobe": "UpperLobeOfLung",
    "oesophagus": "Esophagus",
    "postcava": "InferiorVenaCava",
    "small bowel": "SmallIntestine",
    "thyroid gland": "Thyroid",
    "urinary bladder": "Bladder",
}
# Beside those of `_KEYWORDS`: that pydicom has a keyword does not yet make a name that of an organ.
_SAME_BUT_FOR_SPACES = {
    *("adrenal gland", "aorta", "bladder", "brachiocephalic trunk", "brachiocephalic vein", "brain", "clavicle"),
    *("colon", "common carotid artery", "costal cartilage", "duodenum", "esophagus", "femur", "gallbladder", "heart"),
    *("hip", "humerus", "inferior vena cava", "kidney", "liver", "lung", "pancreas", "portal vein", "prostate"),
    *("pulmonary vein", "rectum", "rib", "sacrum", "scapula", "skull", "spinal cord", "spleen", "splenic vein"),
    *("sternum", "stomach", "subclavian artery", "superior vena cava", "trachea", "uterus"),
}
_PORTAL_AND_SPLENIC = ("110765007", "Portal vein and splenic vein")
# Name without side and "and" -> code and meaning, of what pydicom lacks.
_CODES = {
    "atrial appendage": ("68786006", "Auricular appendage"),
    "autochthon": ("244849004", "Deep muscle of back"),
    "gluteus maximus": ("181674001", "Gluteus maximus muscle"),
    "gluteus medius": ("78333006", "Gluteus medius muscle"),
    "gluteus minimus": ("75297007", "Gluteus minimus muscle"),
    "iliopsoas": ("68455001", "Iliopsoas muscle"),
    "portal splenic vein": _PORTAL_AND_SPLENIC,
    "portal vein splenic vein": _PORTAL_AND_SPLENIC,
    "rib 1": ("48535007", "First rib"),
    "rib 2": ("78247007", "Second rib"),
    "rib 3": ("25888004", "Third rib"),
    "rib 4": ("25523003", "Fourth rib"),
    "rib 5": ("15339008", "Fifth rib"),
    "rib 6": ("59558009", "Sixth rib"),
    "rib 7": ("24915002", "Seventh rib"),
    "rib 8": ("5953002", "Eighth rib"),
    "rib 9": ("22565002", "Ninth rib"),
    "rib 10": ("77644006", "Tenth rib"),
    "rib 11": ("58830002", "Eleventh rib"),
    "rib 12": ("43993008", "Twelfth rib"),
    "vertebra s1": ("65985001", "S1 vertebra"),
}
_LONGEST_MEANING = 64  # characters that DICOM allows


def organ_code(name: str) -> OrganCode | None:
    """Return the code of an organ, with the side that its name tells; None for one that is not known.

    Case, order, underscores, "and" and a plural do not matter: "left kidney", "kidney_left", "Kidney(L)", "Kidneys".
    """
    words = re.sub(r"[\W_]+", " ", name).strip().lower().split()
    sides = [_SIDES[word] for word in words if word in _SIDES]
    rest = " ".join(word for word in words if word not in _SIDES and word != "and")
    if len(sides) > 1:
        return None
    side = sides[0] if sides else None
    if rest.removesuffix("s") == "kidney cyst":
        return OrganCode(codes.SCT.Cyst, side, codes.SCT.Kidney, codes.cid7150.MorphologicallyAbnormalStructure)
    if rest == "lung middle lobe":  # only the right lung has one, and the code says so
        return None if side is _LEFT else OrganCode(codes.SCT.MiddleLobeOfRightLung)
    kind = _kind(rest.replace("vertebrae", "vertebra"))
    return None if kind is None else OrganCode(kind, side)


def _kind(name: str) -> Code | None:
    """Return the code of a name without side; a plural is taken for one where the plural is not itself a name."""
    for singular in (name, name.removesuffix("s")):
        if singular in _CODES:
            value, meaning = _CODES[singular]
            return Code(value, "SCT", meaning)
        if keyword := _keyword(singular):
            return getattr(codes.SCT, keyword)
    return None


def _keyword(name: str) -> str | None:
    if name in _SAME_BUT_FOR_SPACES:
        return name.title().replace(" ", "")
    if vertebra := re.fullmatch(r"vertebra (c[1-7]|t[1-9]|t1[0-2]|l[1-5])", name):
        return f"{vertebra[1].upper()}Vertebra"
    return _KEYWORDS.get(name)


def given_codes(given: Mapping[str, Any] | None, organs: Collection[str]) -> dict[str, OrganCode]:
    """Return the codes that a user gives for organs, by the organ's name.

    Args:
        given: name of an organ to its code in SNOMED CT (text or number) and the code's meaning; None for no codes.
        organs: the names that there are.

    Raises:
        InputError: no mapping, a name that no organ has, or a value that is not a code and its meaning.
    """
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"organ_codes is {given!r}; give {{'ORGAN': ['CODE', 'MEANING']}}")
    return {str(name): OrganCode(_given_code(name, pair, organs)) for name, pair in (given or {}).items()}


def _given_code(name: str, pair: Any, organs: Collection[str]) -> Code:
    if name not in organs:
        raise InputError(f"organ_codes: the model has no organ {name!r}; it has {', '.join(organs)}")
    value, meaning = pair if isinstance(pair, list | tuple) and len(pair) == 2 else (pair, None)
    if not re.fullmatch(r"[1-9][0-9]{5,17}", str(value)):
        raise InputError(
            f"organ_codes: {value!r} of {name} is no code of SNOMED CT, which has 6 to 18 digits; "
            "give ['CODE', 'MEANING'], such as ['64033007', 'Kidney']"
        )
    if not (isinstance(meaning, str) and 0 < len(meaning.strip()) <= _LONGEST_MEANING and "\\" not in meaning):
        raise InputError(
            f"organ_codes: the code {value} of {name} needs its meaning, at most {_LONGEST_MEANING} characters without "
            f"a backslash; give ['{value}', 'MEANING']"
        )
    return Code(str(value), "SCT", meaning.strip())
