# SPDX-License-Identifier: Apache-2.0
"""Which case a scan or a label map is of, by its file name, whichever tool named it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from pipeline.data.scans.formats import scan_suffix

# nnU-Net numbers the channels of an image; labels and predictions have the bare name.
FIRST_CHANNEL = "_0000"
# Slicer saves the segmentation of case.nrrd as case.seg.nrrd.
_SEGMENTATION = ".seg"


def case_of_file(path: str | Path) -> str:
    """Return a file's name without the suffix of its format (`.nii.gz`, `.nrrd`, ...); that of a folder as it is."""
    name = Path(path).name
    return name[: -len(scan_suffix(name) or "") or None]


def bare_name(name: str) -> str:
    """Return a case's name without what tools append: nnU-Net's `_0000`, Slicer's `.seg`."""
    return name.removesuffix(_SEGMENTATION).removesuffix(FIRST_CHANNEL)


def match_names(first: Collection[str], second: Collection[str]) -> dict[str, tuple[str, str]]:
    """Return the cases that are in both lists of names, as case to its name in each.

    Names that are equal belong together, and of the rest those that are equal as `bare_name`, unless two names of one
    list, or a pair of equal names, have the same bare one: then nothing tells which is meant.
    """
    equal = sorted(set(first) & set(second))
    matched = {name: (name, name) for name in equal}
    bare_first, bare_second = (
        {bare: name for name, bare in bare_names(set(names) - set(equal)).items()} for names in (first, second)
    )
    for case in sorted((bare_first.keys() & bare_second.keys()) - set(equal)):
        matched[case] = (bare_first[case], bare_second[case])
    return matched


def bare_names(names: Collection[str]) -> dict[str, str]:
    """Return each name with its `bare_name`, or with itself where two have the same bare one."""
    counts = Counter(map(bare_name, names))
    return {name: bare_name(name) if counts[bare_name(name)] == 1 else name for name in names}
