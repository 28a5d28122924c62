# SPDX-License-Identifier: Apache-2.0
"""DICOM series of any header, from their stored values: what SimpleITK cannot write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

STEP_MM = 1.25


def write_slices(
    folder: Path,
    stored: np.ndarray,
    *,
    bits: int = 16,
    bits_stored: int = 16,
    signed: bool = True,
    change: Callable[[Dataset, int], None] = lambda header, index: None,
) -> Path:
    """Write (x, y, z) integers as a CT series of 1 x 1 x 1.25 mm; `change(header, index)` may alter each slice."""
    folder.mkdir(parents=True)
    series = generate_uid()
    kind = f"<{'i' if signed else 'u'}{bits // 8}"
    for index in range(stored.shape[2]):
        header = Dataset()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = CTImageStorage
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        header.Modality, header.PatientID, header.StudyInstanceUID = "CT", "phantom", "1.2.3"
        header.SeriesInstanceUID, header.InstanceNumber = series, index + 1
        header.Rows, header.Columns = stored.shape[1], stored.shape[0]
        header.PixelSpacing, header.ImageOrientationPatient = [1, 1], [1, 0, 0, 0, 1, 0]
        header.ImagePositionPatient = [0, 0, index * STEP_MM]
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.BitsAllocated, header.BitsStored, header.HighBit = bits, bits_stored, bits_stored - 1
        header.PixelRepresentation = int(signed)
        header.RescaleSlope, header.RescaleIntercept = "1", "0"
        header.PixelData = np.ascontiguousarray(stored[:, :, index].T.astype(kind)).tobytes()
        header["PixelData"].VR = "OW" if bits > 8 else "OB"
        change(header, index)
        header.save_as(folder / f"im{index:03d}.dcm", enforce_file_format=True)
    return folder
