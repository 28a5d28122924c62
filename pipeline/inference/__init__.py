# SPDX-License-Identifier: Apache-2.0
"""Trained networks on whole scans, in bounded memory and with the scan's geometry kept."""

from pipeline.inference.label_map_writer import FAILURES_FILE, LabelMapWriter
from pipeline.inference.labelled_scans import LabelledScanDataset
from pipeline.inference.scans import Failure, Scan, ScanDataset, find_scans, ras_tensor, scan_loader
from pipeline.inference.segmentation import inferer_of, segment, segment_files
from pipeline.inference.slicewise import AMP_DTYPES, SliceWiseInferer

__all__ = [
    "AMP_DTYPES",
    "FAILURES_FILE",
    "Failure",
    "LabelMapWriter",
    "LabelledScanDataset",
    "Scan",
    "ScanDataset",
    "SliceWiseInferer",
    "find_scans",
    "inferer_of",
    "ras_tensor",
    "scan_loader",
    "segment",
    "segment_files",
]
