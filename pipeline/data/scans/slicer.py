# SPDX-License-Identifier: Apache-2.0
"""Segmentations of 3D Slicer (`.seg.nrrd`), whose values mean what the names in the header say.

Source: Slicer's manual, "Segmentation NRRD file format" (`Segment0_Name`, `Segment0_LabelValue`, `Segment0_Layer`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.data.scans.formats import is_slicer_segmentation
from pipeline.data.scans.geometry import POSITION_TOLERANCE_MM, Volume, affine_difference, to_voxel_order_of
from pipeline.data.scans.volumes import on_grid_of, read_label
from pipeline.errors import InputError

_MOST_HEADER_BYTES = 1 << 20
_UNNAMED = re.compile(r"(Segment_\d+)?")  # what Slicer calls a segment that nobody named
_SEGMENT = re.compile(r"Segment(\d{1,4})_(Name|LabelValue|Layer):=(.*)")


def segment_names(path: Path) -> dict[int, str] | None:
    """Return label value to segment name, None for a file that is no `.seg.nrrd` or whose segments nobody named.

    Slicer counts values in the order in which segments were drawn, so equal values of two files may be two organs.
    Raises `InputError` for segments in several layers, which overlap, and for two of one name or value.
    """
    if not is_slicer_segmentation(path):
        return None
    segments: dict[str, dict[str, str]] = defaultdict(dict)
    with open(path, "rb") as file:
        header = file.read(_MOST_HEADER_BYTES).replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    for line in header.decode("utf-8", errors="replace").split("\n"):
        if match := _SEGMENT.fullmatch(line):
            segments[match[1]][match[2]] = match[3].strip()
    if len({segment.get("Layer", "0") for segment in segments.values()}) > 1:
        raise InputError(
            f"{path}: segments overlap, so a voxel has no single label; let them overwrite each other in Slicer "
            "(Segment Editor, Masking, Modify other segments: Overwrite all) and save again"
        )
    named = [(part["LabelValue"], part["Name"]) for part in segments.values() if {"LabelValue", "Name"} <= part.keys()]
    return None if all(_UNNAMED.fullmatch(name) for _, name in named) else _names_of(path, named)


def _names_of(path: Path, named: list[tuple[str, str]]) -> dict[int, str]:
    values, names = ({pair[side] for pair in named} for side in (0, 1))
    if (
        not all(value.isdigit() and 0 < int(value) < 256 for value in values)
        or len(values) < len(named)
        or len(names) < len(named)
    ):
        listed = ", ".join(f"{value} {name}" for value, name in named)
        raise InputError(f"{path}: segments {listed}: each needs a name and a value of its own; correct them in Slicer")
    return {int(value): name for value, name in sorted(named, key=lambda pair: int(pair[0]))}


def names_of_segments(paths: Iterable[Path]) -> dict[int, str] | None:
    """Return value to name, with 0 the background, from the segments of all files in the order of their occurrence.

    None where no file names its segments. Raises `InputError` as `segment_names` does, and where only some files do:
    what the values of the others mean is not known.
    """
    named = {path: segment_names(path) for path in paths}
    if not any(named.values()):
        return None
    silent = [path for path, names in named.items() if not names]
    if silent:
        raise InputError(f"{silent[0]} does not name its values, as other files do; give the names by --organs")
    names = dict.fromkeys(name for found in named.values() for name in (found or {}).values())
    return dict(enumerate(("background", *names)))


def read_named_label(path: Path, labels: Mapping[int, str], like: Volume | None = None) -> Volume:
    """Read a label map as `read_label` does; where the file names its values, those of `labels` replace them by name.

    A `.seg.nrrd` may hold a part of the grid of `like` ("Crop to minimum extent" in Slicer); the rest is background.
    Raises `InputError` for a segment that `labels` does not name.
    """
    label = _read_by_name(path, labels)
    return label if like is None else on_grid_of(like, uncropped(label, like))


def _read_by_name(path: Path, labels: Mapping[int, str]) -> Volume:
    names = segment_names(path)
    if names is None:
        return read_label(path, labels={0, *labels})
    values = {name: value for value, name in labels.items() if value}
    unknown = [name for name in names.values() if name not in values]
    if unknown:
        organs = ", ".join(values)
        raise InputError(f"{path}: segments {', '.join(unknown)} are none of {organs}; rename them in Slicer")
    label = read_label(path, labels={0, *names})
    table = np.zeros(256, dtype=np.uint8)
    table[list(names)] = [values[name] for name in names.values()]
    return replace(label, array=table[label.array])


def uncropped(label: Volume, like: Volume) -> Volume:
    """Return a segmentation with the voxels that Slicer cut off as background.

    Other files, and what is no part of the grid of `like`, are returned as they are.
    """
    if not is_slicer_segmentation(label.path) or label.array.shape == like.array.shape:
        return label
    array, affine = to_voxel_order_of(label.array, label.affine, like.affine)
    first = np.rint((np.linalg.inv(like.affine) @ affine[:, 3])[:3]).astype(int)
    expected = like.affine.copy()
    expected[:, 3] = like.affine @ (*first, 1)
    edge, origin, _ = affine_difference(expected, affine)
    # One voxel's error in the edges grows over the whole part, so this is stricter than the check of a whole grid.
    misplaced = max(edge * max(array.shape), origin) > POSITION_TOLERANCE_MM
    fits = (first >= 0).all() and (first + array.shape <= like.array.shape).all()
    if misplaced or not fits:
        return label
    whole = np.zeros(like.array.shape, dtype=np.uint8, order="F")
    whole[tuple(slice(start, start + size) for start, size in zip(first, array.shape, strict=True))] = array
    note = f"Slicer kept {' x '.join(map(str, array.shape))} voxels of it; the others are background"
    return replace(label, array=whole, affine=like.affine.copy(), notes=(*label.notes, note))
