# SPDX-License-Identifier: Apache-2.0
"""Codes of SNOMED CT for the names that datasets give to organs; pydicom's dictionary has them.

Known are the organs of the Synapse benchmark and of TotalSegmentator, in their spelling or in plain words.
"""

from __future__ import annotations

import re

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

ORGAN, CATEGORY = codes.cid7166.Organ, codes.cid7150.AnatomicalStructure
_SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}
# Name without its side -> keyword of pydicom, where they differ by more than case and spaces.
_KEYWORDS = {
    "clavicula": "Clavicle",
    "costal cartilages": "CostalCartilage",
    "gall bladder": "Gallbladder",
    "iliac artery": "CommonIliacArtery",
    "iliac vena": "CommonIliacVein",
    "ivc": "InferiorVenaCava",
    "oesophagus": "Esophagus",
    "postcava": "InferiorVenaCava",
    "small bowel": "SmallIntestine",
    "thyroid gland": "Thyroid",
    "urinary bladder": "Bladder",
}
# Beside those of `_KEYWORDS`: that pydicom has a keyword does not yet make a name that of an organ.
_SAME_BUT_FOR_SPACES = {
    *("adrenal gland", "aorta", "bladder", "brachiocephalic trunk", "brachiocephalic vein", "brain", "clavicle"),
    *("colon", "common carotid artery", "duodenum", "esophagus", "femur", "gallbladder", "heart", "humerus"),
    *("inferior vena cava", "kidney", "liver", "lung", "pancreas", "portal vein", "prostate", "pulmonary vein"),
    *("rectum", "rib", "sacrum", "scapula", "skull", "spinal cord", "spleen", "splenic vein", "sternum", "stomach"),
    *("subclavian artery", "superior vena cava", "trachea", "uterus"),
}


def organ_code(name: str) -> tuple[Code | None, Code | None]:
    """Return the code of an organ, None for one that is not known, and that of the side that its name tells, or None.

    Case, order, underscores and a plural of kidneys and lungs do not matter: "left kidney", "kidney_left", "Kidneys".
    """
    words = re.sub(r"[\W_]+", " ", name).strip().lower().split()
    sides = [_SIDES[word] for word in words if word in _SIDES]
    rest = [word for word in words if word not in _SIDES]
    if len(sides) > 1:
        return None, None
    keyword = _vertebra(rest) or _keyword(" ".join(rest))
    code = None if keyword is None else getattr(codes.SCT, keyword)
    return code, sides[0] if sides and code is not None else None


def _keyword(name: str) -> str | None:
    if re.fullmatch(r"rib \d{1,2}", name):
        name = "rib"
    if name not in _KEYWORDS and name not in _SAME_BUT_FOR_SPACES:
        name = name.removesuffix("s")
    if name in _SAME_BUT_FOR_SPACES:
        return name.title().replace(" ", "")
    return _KEYWORDS.get(name)


def _vertebra(words: list[str]) -> str | None:
    """Return the keyword of "vertebrae L1" and the like, from C1 to L5."""
    if len(words) == 2 and words[0] in ("vertebra", "vertebrae"):
        level = words[1].upper()
        if re.fullmatch(r"C[1-7]|T[1-9]|T1[0-2]|L[1-5]", level):
            return f"{level}Vertebra"
    return None
