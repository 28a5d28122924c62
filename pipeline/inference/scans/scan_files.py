# SPDX-License-Identifier: Apache-2.0
"""Scans on disk as a user names them: files, folders of files, DICOM series."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.scans.formats import SUFFIXES, is_dicom_folder, is_slicer_segmentation, scan_suffix
from pipeline.errors import InputError
from pipeline.inference.sources import Inputs, Source, find_sources, visible_entries

NOUN = "scan"


@dataclass(frozen=True)
class Scan(Source):
    """A scan on disk: a file, or a folder with one DICOM series. `case` names its outputs."""


def find_scans(inputs: Inputs) -> list[Source]:
    """Return the scans of `inputs`: a file, a folder of files and DICOM series folders, one series, or a list.

    A `Scan` in a list keeps the case name that it has; files bear the name of the file, series that of the folder.
    Hidden files, files of other formats and Slicer's segmentations (`case.seg.nrrd`) in a folder are passed over.
    Raises `InputError` for paths that are missing (all of them in one message), a folder without scans, a segmentation
    in place of a scan, and two scans of one case name.
    """
    return find_sources(inputs, NOUN, _scans_in)


def _scans_in(path: Path) -> list[Source]:
    if is_slicer_segmentation(path):
        raise InputError(f"{path} is a segmentation; give the scan that it was drawn on")
    # A folder named like a file is no folder of scans: read_volume says so.
    return _in_folder(path) if path.is_dir() and scan_suffix(path) is None else [Scan(_case_of(path), path)]


def _in_folder(folder: Path) -> list[Source]:
    entries = [path for path in visible_entries(folder) if not is_slicer_segmentation(path)]
    scans = [Scan(_case_of(path), path) for path in entries if scan_suffix(path) is not None or _is_series(path)]
    if is_dicom_folder(folder):
        if scans:
            raise InputError(f"{folder} holds DICOM slices and {scans[0].path.name}; give them folders of their own")
        return [Scan(_case_of(folder), folder)]
    if not scans:
        raise InputError(f"no scan in {folder}; give {', '.join(SUFFIXES)} files or DICOM series folders")
    return scans


def _is_series(path: Path) -> bool:
    return path.is_dir() and is_dicom_folder(path)


def _case_of(path: Path) -> str:
    suffix = scan_suffix(path)
    return os.path.basename(os.path.abspath(path)) if suffix is None else path.name[: -len(suffix)]
