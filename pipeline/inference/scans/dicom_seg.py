# SPDX-License-Identifier: Apache-2.0
"""Label maps of a DICOM series as DICOM SEG: one coded segment for each organ, with references to the slices."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom
from pydicom.sr.codedict import codes

from pipeline import __version__
from pipeline.data.scans.dicom import is_dicom_folder, series_files
from pipeline.data.scans.geometry import Volume
from pipeline.data.scans.snomed import ORGAN, OrganCode, organ_code
from pipeline.errors import InputError
from pipeline.files.atomic import replace_when_complete

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription

logger = logging.getLogger(__name__)

_NAME, _MAKER = "graphflow-segmentation", "Graph Flow segmentation contributors"
_RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's axes point to the patient's left and back
_PLACE_TOLERANCE = 0.5  # of a voxel, between a slice's own position and its place in the volume
_SERIES_NUMBER = 9000  # beyond those that scanners give


def check_can_write_seg(scans: Sequence[Path], names: Collection[str], given: Mapping[str, OrganCode]) -> None:
    """Refuse (`InputError`) scans that are no DICOM series, and highdicom missing; log names of organs without a code.

    `given` are codes by name, which take the place of the known ones.
    """
    if find_spec("highdicom") is None:
        raise InputError('DICOM SEG needs highdicom: pip install -e ".[dicom-seg]", or give --output_format nifti')
    for scan in scans:
        if not (scan.is_dir() and is_dicom_folder(scan)):
            raise InputError(
                f"{scan} is no DICOM series, to whose slices a DICOM SEG could refer; give --output_format nifti"
            )
    unknown = [name for name in names if name not in given and organ_code(name) is None]
    if unknown:
        logger.warning(
            "no SNOMED CT code is known for %s: coded as Organ, with the name; give codes by --organ_codes",
            ", ".join(unknown),
        )


def write_dicom_seg(
    path: Path,
    labels: np.ndarray,
    scan: Volume,
    names: Mapping[int, str],
    checkpoint_sha256: str = "",
    given: Mapping[str, OrganCode] | None = None,
) -> None:
    """Write labels (x, y, z) uint8 of a DICOM series that `read_volume` gave as a DICOM SEG file, atomically.

    Args:
        path: the file.
        labels: (x, y, z) uint8 on the grid of `scan`; 0 is the background.
        scan: the series; its `path` is the folder.
        names: label value to name; all values from 1 on become segments, even if they do not occur.
        checkpoint_sha256: of the model, written as the serial number of the device.
        given: codes by name, which take the place of the known ones; a name without either is coded as Organ.

    Raises:
        InputError: the series has changed since it was read, or the file cannot be written.
    """
    try:
        known = {name: organ_code(name) or ORGAN for name in names.values()} | dict(given or {})
        segments = [_segment(value, name, known[name]) for value, name in sorted(names.items()) if value]
        segmentation = _segmentation(labels, _slices_in_order(scan), segments, checkpoint_sha256)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # of headers that lack what a SEG repeats
        if isinstance(error, InputError):
            raise
        reason = str(error).partition("\n")[0]
        raise InputError(f"{scan.path}: no DICOM SEG of it ({reason}); give --output_format nifti") from error
    with replace_when_complete(path) as temporary:
        segmentation.save_as(temporary)


def _segmentation(
    labels: np.ndarray, slices: list[pydicom.Dataset], segments: list[SegmentDescription], checkpoint_sha256: str
) -> Segmentation:
    import highdicom

    return highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=np.ascontiguousarray(labels.transpose(2, 1, 0)),  # frames of rows of columns
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=_MAKER,
        manufacturer_model_name=_NAME,
        software_versions=__version__,
        device_serial_number=checkpoint_sha256 or "unknown",
        series_description=f"Segmentation by {_NAME}",
    )


def _slices_in_order(scan: Volume) -> list[pydicom.Dataset]:
    """Return the headers of the slices in the order of the volume's third axis, by their positions."""
    places: dict[int, pydicom.Dataset] = {}
    to_voxel = np.linalg.inv(scan.affine) @ _RAS_OF_LPS
    for file in series_files(scan.path):
        header = pydicom.dcmread(file, stop_before_pixels=True)
        voxel = (to_voxel @ [*map(float, header.ImagePositionPatient), 1.0])[:3]
        place = round(float(voxel[2]))
        if np.abs(voxel - [0, 0, place]).max() < _PLACE_TOLERANCE:
            places[place] = header
    if sorted(places) != list(range(scan.array.shape[2])):
        raise InputError(f"{scan.path}: the slices are not where they were when they were read; segment it again")
    return [places[place] for place in sorted(places)]


def _segment(value: int, name: str, code: OrganCode) -> SegmentDescription:
    import highdicom

    segment = highdicom.seg.SegmentDescription(
        segment_number=value,
        segment_label=name,
        segmented_property_category=code.category,
        segmented_property_type=code.kind,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            _NAME, codes.cid7162.ArtificialIntelligence, __version__
        ),
        anatomic_regions=None if code.region is None else [code.region],
    )
    if code.side is not None:
        side = [highdicom.sr.CodedConcept.from_code(code.side)]
        if code.region is None:
            segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = side
        else:
            segment.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = side
    return segment
