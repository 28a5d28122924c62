# SPDX-License-Identifier: Apache-2.0
"""Which folders hold DICOM files, told without the library that reads these: it takes a second to import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError

_NO_SLICES = ("DICOMDIR",)


def is_dicom_folder(folder: Path) -> bool:
    """Tell whether a file of the folder begins as DICOM files do (a preamble of 128 bytes, then `DICM`)."""
    return any(True for _ in dicom_files(folder))


def dicom_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, sorted, that begin so; `InputError` for a pipe or device."""
    for path in sorted(folder.iterdir()):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is no regular file; take it out of the series")  # GDCM would wait for a pipe
        if path.is_file() and path.name not in _NO_SLICES:
            with open(path, "rb") as file:
                if file.read(132)[128:] == b"DICM":
                    yield path
