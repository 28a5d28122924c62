# SPDX-License-Identifier: Apache-2.0
"""The modality in a scan's header."""

from __future__ import annotations

from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError


def modality_told(path: Path) -> str | None:
    """Return the modality of a DICOM series' first file, such as "CT"; None for other formats, which have none."""
    if not path.is_dir():
        return None
    for file in sorted(path.iterdir()):
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Modality"])
        except (InvalidDicomError, OSError, ValueError):  # a file of another kind beside the series
            continue
        return str(header.get("Modality", "")) or None
    return None
