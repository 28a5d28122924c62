# SPDX-License-Identifier: Apache-2.0
"""The case that a scan or a label map belongs to, by its file name, for the naming of several tools."""

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

    Equal names belong together. Of the rest, names with an equal `bare_name` do. Such a pair is left out if another
    name of either list, or a pair of equal names, has the same bare name: then it is not clear which is meant.
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
