# SPDX-License-Identifier: Apache-2.0
"""The format of a scan by its name and first bytes, found before any reader is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError

NIFTI_SUFFIXES = (".nii.gz", ".nii")
SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".mha", ".mhd")
_NO_SLICES = ("DICOMDIR",)
_SLICER_SEGMENTATION = ".seg.nrrd"


def scan_suffix(path: str | os.PathLike[str]) -> str | None:
    """Return the suffix by which `read_volume` chooses its reader (".nii.gz", ".nrrd", ...), None for another file."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def is_slicer_segmentation(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file is a segmentation of 3D Slicer by its name: `case.seg.nrrd` beside the scan `case.nrrd`."""
    return Path(path).name.lower().endswith(_SLICER_SEGMENTATION)


def is_dicom_folder(folder: Path) -> bool:
    """Tell whether a file of the folder begins as DICOM files do (a preamble of 128 bytes, then `DICM`)."""
    return any(True for _ in dicom_files(folder))


def dicom_files(folder: Path) -> Iterator[Path]:
    """Yield the DICOM files of a folder in the order of their names; `InputError` for a pipe or a device in it."""
    for path in folder.iterdir():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is no regular file; take it out of the series")  # GDCM would wait for a pipe
    for path in visible_files(folder):
        if path.name not in _NO_SLICES:
            with open(path, "rb") as file:
                if file.read(132)[128:] == b"DICM":
                    yield path


def visible_files(folder: Path) -> list[Path]:
    """Return the files in a folder, sorted, without hidden ones."""
    return sorted(path for path in folder.iterdir() if is_visible(path) and path.is_file())


def is_visible(path: Path) -> bool:
    """Tell whether a file is shown: its name does not begin with a dot."""
    return not path.name.startswith(".")
